"""Sequences to predict on: CSV, NPY, NPZ and HDF5 files, and CSV rows that arrive on a stream.

A source hands out single samples, so that what a model skips is neither parsed nor, where the format allows, read.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.data.arrays import is_zip, map_npy, open_npz
from pipelines.data.columns import COLUMNS, beyond_float32, order_of, texts_of
from pipelines.data.doors import lines_of, reading
from pipelines.data.hdf5 import open_hdf5
from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError

ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
TABLES = (".ts", ".parquet", ".pq")
CACHE = 64 * 2**20  # bytes of HDF5 chunks in memory
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")  # no text has these, and pictures and archives soon do
REMEDY = "name another file, or mend this one"
LIKELY = ("x", "test/x")  # datasets to choose where a file holds several
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")

Floats = npt.NDArray[np.floating[Any]]


@dataclass
class Source:
    """One sequence."""

    read: Callable[[int], Floats | None]
    """Sample t, (D,); None past the end. Asked for ever later samples."""
    count: Callable[[], int]
    """Samples of the sequence; where it comes from a stream, those that came."""
    name: str
    numeric_header: bool = False
    """Whether a first line 0,1,... was passed over as names of columns."""
    columns: tuple[str, ...] = ()
    """Names of the numbers of a sample, as they are read; () where they have none."""
    reordered: bool = False
    """Whether the columns stood in another order than they are read in."""
    left_out: tuple[str, ...] = ()
    """Columns that hold labels, not samples."""
    frames: Callable[[], tuple[int, int]] | None = None
    """Of a video: how many frames went through the network, and how many there are."""
    every: Callable[[], Floats] | None = None
    """Of a video: all samples at once, (T, D), computed anew."""
    target: Tensor | None = None
    """What the model should say, as a data file has it: a sequence's y."""


