"""Files that others made come in through here.

Whatever the library that reads a format makes of a damaged or hostile file becomes one message. Nothing is taken into
memory before the size it claims was held against the file's own and the memory there is, nothing is waited for (a pipe,
a terminal), and nothing is read that stands in another file than the one that was named.
"""

import io
import json
import math
import mmap
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import h5py
import numpy as np
import numpy.typing as npt

from pipelines.data import memory
from pipelines.errors import SkipRNNError

Array = npt.NDArray[Any]

DEFLATE = 1032  # deflate makes nothing smaller than this many times
SMALL = 2**20  # bytes that may be claimed by anything
LARGE, DENSE = 2**30, 200  # beyond so many bytes, what deflates more than so many times is a bomb, not data
TEXT = 2**28  # bytes of a text file, at most
LINE = 2**24  # characters of a line, at most
DEPTH, NAMES = 32, 100_000  # of groups in an HDF5 file
TEXTS = 2_000_000  # of a file
HEAP = b"GCOL\x01\0\0\0"  # the beginning of a collection of texts in an HDF5 file

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


def read_bytes(path: Path, remedy: str, *, limit: int = TEXT) -> bytes:
    """A whole file of ``limit`` bytes at most."""
    size = check_file(path, remedy)
    if size > limit:
        raise SkipRNNError(
            f"cannot read {path}: it has {memory.in_words(size)}, more than the {memory.in_words(limit)} of such a "
            f"file; {remedy}"
        )
    memory.check_fits(size, str(path))
    with reading(path, "a readable file", remedy):
        return path.read_bytes()


def read_text(path: Path, what: str, remedy: str, *, limit: int = TEXT) -> str:
    """A whole UTF-8 text of ``limit`` bytes at most."""
    data = read_bytes(path, remedy, limit=limit)
    with reading(path, what, remedy):
        return data.decode("utf-8")


@overload
def read_json(path: Path, kind: type[dict[str, Any]], remedy: str, *, limit: int = ...) -> dict[str, Any]: ...
@overload
def read_json(path: Path, kind: type[list[Any]], remedy: str, *, limit: int = ...) -> list[Any]: ...
def read_json(path: Path, kind: type[K], remedy: str, *, limit: int = TEXT) -> K:
    """The object or list in a JSON file of ``limit`` bytes at most."""
    text = read_text(path, "JSON", remedy, limit=limit)
    with reading(path, "JSON", remedy):
        return parse_json(text, kind)


@overload
def parse_json(text: str, kind: type[dict[str, Any]]) -> dict[str, Any]: ...
@overload
def parse_json(text: str, kind: type[list[Any]]) -> list[Any]: ...
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


