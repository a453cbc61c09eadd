"""A user's own sequences as they lie in files: HDF5, NPZ, or a folder of CSV files."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data import doors
from pipelines.data.arrays import open_npz
from pipelines.data.doors import opening, reading
from pipelines.data.hdf5 import open_hdf5
from pipelines.data.samples import cells_of, csv_source, is_number
from pipelines.errors import SkipRNNError
from pipelines.sources.own_labels import LARGE, Array, Given, check_shape, is_binary

TABLE = "labels.csv"
PARTS = ("x", "y", "lengths", "offsets", "split", "names")  # arrays of a file
REMEDY = "mend it, or name another"
NO_LABELS = ("file", "split")  # columns of the table

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Raw:
    """Sequences as they came: (T, D) each, their labels, and perhaps the split of each."""

    sequences: Sequence[Floats]
    labels: Given
    splits: list[str] | None
    names: Sequence[str]
    numeric_headers: int = 0


def read_folder(folder: Path, header: bool | None, allow_outside: bool, columns: Sequence[str] = ()) -> Raw:
    """A folder of CSV files, a sample a row.

    Args:
        folder: where they lie.
        header: whether the files begin with one; None follows the rule of ``samples.csv_source``.
        allow_outside: read files outside the folder, too.
        columns: of the files, which hold the labels of the steps. The table is then needed for splits only.
    """
    if columns and header is False:
        raise SkipRNNError("--label-column names columns by the files' header; drop --no-header")
    if len(set(columns)) < len(columns):
        raise SkipRNNError("a --label-column is named twice")
    records = _records(folder, needs_labels=not columns)
    sequences: list[Floats] = []
    found: list[list[list[str]]] = []  # of each file, of each row: the cells of the columns
    numeric_headers = 0
    for where, record in records:
        path = folder / (record["file"] or "")
        inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))
        if not (inside or allow_outside):
            raise SkipRNNError(f"{where}: the file lies outside {folder}; pass --allow-outside to read it")
        if not os.path.isfile(path):
            raise SkipRNNError(f"{where}: there is no file {str(path)[:300]}")
        taken: list[list[str]] = []
        sequence, numeric = _csv(path, sequences[0].shape[1] if sequences else None, header, columns, taken)
        sequences.append(sequence)
        found.append(taken)
        numeric_headers += numeric
    if columns:
        shown = f"column{'s' if len(columns) > 1 else ''} {', '.join(columns)}"
        labels = Given(_values([row for taken in found for row in taken], folder, columns), True, shown, tuple(columns))
    else:
        labels = _table_labels([record for _, record in records], folder / TABLE)
    splits = [record["split"] for _, record in records] if "split" in records[0][1] else None
    return Raw(sequences, labels, splits, [record["file"] for _, record in records], numeric_headers)


def _records(folder: Path, needs_labels: bool) -> list[tuple[str, dict[str, str]]]:
    """The rows of the table, with where they stand; without a table the folder's CSV files."""
    table = folder / TABLE
    if not needs_labels and not os.path.lexists(table):
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".csv"))
        if not names:
            raise SkipRNNError(f"{folder} holds no CSV files")
        return [(str(folder / name), {"file": name}) for name in names]
    columns = "the columns file and label" if needs_labels else "the column file"
    text = doors.read_text(table, "a table", f"{folder} needs {TABLE} with {columns}")
    with reading(table, f"a table with {columns}", REMEDY):
        records = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    if not records or "file" not in records[0] or (needs_labels and not set(records[0]) - {*NO_LABELS, None}):
        more = ", or several columns of labels" if needs_labels else ""
        raise SkipRNNError(f"{table} must have {columns}{more}, and a row for each file")
    for line, record in enumerate(records, start=2):
        if None in record.values():
            raise SkipRNNError(f"{table}, line {line}: the row is too short")
    return [(f"{table}, line {line}", record) for line, record in enumerate(records, start=2)]


def _table_labels(records: list[dict[str, str]], table: Path) -> Given:
    """The column label; where there is none, all others but file and split."""
    names = ["label"] if "label" in records[0] else [name for name in records[0] if name and name not in NO_LABELS]
    values = _values([[record[name] for name in names] for record in records], table, names)
    shown = f"column{'s' if len(names) > 1 else ''} {', '.join(names)} of {TABLE}"
    return Given(values, False, shown, None if names == ["label"] else tuple(names))


def _values(rows: list[list[str]], where: Path, names: Sequence[str]) -> Array:
    """The cells of one column, (M,) texts, or floats that are not all whole numbers; or of several, (M, K) numbers."""
    whole = all(is_number(cell, int) for row in rows for cell in row)
    numbers = all(is_number(cell) for row in rows for cell in row)
    if len(names) == 1:
        return np.array([float(cell) if numbers and not whole else cell for (cell,) in rows])
    if not numbers:
        cells = ((cell, name) for row in rows for cell, name in zip(row, names, strict=True))
        cell, name = next((cell, name) for cell, name in cells if not is_number(cell))
        raise SkipRNNError(
            f"{where}: {cell!r:.40} in the column {name} is not a number; several columns of labels hold 0 and 1 each, "
            "or numbers"
        )
    values = np.array([[float(cell) for cell in row] for row in rows])
    return values.astype(np.int64) if whole and (abs(values) < LARGE).all() else values


