"""Files: atomic writes, and the HDF5 schema of a data set of sequences.

A file holds groups ``train``, ``val`` and ``test``, each with ``x``, (N, T, D) float32 or uint8, or (N, T) int32
numbers of words; ``y`` (N,) float32 or int64; and, where sequences differ in length, ``lengths`` (N,) int64, past
which x is padding. Attributes of the root: ``schema``, ``schema_version``, ``task``, the task's parameters, ``seed``,
``version`` (of skiprnn) and ``digest``, the SHA-256 over the digests of the splits, which each group holds and which
are checked on reading. A task may add arrays of its own in the group ``extra``, such as the words, whose digests are
attributes of that group.
"""

import errno
import hashlib
import io
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.data.doors import Hdf5, open_hdf5
from pipelines.errors import SkipRNNError

if sys.platform != "win32":  # where temporary files of killed processes stay
    import fcntl

SEQUENCES, FEATURES = "skiprnn-sequences", "skiprnn-features"  # schemas; the second is features.py's
SCHEMA_VERSION = 1  # of both
SPLITS = ("train", "val", "test")
ARRAYS = ("x", "y", "lengths")  # of a split
REMEDY = "generate it again with --overwrite, or name another with --data"


class Split(Protocol):
    """One split of a data file."""

    def __len__(self) -> int: ...

    @property
    def y(self) -> Tensor:
        """(N,)."""

    @property
    def lengths(self) -> Tensor | None:
        """(N,); None: all steps."""

    @property
    def steps(self) -> int:
        """T."""

    @property
    def device(self) -> torch.device: ...

    def take(self, rows: Tensor | slice) -> "Sequences": ...

    def to(self, device: torch.device | str) -> "Split": ...

    def padded(self) -> "Split":
        """The sequences with what stands past their ends as part of them."""


@dataclass(frozen=True)
class Sequences:
    """Sequences in memory."""

    x: Tensor  # (N, T, D) float32, float16 or uint8, or (N, T) int32
    y: Tensor  # (N,) float32 or int64
    lengths: Tensor | None = None  # (N,) int64; None: all T steps

    def __len__(self) -> int:
        return len(self.x)

    @property
    def steps(self) -> int:
        """T."""
        return self.x.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.x.device

    def padded(self) -> "Sequences":
        """The sequences with what stands past their ends as part of them."""
        return Sequences(self.x, self.y)

    def take(self, rows: Tensor | slice) -> "Sequences":
        """The sequences of the given row numbers."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Sequences":
        return self._map(lambda tensor: tensor.to(device))

    def arrays(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Sequences":
        return Sequences(**{name: function(tensor) for name, tensor in self.arrays().items()})


@dataclass(frozen=True)
class DataFile:
    """A data file's attributes and splits."""

    path: Path
    attributes: dict[str, Any]
    splits: dict[str, Split]
    extra: dict[str, npt.NDArray[Any]]


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
        temporary.chmod(0o666 & ~_umask())
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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        if sys.platform == "win32":
            os.close(handle)
            return None, Path(name)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
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


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a small text file atomically."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


class SequencesWriter:
    """Writes an open HDF5 file split by split, chunk by chunk, with the digest as it goes."""

    def __init__(self, file: h5py.File, disk: "PatientFile") -> None:
        self._file = file
        self._disk = disk
        self._digest = hashlib.sha256()

    def write_split(self, name: str, size: int, chunks: Iterator[Sequences]) -> None:
        group, start = self._file.create_group(name), 0
        digests = {name: hashlib.sha256() for name in ARRAYS}
        for chunk in chunks:
            for key, tensor in chunk.arrays().items():
                array = tensor.cpu().numpy()
                with signals_waiting():
                    if key not in group:
                        group.create_dataset(
                            key, (size, *array.shape[1:]), array.dtype, chunks=(min(size, 1024), *array.shape[1:]),
                            fletcher32=True,
                        )  # fmt: skip
                    group[key][start : start + len(array)] = array
                digests[key].update(array.tobytes())
            start += len(chunk)
            self._disk.check()
        group.attrs["digest"] = "".join(digests[key].hexdigest() for key in ARRAYS if key in group)
        self._digest.update(group.attrs["digest"].encode())

    def write_extra(self, name: str, array: npt.NDArray[Any]) -> None:
        """Add an array of the task's own: numbers, or strings as ``object``."""
        kind = h5py.string_dtype() if array.dtype == object else array.dtype
        group = self._file.require_group("extra")
        group.create_dataset(name, data=array, dtype=kind)
        group.attrs[name] = _digest(array)
        self._disk.check()

    def finish(self, attributes: dict[str, Any]) -> None:
        describe(self._file, SEQUENCES, {**attributes, "digest": self._digest.hexdigest()})


