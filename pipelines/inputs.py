"""Sequences to predict on: CSV, NPY, NPZ and HDF5 files, and CSV rows that arrive on a stream.

A source hands out single samples, so that what a model skips is neither parsed nor, where the format allows, read.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.errors import SkipRNNError
from pipelines.storage import Split

ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".tif", ".tiff", ".webp")
UNREADABLE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)
CACHE = 64 * 2**20  # bytes of HDF5 chunks in memory
LIKELY = ("x", "test/x")  # datasets to choose where a file holds several

Floats = npt.NDArray[np.floating[Any]]


@dataclass
class Source:
    """One sequence."""

    read: Callable[[int], Floats | None]
    """Sample t, (D,); None past the end. Asked for ever later samples."""
    count: Callable[[], int]
    """Samples of the sequence; where it comes from a stream, those that came."""
    name: str


@contextmanager
def open_sources(path: Path, input_size: int, dataset: str | None = None) -> Iterator[list[Source]]:
    """The sequences of a file.

    Args:
        path: a .npy, .npz, .h5 or .hdf5 file with numbers (T, D) or, for several sequences, (N, T, D), where D may be
            left out if it is 1; any other file is read as CSV, one sample a row.
        input_size: D.
        dataset: the array's name in an .npz or HDF5 file; None takes the only one, ``x`` or ``test/x``.

    Raises:
        SkipRNNError: the file cannot be read, or does not hold what it should.
    """
    path = Path(path)
    if not path.exists():
        raise SkipRNNError(f"no file {path} to predict on; name a CSV, NPY, NPZ or HDF5 file, or - for standard input")
    if path.suffix.lower() not in ARRAYS:
        if dataset is not None:
            raise SkipRNNError(f"{path} is read as CSV, which has no datasets; drop --dataset")
        try:
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                yield [csv_source(file, input_size, str(path))]
        except OSError as error:
            raise SkipRNNError(f"cannot read {path}: {error.strerror}") from error
        return
    try:
        arrays = _open_arrays(path)
    except UNREADABLE as error:
        raise SkipRNNError(f"cannot read {path}: truncated, damaged or not {path.suffix} ({error})") from error
    try:
        name, array = _choose(arrays, dataset, path)
        yield _array_sources(array, input_size, f"{path}:{name}" if name else str(path))
    finally:
        if isinstance(arrays, h5py.File | np.lib.npyio.NpzFile):
            arrays.close()


def sequence_sources(sequences: Split, name: str) -> list[Source]:
    """The sequences of a split, each to its end."""
    lengths = [sequences.steps] * len(sequences) if sequences.lengths is None else sequences.lengths.tolist()
    several = len(sequences) > 1

    def source(row: int) -> Source:
        x: list[Tensor] = []  # read when first asked for

        def sample(t: int) -> Any:
            if not x:
                x.append(sequences.take(slice(row, row + 1)).x.reshape(sequences.steps, -1))
            return x[0][t].numpy()

        return _array_source(sample, lengths[row], f"{name}[{row}]" if several else name)

    return [source(row) for row in range(len(sequences))]


def image_source(path: Path, side: int) -> Source:
    """An image as side² bytes, row by row: grey, bright strokes on a dark ground, scaled to fit.

    Raises:
        SkipRNNError: it is no image.
    """
    try:
        with Image.open(path) as image:
            solid = ImageOps.exif_transpose(image).convert("RGBA")
            grey = Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SkipRNNError(f"cannot read {path}: missing, damaged or no image ({error})") from error
    pixels = np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if border.mean() > 127:  # dark strokes on a bright ground
        pixels = 255 - pixels
    values = np.ascontiguousarray(pixels.reshape(-1, 1))
    return _array_source(lambda t: values[t], len(values), str(path))


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        SkipRNNError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SkipRNNError(
            f"cannot read {path}: {error.strerror}; name a text file, or - for standard input"
        ) from error


def csv_source(lines: Iterable[str], input_size: int | None, name: str) -> Source:
    """A sequence from rows of numbers, separated by commas, semicolons, tabs or blanks, after at most one header.

    Rows that are not asked for are passed over without being parsed. Empty lines do not count. Where ``input_size`` is
    None the first row says it.

    Raises:
        SkipRNNError: there is no row; or, when it is asked for, a row that is not ``input_size`` finite numbers.
    """
    lines = iter(lines)
    line_number, rows = 0, 0  # rows: how many have been taken from the file
    ahead: list[str] = []

    def next_line() -> str | None:
        nonlocal line_number
        if ahead:
            return ahead.pop()
        for line in lines:
            line_number += 1
            if line.strip():
                return line
        return None

    first = next_line()
    if first is not None and not any(_is_number(cell) for cell in _cells(first)):
        first = next_line()  # after a header
    if first is None:
        raise SkipRNNError(f"{name} holds no rows of numbers; give it one sample a row")
    ahead.append(first)
    width = len(_cells(first)) if input_size is None else input_size

    def read(t: int) -> Floats | None:
        nonlocal rows
        while (line := next_line()) is not None:
            rows += 1
            if rows == t + 1:
                return _parse(line, width, f"{name}, line {line_number}")
        return None

    def count() -> int:
        nonlocal rows
        while next_line() is not None:
            rows += 1
        return rows

    return Source(read, count, name)


def _cells(line: str) -> list[str]:
    for separator in (",", ";", "\t"):
        if separator in line:
            return [cell.strip().strip('"') for cell in line.split(separator)]
    return line.split()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse(line: str, input_size: int, where: str) -> Floats:
    cells = _cells(line)
    if len(cells) != input_size:
        raise SkipRNNError(f"{where}: the model takes {input_size} numbers a row, this has {len(cells)}")
    for cell in cells:
        if not _is_number(cell):
            raise SkipRNNError(f"{where}: {cell!r} is not a number; mend the row")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        return check_sample(np.array(cells, dtype=np.float64).astype(np.float32), where)


def check_sample(sample: Floats, where: str) -> Floats:
    """Refuse a sample that holds NaN or infinity."""
    if not np.isfinite(sample).all():
        raise SkipRNNError(f"{where}: NaN or infinity, of which no prediction follows; drop or fill it")
    return sample


def _open_arrays(path: Path) -> Any:
    if path.suffix.lower() in (".npy", ".npz"):
        with path.open("rb") as file:
            if file.read(2) == b"PK" and not zipfile.is_zipfile(path):  # np.load would leave it open
                raise EOFError("the archive has no end")
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else loaded
    return h5py.File(path, "r", rdcc_nbytes=CACHE)


def _choose(arrays: Any, dataset: str | None, path: Path) -> tuple[str, Any]:
    names: list[str] = []
    if isinstance(arrays, h5py.File):
        arrays.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    else:
        names = list(arrays)
    if dataset is None and (ragged := {"lengths", "offsets"} & set(names)):
        raise SkipRNNError(
            f"{path} has {' and '.join(sorted(ragged))}, which only `skiprnn gen-data own` reads; predict on the data "
            "file that it makes"
        )
    if dataset is None:
        likely = names if len(names) == 1 else [name for name in LIKELY if name in names][:1]
    else:
        likely = [name for name in names if name == dataset.strip("/")]
    if not likely:
        listed = ", ".join(name for name in names[:20] if name) or "none"
        if not names:
            raise SkipRNNError(f"{path} holds no dataset")
        raise SkipRNNError(
            f"{path} has no dataset {dataset}; it has {listed}" if dataset else
            f"which dataset of {path} shall be read? Name one of {listed} with --dataset"
        )  # fmt: skip
    try:
        return likely[0], arrays[likely[0]]
    except UNREADABLE as error:
        raise SkipRNNError(f"cannot read {likely[0]} in {path}: {error}") from error


def _array_sources(array: Any, input_size: int, name: str) -> list[Source]:
    shape = getattr(array, "shape", None)
    if shape is None:
        raise SkipRNNError(f"{name} holds no array of numbers")
    if array.dtype.kind not in "fiub":
        raise SkipRNNError(f"{name} holds {array.dtype}, not numbers")
    if 0 in shape:
        raise SkipRNNError(f"{name} is empty, its shape being {shape}")
    if len(shape) == 1 and input_size == 1:
        return [_array_source(lambda t: array[t : t + 1], shape[0], name)]
    if len(shape) == 2 and shape[1] == input_size:
        return [_array_source(lambda t: array[t], shape[0], name)]
    if len(shape) == 2 and input_size == 1:
        return [
            _array_source(lambda t, i=i: array[i, t : t + 1], shape[1], f"{name}[{i}]")  # type: ignore[misc]
            for i in range(shape[0])
        ]
    if len(shape) == 3 and shape[2] == input_size:
        return [
            _array_source(lambda t, i=i: array[i, t], shape[1], f"{name}[{i}]")  # type: ignore[misc]
            for i in range(shape[0])
        ]
    raise SkipRNNError(
        f"{name} has shape {shape}; the model takes {input_size} numbers a step: (T, {input_size}), or "
        f"(N, T, {input_size}) for several sequences"
    )


def _array_source(sample: Callable[[int], Any], length: int, name: str) -> Source:
    def read(t: int) -> Floats | None:
        if t >= length:
            return None
        try:
            with np.errstate(over="ignore"):  # to infinity, which is refused
                values = np.array(sample(t), dtype=np.float32)
        except UNREADABLE as error:
            raise SkipRNNError(f"cannot read {name} at step {t}: truncated or damaged ({error})") from error
        return check_sample(values, f"{name}, step {t}")

    return Source(read, lambda: length, name)
