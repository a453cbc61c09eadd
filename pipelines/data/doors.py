"""Files that others made come in through here.

Whatever the library that reads a format makes of a damaged or hostile file becomes one message. Nothing is taken into
memory before the size it claims was held against the file's own and the memory there is, nothing is waited for (a pipe,
a terminal), and nothing is read that stands in another file than the one that was named.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from pipelines.data import memory
from pipelines.errors import SkipRNNError

Array = npt.NDArray[Any]

DEFLATE = 1032  # deflate makes nothing smaller than this many times
SMALL = 2**20  # bytes that may be claimed by anything
LARGE, DENSE = 2**30, 200  # beyond so many bytes, what deflates more than so many times is a bomb, not data
TEXT = 2**28  # bytes of a text file, at most
LINE = 2**24  # characters of a line, at most

K = TypeVar("K", dict[str, Any], list[Any])


@contextmanager
def reading(path: Path | str, what: str, remedy: str) -> Iterator[None]:
    """Make one message of whatever goes wrong in the block.

    Args:
        path: the file that the block reads.
        what: what it should be, such as "HDF5".
        remedy: what the user can do.

    Raises:
        SkipRNNError: the block raised something.
    """
    try:
        yield
    except SkipRNNError:
        raise
    except MemoryError as error:
        raise SkipRNNError(f"there is not enough memory to read {path}; run it where there is more") from error
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        reason = reason[:200] or type(error).__name__
        raise SkipRNNError(f"cannot read {path}: truncated, damaged or not {what} ({reason}); {remedy}") from error


def check_file(path: Path, remedy: str) -> int:
    """The size of a file in bytes; it must be one with an end.

    Raises:
        SkipRNNError: there is none, or it is a folder, a pipe or a device.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SkipRNNError(f"cannot read {path}: {reason}; {remedy}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise SkipRNNError(f"cannot read {path}: it is {kind}, not a file; {remedy}")
    return status.st_size


@contextmanager
def opening(path: Path, what: str, remedy: str) -> Iterator[int]:
    """As ``reading``, for a block that opens a file with an end; yields its size in bytes."""
    size = check_file(path, remedy)
    with reading(path, what, remedy):
        yield size


def check_claim(claimed: int, stored: int, what: str) -> None:
    """Refuse an array that its file cannot hold.

    Args:
        claimed: bytes it says it has.
        stored: bytes there are of it in the file, compressed or not.
        what: what it is, the beginning of the message.
    """
    if claimed > max((DEFLATE if claimed < LARGE else DENSE) * stored, SMALL):
        raise SkipRNNError(
            f"{what} claims {memory.in_words(claimed)}, of which {memory.in_words(stored)} are stored; it is damaged, "
            "or was never written"
        )


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file, which is read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def read_bytes(path: Path, remedy: str, *, limit: int = TEXT) -> bytes:
    """A whole file of ``limit`` bytes at most."""
    with opening(path, "a readable file", remedy) as size:
        if size > limit:
            raise SkipRNNError(
                f"cannot read {path}: it has {memory.in_words(size)}, more than the {memory.in_words(limit)} of such a "
                f"file; {remedy}"
            )
        memory.check_fits(size, str(path))
        return path.read_bytes()


def read_text(path: Path, what: str, remedy: str, *, limit: int = TEXT) -> str:
    """A whole UTF-8 text of ``limit`` bytes at most."""
    data = read_bytes(path, remedy, limit=limit)
    with reading(path, what, remedy):
        return data.decode("utf-8")


def read_json(path: Path, kind: type[K], remedy: str, *, limit: int = TEXT) -> K:
    """The object or list in a JSON file of ``limit`` bytes at most."""
    text = read_text(path, "JSON", remedy, limit=limit)
    with reading(path, "JSON", remedy):
        return parse_json(text, kind)


def parse_json(text: str, kind: type[K]) -> K:
    """The object or list that a JSON text says.

    Raises:
        ValueError: it says neither, or is nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, kind):
        raise ValueError(f"it holds no {'object' if kind is dict else 'list'}")
    return value


def lines_of(file: Iterable[str], name: str) -> Iterator[str]:
    """The lines of an open text, or others, of ``LINE`` characters at most."""
    lines = iter(lambda: file.readline(LINE + 1), "") if isinstance(file, io.TextIOBase) else file
    for number, line in enumerate(lines, start=1):
        if len(line) > LINE:
            raise SkipRNNError(f"{name}, line {number}: longer than {LINE:,} characters; is it a text?")
        yield line