def _csv(
    path: Path, width: int | None, header: bool | None, columns: Sequence[str], taken: list[list[str]]
) -> tuple[Floats, bool]:
    """The rows of a file, and whether it began with names 0,1,... of columns; labels are put into ``taken``."""
    with opening(path, "CSV", REMEDY), path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = _without(doors.lines_of(file, str(path)), path, columns, taken) if columns else file
        source = csv_source(lines, width, str(path), True if columns else header)
        samples: list[npt.NDArray[Any]] = []
        while (sample := source.read(len(samples))) is not None:
            samples.append(sample)
    return np.stack(samples).astype(np.float32), source.numeric_header


def _without(lines: Iterable[str], path: Path, columns: Sequence[str], taken: list[list[str]]) -> Iterator[str]:
    """The lines without some columns, which the first line names; their cells are put into ``taken``."""
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        row = cells_of(line.strip()) if line.strip() else []
        if not names and row:
            names = row
            if missing := [name for name in columns if name not in names]:
                raise SkipRNNError(f"{path} has no column {missing[0]}; its first line names {', '.join(names)[:300]}")
            if len(names) == len(columns):
                raise SkipRNNError(f"{path} has no columns but those of labels; it needs samples too")
        elif row:
            if len(row) != len(names):
                raise SkipRNNError(f"{path}, line {number}: a row has {len(names)} cells, this has {len(row)}")
            taken.append([row[names.index(name)] for name in columns])
        yield (
            ",".join(cell for cell, name in zip(row, names, strict=True) if name not in columns) + "\n" if row else line
        )


def read_arrays(path: Path, each_step: bool | None = None) -> Raw:
    """An .npz or HDF5 file.

    Args:
        path: the file.
        each_step: whether y has a label a step; None goes by its shape.
    """
    opened: Any = (open_npz if path.suffix == ".npz" else open_hdf5)(path, REMEDY)
    with closing(opened):
        arrays: dict[str, Any] = {name: opened.array(name) for name in PARTS if name in opened}
    if missing := {"x", "y"} - set(arrays):
        raise SkipRNNError(f"{path} has no array {' nor '.join(sorted(missing))}; it needs x (N, T, D) and y (N, ...)")
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise SkipRNNError(f"{path}: x must hold numbers, (N, T, D), got {x.dtype} {x.shape}")
    if "split" in arrays and arrays["split"].ndim != 1:
        raise SkipRNNError(f"{path}: split must be (N,), got shape {arrays['split'].shape}; {REMEDY}")
    shown_x = f"x {x.shape}"
    counts: tuple[int, int | None, int]  # sequences; steps, or None where they lie end to end; and their rows then
    if "offsets" in arrays:
        offsets = _integers(arrays["offsets"], "offsets", path)
        right = x.ndim == 2 and len(offsets) > 1 and (np.diff(offsets) >= 0).all()
        if not right or offsets[0] != 0 or offsets[-1] != len(x):
            raise SkipRNNError(f"{path}: offsets must be (N + 1,), rising from 0 to the {len(x)} rows of x (rows, D)")
        sequences = [_floats(x[start:end]) for start, end in pairwise(offsets.tolist())]
        counts, shown_x = (len(sequences), None, len(x)), f"{shown_x} and offsets {offsets.shape}"
    else:
        x = x[..., None] if x.ndim == 2 else x
        lengths = _integers(arrays.get("lengths", np.full(len(x), x.shape[1])), "lengths", path)
        right = x.ndim == 3 and len(x) == len(lengths)
        if not right or lengths.min(initial=0) < 0 or lengths.max(initial=0) > x.shape[1]:
            raise SkipRNNError(
                f"{path}: x must be (N, T, D) or (N, T), and lengths (N,) from 1 to T, got x {arrays['x'].shape} and "
                f"lengths {lengths.shape}"
            )
        sequences = [_floats(row[:length]) for row, length in zip(x, lengths.tolist(), strict=True)]
        counts = (len(x), x.shape[1], 0)
    if not sequences:
        raise SkipRNNError(f"{path} holds no sequences")
    try:
        of_step, either = check_shape(y, counts, each_step, shown_x)
    except SkipRNNError as error:
        raise SkipRNNError(f"{path}: {error}") from error
    shown = f"y {y.shape} of {'texts' if y.dtype.kind in 'SUO' else y.dtype}"
    if of_step and counts[1] is not None:
        y = np.concatenate([row[: len(sequence)] for row, sequence in zip(y, sequences, strict=True)])
    with reading(path, "UTF-8 in its texts", REMEDY):
        splits = _texts(arrays["split"]).tolist() if "split" in arrays else None
        y = _texts(y)
        names = _names(arrays["names"], y.shape[1] if y.ndim > 1 else 1, path) if "names" in arrays else None
    instead = f"x has {counts[1]} steps; if y has {counts[1]} of each sequence, pass --per-sequence"
    nearest = f"; a class a step is y ({f'{counts[0]}, {counts[1]}' if counts[1] else f'{counts[2]},'})"
    either = either and each_step is None and (y.dtype.kind == "f" or is_binary(y))
    labels = Given(y, of_step, shown, names, instead if either else "", nearest)
    return Raw(sequences, labels, splits, [f"sequence {row}" for row in range(len(sequences))])


def _names(array: Array, count: int, path: Path) -> tuple[str, ...]:
    names = tuple(str(name) for name in _texts(array).reshape(-1))
    if len(names) != count or len(set(names)) < count or array.ndim != 1:
        raise SkipRNNError(f"{path}: names must be {count} different texts, one for each of y's last axis")
    return names


def _integers(array: Array, name: str, path: Path) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise SkipRNNError(f"{path}: {name} must hold integers, (N,), got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _floats(array: Array) -> Floats:
    with np.errstate(over="ignore"):  # to infinity: refused
        return array.astype(np.float32)


def _texts(array: Array) -> Array:
    """Bytes as strings, all else as it is."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