@contextmanager
def open_sources(
    path: Path,
    input_size: int,
    dataset: str | None = None,
    header: bool | None = None,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Iterator[Sequence[Source]]:
    """The sequences of a file.

    Args:
        path: a .npy, .npz, .h5 or .hdf5 file with numbers (T, D) or, for several sequences, (N, T, D), where D may be
            left out if it is 1; any other file is read as CSV, one sample a row.
        input_size: D.
        dataset: the array's name in an .npz or HDF5 file; None takes the only one, ``x`` or ``test/x``.
        header: whether a CSV file begins with one; None follows the rule of ``csv_source``.
        columns: the names that the columns should have; those of a CSV header, or of an array ``columns`` or
            ``features``, are put in that order.
        labels: the names of columns that a CSV file may have besides, which are left out.

    Raises:
        SkipRNNError: the file cannot be read, or does not hold what it should.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise SkipRNNError(f"no file {path} to predict on; name a CSV, NPY, NPZ or HDF5 file, or - for standard input")
    if path.suffix.lower() in TABLES:
        raise SkipRNNError(f"only `skiprnn gen-data own` reads {path}; predict on the data file that it makes")
    if path.suffix.lower() not in ARRAYS:
        if dataset is not None:
            raise SkipRNNError(f"{path} is read as CSV, which has no datasets; drop --dataset")
        if path.is_dir():
            raise SkipRNNError(f"cannot read {path}: it is a folder; name one of its files")
        with reading(path, "CSV", REMEDY):
            file = path.open(encoding="utf-8-sig", errors="replace", newline="")
        with file:
            yield [csv_source(file, input_size, str(path), header, columns, labels)]
        return
    if header is not None:
        raise SkipRNNError(f"{path} is no CSV file, so it has no header; drop --header and --no-header")
    with _open_arrays(path) as (names, read):
        others = [name for name in names if name not in COLUMNS]
        asked = bool(columns) or dataset in COLUMNS or not others  # else it does not matter what they hold
        held = {name: read(name) for name in COLUMNS if name in names and asked}
        texts = [name for name, array in held.items() if array.dtype.kind in "SUO"]  # what holds numbers may be samples
        name = _choose([name for name in names if name in others or name in {*held} - {*texts}], dataset, path)
        order = order_of(columns, texts_of(held[texts[0]], path), path) if columns and texts else None
        yield _array_sources(held[name] if name in held else read(name), input_size, path, name, order)


class _Lazily(Sequence[Source]):
    """Sources that are made when they are asked for: there may be very many."""

    def __init__(self, count: int, make: Callable[[int], Source]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._make(range(self._count)[index])


def sequence_sources(
    sequences: Split, name: str, index: int | None = None, *, labelled: bool = True, reordered: bool = False
) -> Sequence[Source]:
    """The sequences of a split, each to its end, with its y unless that says nothing.

    Of a split that holds one sequence only, its number may be given.
    """
    lengths, several = sequences.lengths, len(sequences) > 1 or index is not None

    def source(row: int) -> Source:
        x: list[Tensor] = []  # read when first asked for

        def sample(t: int) -> Any:
            if not x:
                x.append(sequences.take(slice(row, row + 1)).x.reshape(sequences.steps, -1))
            return x[0][t].numpy()

        length = sequences.steps if lengths is None else int(lengths[row])
        found = array_source(sample, length, f"{name}[{index or row}]" if several else name)
        return replace(found, target=sequences.y[row].cpu() if labelled else None, reordered=reordered)

    return _Lazily(len(sequences), source)


def csv_source(
    file: Iterable[str],
    input_size: int | None,
    name: str,
    header: bool | None = None,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Source:
    """A sequence from rows of numbers, separated by commas, semicolons, tabs or blanks, after at most one header.

    Unless ``header`` says whether there is one, the first line is a header if none of its cells is a number, or if they
    are 0,1,2 and so on, two at least, as pandas names columns that have no names.

    Rows that are not asked for are passed over without being parsed. Empty lines do not count. Where ``input_size`` is
    None the first row says it. A header with a cell for each of the first row's names the columns, which are then put
    in the order of ``columns``, if that is given; columns that are called as one of ``labels`` are left out.

    Raises:
        SkipRNNError: there is no row, or the header names other columns; or, when it is asked for, a row that is not
            ``input_size`` finite numbers.
    """
    numbered = ((number, line) for number, line in enumerate(lines_of(file, name), start=1) if line.strip())
    first = next(numbered, None)
    cells = [] if first is None else cells_of(first[1])
    counted = len(cells) > 1 and cells == [str(number) for number in range(len(cells))]
    numeric, said = header is None and counted, ""
    if first is not None and (numeric or (header if header is not None else not any(map(is_number, cells)))):
        said, first = "" if counted else first[1], next(numbered, None)
    if first is None:
        raise SkipRNNError(f"{name} holds no rows of numbers; give it one sample a row")
    if CONTROL.search(said + first[1]):
        raise SkipRNNError(f"{name} is no text, and so no CSV; give it one sample a row")
    may_be_header = first[0] if header is None and not said and not numeric else None
    named = _names(said, first[1]) if said else ()
    left_out = tuple(label for label in named if label in labels and label not in columns)
    left_out = left_out if len(left_out) < len(named) else ()
    kept = [label not in left_out for label in named] if left_out else None
    named = tuple(label for label in named if label not in left_out)
    order = order_of(columns, named, name)
    width = len(cells_of(first[1])) if input_size is None else input_size
    rows, taken = chain([first], numbered), 0

    def read(t: int) -> Floats | None:
        nonlocal taken
        for number, line in rows:
            taken += 1
            if taken == t + 1:
                remedy = ", or pass --header if it is one" if number == may_be_header else ""
                sample = _parse(line, width, f"{name}, line {number}", named, kept, remedy)
                return sample if order is None else sample[order]
        return None

    def count() -> int:
        nonlocal taken
        taken += sum(1 for _ in rows)
        return taken

    read_as = named if order is None else tuple(columns)
    return Source(read, count, name, numeric, read_as, order is not None, left_out)


def cells_of(line: str) -> list[str]:
    """The cells of a row of CSV."""
    return _split(line, separator_of(line))


def separator_of(line: str) -> str | None:
    """What stands between the cells of a row; None: blanks."""
    return next((separator for separator in (",", ";", "\t") if separator in line), None)


def _split(line: str, separator: str | None) -> list[str]:
    return line.split() if separator is None else [cell.strip().strip('"') for cell in line.split(separator)]


def _names(header: str, first: str) -> tuple[str, ...]:
    """The names that a header gives to the cells of the first row; none where it is a remark rather than names."""
    separator = separator_of(first)
    count = len(_split(first, separator))
    names = [header.strip().strip('"')] if count == 1 else _split(header, separator)
    return tuple(names) if len(names) == count else ()


def is_number(cell: str, kind: type = float) -> bool:
    """Whether a text says a number of a kind."""
    try:
        kind(cell)
    except ValueError:
        return False
    return True


def decimal_comma(line: str) -> str:
    """What to say of a row between whose semicolons or tabs stand numbers with decimal commas; "" of others."""
    cells = re.split("[;\t]", line)
    number = next((cell.strip() for cell in cells if DECIMAL_COMMA.fullmatch(cell.strip().strip('"'))), "")
    if len(cells) < 2 or not number:
        return ""
    return f"{number} has a decimal comma; write numbers with points, {number.replace(',', '.')}"


def _parse(
    line: str, input_size: int, where: str, columns: Sequence[str], kept: Sequence[bool] | None, remedy: str
) -> Floats:
    cells = cells_of(line)
    if kept is not None:
        if len(cells) != len(kept):
            raise SkipRNNError(f"{where}: a row has {len(kept)} cells, this has {len(cells)}")
        cells = list(compress(cells, kept))
    if len(cells) != input_size:
        said = decimal_comma(line) or f"a row has {input_size} number{'s'[input_size == 1 :]}, this has {len(cells)}"
        raise SkipRNNError(f"{where}: {said}")
    for number, cell in enumerate(cells, start=1):
        if not is_number(cell):
            table = any(map(is_number, cells))  # what is none is not quoted: it may be any file
            said = f"{cell!r:.40}" if table else f"the text in column {number}"
            said = f"{said} is not a number; mend the row{remedy}"
            raise SkipRNNError(f"{where}: {decimal_comma(line) or said}")
    return check_sample(np.array(cells, dtype=np.float64), where, columns)


def check_sample(values: npt.NDArray[Any], where: str, columns: Sequence[str] = ()) -> Floats:
    """A sample as float32, (D,); one that holds NaN, infinity or what is infinite as float32 is refused."""
    with np.errstate(over="ignore"):
        sample = values.astype(np.float32)
    if not np.isfinite(sample).all():
        column = int(np.flatnonzero(~np.isfinite(sample))[0])
        place = f"{where}, column {columns[column] if columns else column + 1}"
        if np.isfinite(values[column]):
            raise beyond_float32(values[column], place)
        raise SkipRNNError(f"{place}: NaN or infinity, of which no prediction follows; drop or fill it")
    return sample


@contextmanager
def _open_arrays(path: Path) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    """The names of a file's arrays, that of a .npy file is "", and what reads one, or leaves it in the file."""
    if path.suffix.lower() in (".h5", ".hdf5"):
        with closing(open_hdf5(path, REMEDY, cache=CACHE)) as file:
            yield file.names(), file.dataset
    elif is_zip(path, REMEDY):
        with closing(open_npz(path, REMEDY)) as archive:
            yield archive.names(), archive.array
    else:
        array = map_npy(path, REMEDY)
        yield [""], lambda name: array


def _choose(names: list[str], dataset: str | None, path: Path) -> str:
    if dataset is not None:
        likely = [name for name in names if name == dataset.strip("/")]
    elif ragged := {"lengths", "offsets"} & set(names):
        raise SkipRNNError(
            f"{path} has {' and '.join(sorted(ragged))}, which only `skiprnn gen-data own` reads; predict on the data "
            "file that it makes"
        )
    else:
        likely = names if len(names) == 1 else [name for name in LIKELY if name in names][:1]
    if likely:
        return likely[0]
    if not names:
        raise SkipRNNError(f"{path} holds no dataset; {REMEDY}")
    listed = ", ".join(name for name in names[:20] if name) or "none"
    raise SkipRNNError(
        f"{path} has no dataset {dataset}; it has {listed}" if dataset else
        f"which dataset of {path} shall be read? Name one of {listed} with --dataset"
    )  # fmt: skip


def _array_sources(array: Any, input_size: int, path: Path, dataset: str, order: list[int] | None) -> Sequence[Source]:
    name, shape = f"{path}:{dataset}" if dataset else str(path), array.shape
    if array.dtype.kind not in "fiub":
        raise SkipRNNError(f"{name} holds {array.dtype}, not numbers; {REMEDY}")
    if 0 in shape:
        raise SkipRNNError(f"{name} is empty, its shape being {shape}; {REMEDY}")
    several = len(shape) == 3 or (len(shape) == 2 and input_size == 1 != shape[1])
    steps = shape[1:] if several else shape
    if steps[1:] not in ((), (input_size,)) or (len(steps) == 1 and input_size != 1) or not steps:
        raise SkipRNNError(
            f"{name} has shape {shape}; the model takes {input_size} numbers a step: (T, {input_size}), or "
            f"(N, T, {input_size}) for several sequences"
        )
    if not several:
        return [array_source(lambda t: array[t].reshape(-1), shape[0], name, path, order)]
    return _Lazily(
        shape[0],
        lambda i: array_source(lambda t: array[i, t].reshape(-1), shape[1], f"{name}[{i}]", path, order),
    )


def array_source(
    sample: Callable[[int], Any], length: int, name: str, path: Path | None = None, order: list[int] | None = None
) -> Source:
    """A sequence whose samples, each (D,), a function returns by their number."""

    def read(t: int) -> Floats | None:
        if t >= length:
            return None
        with reading(path or name, "readable at this step", REMEDY):
            values = check_sample(np.array(sample(t)), f"{name}, step {t}")
        return values if order is None else values[order]

    return Source(read, lambda: length, name, reordered=order is not None)
