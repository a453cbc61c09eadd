"""NPY and NPZ files that others made."""

import math
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.data import memory
from pipelines.data.doors import Array, check_claim, opening, reading
from pipelines.errors import SkipRNNError


class Npz:
    """An open .npz archive, an array of which is read when it is asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, remedy: str) -> None:
        self.path, self._archive, self._remedy = path, archive, remedy
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """The arrays."""
        return list(self._members)

    def holds_objects(self, name: str) -> bool:
        """Whether an array is of Python objects, which ``array`` refuses."""
        with reading(self.path, "an .npz archive", self._remedy), self._archive.open(self._members[name]) as member:
            return _npy_header(member, objects=True)[2].hasobject

    def array(self, name: str) -> Array:
        """An array, read whole."""
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
    with opening(path, "a readable file", remedy), path.open("rb") as file:
        return file.read(2) == b"PK"


def open_npz(path: Path, remedy: str) -> Npz:
    """Open an .npz archive for reading; to be closed."""
    with opening(path, "an .npz archive", remedy):
        return Npz(path, zipfile.ZipFile(path), remedy)


def map_npy(path: Path, remedy: str) -> Array:
    """The array in a .npy file, mapped: a part of it is read when it is used."""
    with opening(path, "a .npy file", remedy) as size:
        with path.open("rb") as file:
            shape, fortran, dtype, start = _npy_header(file)
        if start + math.prod(shape) * dtype.itemsize > size:
            raise ValueError("it has fewer values than its header says")
        if 0 in shape:
            return np.empty(shape, dtype)
        order: Literal["F", "C"] = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", start, shape, order)


def _npy_header(file: Any, *, objects: bool = False) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the first index runs fastest, type and bytes of the header."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its version {version} is unknown")
    shape, fortran, dtype = read(file)
    if dtype.hasobject and not objects:
        raise ValueError("it holds Python objects, which are not loaded; save numbers")
    return shape, fortran, dtype, file.tell()
