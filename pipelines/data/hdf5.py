"""HDF5 files that others made: opened only if HDF5 can be trusted with them, and read array by array."""

import math
import mmap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipelines.data import memory
from pipelines.data.doors import LARGE, SMALL, Array, check_claim, opening, reading
from pipelines.errors import SkipRNNError

DEPTH, NAMES = 32, 100_000  # of groups
TEXTS = 2_000_000  # of a file
HEAP = b"GCOL\x01\0\0\0"  # the beginning of a collection of texts


class Hdf5:
    """An open HDF5 file, of which only what stands in the file itself is seen."""

    def __init__(self, path: Path, file: h5py.File, remedy: str) -> None:
        self.path, self._file, self._remedy = path, file, remedy
        self._reading = partial(reading, path, "HDF5", remedy)

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
    with opening(path, "HDF5", remedy):
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
    the next by these sizes, of which one of 0 leads it nowhere, and one beyond 64 bits back: HDF5 File Format
    Specification 3.0, III.E.
    """
    _, width = file.id.get_create_plist().get_sizes()  # bytes of a size
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        passed: set[int] = set()  # a walk that comes to where another was is known to end
        for start in _found(HEAP, content, _arrays(file) if len(content) > LARGE else []):
            at, end = start + 16, start + int.from_bytes(content[start + 8 : start + 8 + width], "little")
            if end > len(content):  # which the library refuses
                continue
            while at + 16 <= end and at not in passed:
                passed.add(at)
                if len(passed) > TEXTS:
                    raise ValueError(f"it has more than {TEXTS:,} texts")
                index = int.from_bytes(content[at : at + 2], "little")
                length = int.from_bytes(content[at + 8 : at + 8 + width], "little")
                taken = length if not index else 16 + -(-length // 8) * 8
                if not 0 < taken <= end - at:
                    raise ValueError(f"its texts at byte {start} are overwritten")
                at += taken


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

    def add(_: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.id.get_offset() is not None:
            ranges.append((item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))
        elif item.chunks and item.shape and hasattr(item.id, "chunk_iter"):
            item.id.chunk_iter(lambda chunk: ranges.append((chunk.byte_offset, chunk.byte_offset + chunk.size)))

    file.visititems(add)
    return ranges