class Hdf5:
    """An open HDF5 file, of which only what stands in the file itself is seen."""

    def __init__(self, path: Path, file: h5py.File, remedy: str) -> None:
        self.path, self._file, self._remedy = path, file, remedy

    def __contains__(self, name: str) -> bool:
        with self._reading():
            group, _, last = name.rpartition("/")
            return (not group or group in self) and _link(self._item(group), last) is not None

    def names(self) -> list[str]:
        """The datasets, in groups and not, by the order of their names."""
        found: list[str] = []

        def visit(group: h5py.Group, prefix: str, depth: int) -> None:
            if depth > DEPTH or len(found) > NAMES:
                raise ValueError("it has too many groups")
            for name in group:
                if _link(group, name) != h5py.h5l.TYPE_HARD:
                    continue
                item = group[name]
                if isinstance(item, h5py.Dataset):
                    found.append(prefix + name)
                elif isinstance(item, h5py.Group):
                    visit(item, f"{prefix}{name}/", depth + 1)

        with self._reading():
            visit(self._file, "", 0)
            return found

    def attributes(self, name: str = "/") -> dict[str, str | int | float | bool]:
        """The attributes of the root, or of a group, that are single texts and numbers."""
        with self._reading():
            group = self._item(name)
            found: dict[str, Any] = {}
            for key in group.attrs:
                about = group.attrs.get_id(key)
                if about.get_space().get_simple_extent_npoints() != 1 or about.get_storage_size() > SMALL:
                    continue
                with memory.bounded(LARGE):
                    value = group.attrs[key]
                value = value.item() if isinstance(value, np.generic) else value
                if isinstance(value, str | int | float | bool):
                    found[key] = value
            return found

    def dataset(self, name: str) -> h5py.Dataset:
        """An array, still in the file; a part of it is to be read within ``reading``."""
        with self._reading():
            item = self._item(name)
            if not isinstance(item, h5py.Dataset):
                raise SkipRNNError(f"{self.path}: {name} is a group, not an array; {self._remedy}")
            if item.is_virtual or item.external:
                raise SkipRNNError(
                    f"{self.path}: the values of {name} stand in other files, which are not read; copy them into this "
                    "one"
                )
            if item.shape is None:
                raise SkipRNNError(f"{self.path}: {name} holds nothing; {self._remedy}")
            if item.dtype.kind not in "biuf" and h5py.check_string_dtype(item.dtype) is None:
                raise SkipRNNError(f"{self.path}: {name} holds {item.dtype}, neither numbers nor texts; {self._remedy}")
            check_claim(item.size * item.dtype.itemsize, item.id.get_storage_size(), f"{name} in {self.path}")
            if item.chunks:
                memory.check_fits(math.prod(item.chunks) * item.dtype.itemsize, f"a chunk of {name} in {self.path}")
            return item

    def array(self, name: str, rows: slice | None = None) -> Array:
        """An array, or some of its rows; texts as ``str`` objects."""
        dataset = self.dataset(name)
        with self._reading():
            part = () if rows is None else rows
            whole = dataset.size if rows is None else math.prod(dataset.shape[1:]) * (rows.stop - rows.start)
            memory.check_fits(whole * dataset.dtype.itemsize, f"{name} in {self.path}")
            if h5py.check_string_dtype(dataset.dtype) is None:
                values: Array = dataset[part]
                return values
            with memory.bounded(LARGE):  # the lengths of texts are believed by the library
                return np.asarray(dataset.asstr()[part], dtype=object)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _item(self, name: str) -> Any:
        """What has a name, by way of groups of this file alone."""
        item: Any = self._file
        for part in name.strip("/").split("/") if name.strip("/") else ():
            link = _link(item, part)
            if link is None:
                raise SkipRNNError(f"{self.path} has no {name}; {self._remedy}")
            if link != h5py.h5l.TYPE_HARD:
                raise SkipRNNError(
                    f"{self.path}: {name} is a link to another place, which is not followed; copy the array to its own"
                )
            item = item[part]
        return item

    def _reading(self) -> Any:
        return reading(self.path, "HDF5", self._remedy)


def _link(group: Any, name: str) -> int | None:
    """The kind of link a group has by a name, which is not followed; None where it has none."""
    encoded = name.encode("utf-8", "surrogateescape")
    if not isinstance(group, h5py.Group) or not group.id.links.exists(encoded):
        return None
    kind: int = group.id.links.get_info(encoded).type
    return kind


def open_hdf5(path: Path, remedy: str, *, cache: int = 2**20) -> Hdf5:
    """Open an HDF5 file for reading; to be closed.

    Args:
        path: the file.
        remedy: what the user can do where it cannot be read.
        cache: bytes of each array's chunks to keep in memory.
    """
    check_file(path, remedy)
    with reading(path, "HDF5", remedy):
        file = h5py.File(path, "r", rdcc_nbytes=cache)
        try:
            _check_heaps(path, file)
        except BaseException:
            file.close()
            raise
        return Hdf5(path, file, remedy)


