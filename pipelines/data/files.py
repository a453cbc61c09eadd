"""Writing files: whole or not at all, however the process ends."""

import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.errors import SkipRNNError

if sys.platform != "win32":  # where temporary files of killed processes stay
    import fcntl


@contextmanager
def atomic_path(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block succeeds, and is removed when not.

    Raises:
        SkipRNNError: ``path`` exists and ``overwrite`` is false, or it cannot be written.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    temporary = handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        handle, temporary = _claimed_file(path)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _put(temporary, path, overwrite=overwrite)
        temporary = None
        _sync_directory(path.parent)
    except OSError as error:
        raise SkipRNNError(
            f"cannot write {path}: {error.strerror or error}; check the folder's permissions and free space"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a small text file atomically."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that exists, unless it is a file to overwrite.

    Raises:
        SkipRNNError: the path is a folder, or a file that may not be overwritten.
    """
    try:
        if path.is_dir():
            raise SkipRNNError(f"cannot write {path}: it is a folder; name a file with --out")
        if not overwrite and path.exists():
            raise _exists(path)
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered
        reason = getattr(error, "strerror", None) or error
        raise SkipRNNError(f"cannot write {path}: {reason}; choose another --out") from error


def remove_leftovers(path: Path) -> None:
    """Remove temporary files beside ``path`` whose writers were killed: nobody holds their locks."""
    if sys.platform == "win32":
        return
    made = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}" + re.escape(path.suffix))
    with os.scandir(path.parent) as entries:
        leftovers = [entry.path for entry in entries if made.fullmatch(entry.name)]
    for leftover in leftovers:
        with suppress(OSError):  # it is somebody else's, or gone
            handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            finally:
                os.close(handle)


def _claimed_file(path: Path) -> tuple[int | None, Path]:
    """A new temporary file for ``path``, and the handle that holds its lock as long as it is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if sys.platform == "win32":
            os.close(handle)
            return None, temporary
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # taken for a leftover before it was locked


def _put(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file its name; without ``overwrite`` of several processes exactly one does so."""
    if not overwrite:
        try:
            os.link(temporary, path)
            temporary.unlink()
            return
        except FileExistsError as error:
            raise _exists(path) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
        try:  # a file system without hard links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError as error:
            raise _exists(path) from error
    os.replace(temporary, path)


def _exists(path: Path) -> SkipRNNError:
    return SkipRNNError(f"{path} exists already; pass --overwrite to replace it or choose another --out")


def _sync_directory(path: Path) -> None:
    """Make a rename in ``path`` last through a power cut (only POSIX can open a directory for that)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