def describe(file: h5py.File, schema: str, attributes: dict[str, Any]) -> None:
    """Give a new file its attributes."""
    for key, value in {"schema": schema, "schema_version": SCHEMA_VERSION, **attributes}.items():
        file.attrs[key] = value


@contextmanager
def sequences_writer(path: Path, *, overwrite: bool) -> Iterator[SequencesWriter]:
    """Open a new data file for writing; it appears at ``path`` whole or not at all."""
    with hdf5_writer(path, overwrite=overwrite) as (file, disk):
        yield SequencesWriter(file, disk)


@contextmanager
def hdf5_writer(path: Path, *, overwrite: bool) -> Iterator[tuple[h5py.File, "PatientFile"]]:
    """Open a new HDF5 file, which appears at ``path`` whole or not at all, and the file under it, to be checked."""
    with atomic_path(path, overwrite=overwrite) as temporary, PatientFile(temporary, "w+") as disk:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.check()


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: what they raise in the midst of HDF5 would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    before = {number: signal.signal(number, lambda n, frame: arrived.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)


class PatientFile(io.FileIO):
    """A file under HDF5, which crashes the process when a write fails: keeps the error for ``check`` to raise.

    What was not written reads as zeros, as HDF5's own drivers have it; h5py's leaves memory as it was, and a crash.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:  # Ctrl-C too must not go through HDF5
            self.error = error
        return size

    def readinto(self, buffer: Any) -> int:
        rest = memoryview(buffer).cast("B")
        size = len(rest)
        while rest and (count := super().readinto(rest)):
            rest = rest[count:]
        rest[:] = bytes(len(rest))
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except BaseException as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def schema_of(path: Path) -> str | None:
    """Which of the schemas a file is of, in whatever state; None where of none."""
    try:
        with closing(open_hdf5(path, REMEDY)) as file:
            schema = file.attributes().get("schema")
            return str(schema) if schema in (SEQUENCES, FEATURES) else None
    except SkipRNNError:
        return None


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a data file, checked against the schema.

    Raises:
        SkipRNNError: there is no such file, or it is not an intact data file of this schema.
    """
    with open_data(path, SEQUENCES, FEATURES) as file:
        return root_attributes(file)


def read_sequences(path: Path, splits: tuple[str, ...] = SPLITS, rows: slice | None = None) -> DataFile:
    """Read a data file into memory.

    Args:
        path: the file.
        splits: of train, val and test.
        rows: read these sequences only, whose digest nobody can tell.

    Raises:
        SkipRNNError: the file is missing, foreign, damaged, or holds values that are not finite.
    """
    with open_data(path, SEQUENCES) as file:
        attributes = root_attributes(file)
        parts: dict[str, Split] = {name: _read_split(file, path, name, rows) for name in splits}
        return DataFile(Path(path), attributes, parts, _read_extra(file, path) if rows is None else {})


@contextmanager
def open_data(path: Path, *schemas: str) -> Iterator[Hdf5]:
    """Open a file of one of the schemas for reading.

    Raises:
        SkipRNNError: it is missing, foreign, or found damaged while it is open.
    """
    if not os.path.exists(path):
        raise SkipRNNError(
            f"no data file {path}; make one with `skiprnn gen-data` or `skiprnn extract-features`, or name another "
            "with --data"
        )
    with closing(open_hdf5(path, REMEDY)) as file:
        attributes = file.attributes()
        if attributes.get("schema") not in schemas:
            raise SkipRNNError(f"{path} is not a skiprnn data file; make one with `skiprnn gen-data`")
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise SkipRNNError(
                f"{path} has schema version {attributes.get('schema_version')}, this skiprnn reads {SCHEMA_VERSION}; "
                "generate it again with `skiprnn gen-data --overwrite`"
            )
        yield file


def root_attributes(file: Hdf5) -> dict[str, Any]:
    """The attributes of an open file, those that none lacks among them."""
    attributes = file.attributes()
    for key in ("task", "digest"):
        if not isinstance(attributes.get(key), str):
            raise SkipRNNError(f"{file.path} does not say its {key}, so it was never finished; {REMEDY}")
    return attributes


def _read_split(file: Hdf5, path: Path, name: str, rows: slice | None) -> Sequences:
    there = {key: file.dataset(f"{name}/{key}") for key in ARRAYS if f"{name}/{key}" in file}
    if missing := {"x", "y"} - there.keys():
        raise SkipRNNError(f"{path}: split {name} has no {' nor '.join(sorted(missing))}; {REMEDY}")
    x, y, lengths = there["x"], there["y"], there.get("lengths")
    if (
        (len(x.shape), x.dtype) not in ((3, np.float32), (3, np.uint8), (2, np.int32))
        or len(y.shape) != 1
        or y.dtype not in (np.float32, np.int64)
        or len(x) != len(y)
        or (lengths is not None and (lengths.shape != y.shape or lengths.dtype != np.int64))
    ):
        raise SkipRNNError(
            f"{path}: split {name} must have x (N, T, D) float32 or uint8, or (N, T) int32, and y (N,) float32 or "
            f"int64, got x {x.shape} {x.dtype} and y {y.shape} {y.dtype}; {REMEDY}"
        )
    if x.size == 0:
        raise SkipRNNError(f"{path}: split {name} is empty, its x being {x.shape}; {REMEDY}")
    if rows is not None and rows.start >= len(x):
        raise SkipRNNError(f"{path} has {len(x):,} sequences in {name}, so --index goes up to {len(x) - 1}")
    arrays = {key: file.array(f"{name}/{key}", rows) for key in there}
    if rows is None:
        digest = "".join(_digest(array) for array in arrays.values())
        if digest != file.attributes(name).get("digest"):
            raise SkipRNNError(f"{path}: split {name} was changed after it was made; {REMEDY}")
    if "lengths" in arrays and not (arrays["lengths"].min() >= 0 and arrays["lengths"].max() <= x.shape[1]):
        raise SkipRNNError(f"{path}: split {name} has lengths outside 0..{x.shape[1]}; {REMEDY}")
    return _finite(Sequences(**{key: torch.from_numpy(array) for key, array in arrays.items()}), path, name)


def _read_extra(file: Hdf5, path: Path) -> dict[str, npt.NDArray[Any]]:
    names = [name.removeprefix("extra/") for name in file.names() if name.startswith("extra/")]
    digests = file.attributes("extra") if names else {}
    found = {name: file.array(f"extra/{name}") for name in names}
    for name, array in found.items():
        if digests.get(name, digest := _digest(array)) != digest:  # older files have none
            raise SkipRNNError(f"{path}: {name} was changed after it was made; {REMEDY}")
    return found


def _digest(array: npt.NDArray[Any]) -> str:
    if array.dtype == object:
        return hashlib.sha256("\n".join(array.tolist()).encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _finite(sequences: Sequences, path: Path, name: str) -> Sequences:
    for key, tensor in (("x", sequences.x), ("y", sequences.y)):
        finite = torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise SkipRNNError(f"{path}: {name}/{key} of sequence {first} holds NaN or infinity; drop such sequences")
    return sequences


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_directory(path: Path) -> None:
    """Make a rename in ``path`` last through a power cut (only POSIX can open a directory for that)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