def _check_heaps(path: Path, file: h5py.File) -> None:
    """Refuse collections of texts ("global heaps") that the HDF5 library would go through for ever.

    A collection is a header of 16 bytes (signature, version, size) and objects, each of 16 bytes (index, references,
    size) and its text padded to a multiple of 8; index 0 is the free space up to the end. The library goes from one to
    the next by these sizes, of which one of 0 leads it nowhere: HDF5 File Format Specification 3.0, III.E.
    """
    _, width = file.id.get_create_plist().get_sizes()  # bytes of a size
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        passed: set[int] = set()  # a walk that comes to where another was is known to end
        for start in _found(HEAP, content, _arrays(file) if len(content) > LARGE else []):
            at, end = start + 16, start + int.from_bytes(content[start + 8 : start + 8 + width], "little")
            while at + 16 <= min(end, len(content)) and at not in passed:
                passed.add(at)
                if len(passed) > TEXTS:
                    raise ValueError(f"it has more than {TEXTS:,} texts")
                index = int.from_bytes(content[at : at + 2], "little")
                length = int.from_bytes(content[at + 8 : at + 8 + width], "little")
                if not index and not length:
                    raise ValueError(f"its texts at byte {start} are overwritten")
                at += length if not index else 16 + -(-length // 8) * 8


def _found(what: bytes, content: mmap.mmap, but: list[tuple[int, int]]) -> Iterator[int]:
    """Where bytes are in a file, but in some ranges of it."""
    place = 0
    for begin, end in [*sorted(but), (len(content), len(content))]:
        while (start := content.find(what, place, begin)) >= 0:
            yield start
            place = start + 1
        place = max(place, end)


def _arrays(file: h5py.File) -> list[tuple[int, int]]:
    """Where the values of arrays stand."""
    ranges: list[tuple[int, int]] = []

    def add_chunk(chunk: Any) -> None:
        ranges.append((chunk.byte_offset, chunk.byte_offset + chunk.size))

    def add(_: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.id.get_offset() is not None:
            ranges.append((item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))
        elif item.chunks and item.shape and hasattr(item.id, "chunk_iter"):
            item.id.chunk_iter(add_chunk)

    file.visititems(add)
    return ranges


class Npz(Mapping[str, Array]):
    """An open .npz archive, an array of which is read when it is asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, remedy: str) -> None:
        self.path, self._archive, self._remedy = path, archive, remedy
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> Array:
        info, what = self._members.get(name), f"{name} in {self.path}"
        if info is None:
            raise SkipRNNError(f"{self.path} has no {name}; {self._remedy}")
        with reading(self.path, "an .npz archive", self._remedy):
            check_claim(info.file_size, info.compress_size, what)
            memory.check_fits(info.file_size, what)
            with self._archive.open(info) as member:
                shape, _, dtype, start = _npy_header(member)
                if start + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise ValueError(f"{name} has not the size that its header says")
            with self._archive.open(info) as member:
                values: Array = np.lib.format.read_array(member, allow_pickle=False)
                return values

    def close(self) -> None:
        """Close the file."""
        self._archive.close()


def is_zip(path: Path, remedy: str) -> bool:
    """Whether a file begins as zip archives do, such as .npz."""
    check_file(path, remedy)
    with reading(path, "a readable file", remedy), path.open("rb") as file:
        return file.read(2) == b"PK"


def open_npz(path: Path, remedy: str) -> Npz:
    """Open an .npz archive for reading; to be closed."""
    check_file(path, remedy)
    with reading(path, "an .npz archive", remedy):
        return Npz(path, zipfile.ZipFile(path), remedy)


def map_npy(path: Path, remedy: str) -> Array:
    """The array in a .npy file, mapped: a part of it is read when it is used."""
    size = check_file(path, remedy)
    with reading(path, "a .npy file", remedy):
        with path.open("rb") as file:
            shape, fortran, dtype, start = _npy_header(file)
        if start + math.prod(shape) * dtype.itemsize > size:
            raise ValueError("it has fewer values than its header says")
        if 0 in shape:
            return np.empty(shape, dtype)
        order: Literal["F", "C"] = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", start, shape, order)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the first index runs fastest, type and bytes of the header."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its version {version} is unknown")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded; save numbers")
    return shape, fortran, dtype, file.tell()
