"""A user's sequences in one table, CSV or Parquet, with a row for each sample and a column that says of which sequence.

A CSV file is read as text: what its cells hold takes no more memory than the file is long, a few times over. What a
Parquet file claims is held against its size before it is read.
"""

import csv
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data import memory
from pipelines.data.columns import beyond_float32, check_different, listed
from pipelines.data.doors import check_claim, lines_of, opening
from pipelines.data.samples import decimal_comma, is_number, separator_of
from pipelines.errors import SkipRNNError
from pipelines.sources.own.labels import Array, Given, values_of
from pipelines.sources.own.raw import REMEDY, How, Raw

PARQUET = (".parquet", ".pq")
NUMBERS = ("integer", "floating", "boolean", "decimal")  # kinds of Parquet's columns
TEXTS = ("string", "large_string", "dictionary", "temporal")
SPLIT = "split"  # a column of this name says train, val or test
EMPTY = "is empty; fill it in, or take the row out"


@dataclass(frozen=True)
class _Table:
    """The columns of a table of M rows."""

    texts: dict[str, list[str]]  # those that are no features
    names: list[str]  # of the features
    features: npt.NDArray[np.float64]  # (M, D)
    place: Callable[[int], str]  # what to call a row in messages


def read_table(path: Path, how: How) -> Raw:
    """The sequences of a table, in the order in which they first appear."""
    if how.id_column is None:
        raise SkipRNNError(
            f"{path} is one table: if it has a row for each sample of many sequences, `skiprnn gen-data own "
            f"{path} --id COLUMN --label COLUMN` names the columns that say which sequence a row is of, and its label; "
            "a file for each sequence goes into a folder, with labels.csv"
        )
    if how.header is False:
        raise SkipRNNError("--id names a column by the first line; drop --no-header")
    found = (_parquet if path.suffix.lower() in PARQUET else _csv)(path, how)
    if not len(found.features):
        raise SkipRNNError(f"{path} holds no rows")
    _check(found, path)
    codes, ids = _codes(found.texts[how.id_column])
    if how.time_column:
        times = _times(found, how.time_column, path)
        order = np.lexsort((times, codes))
        same = (np.diff(codes[order]) == 0) & (times[order][1:] == times[order][:-1])
        if same.any():
            one, other = sorted(int(row) for row in order[np.flatnonzero(same)[0] :][:2])
            raise SkipRNNError(
                f"{path}: {how.id_column} {ids[codes[one]]} has {how.time_column} "
                f"{found.texts[how.time_column][one]} twice, in {found.place(one)} and {found.place(other)}; drop one"
            )
    else:
        order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    names = [f"{how.id_column} {name}" for name in ids]

    def of_sequences(column: str, remedy: str) -> list[str]:
        cells = found.texts[column]
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            first = cells[order[start]]
            if other := [row for row in order[start:end] if cells[row] != first]:
                raise SkipRNNError(
                    f"{path}: {column} of {names[codes[other[0]]]} changes from {first} to {cells[other[0]]} in "
                    f"{found.place(int(other[0]))}; {remedy}"
                )
        return [cells[order[start]] for start in starts]

    labels = _labels(found, how, order, of_sequences, path)
    splits = of_sequences(SPLIT, "a sequence is of one split") if SPLIT in found.texts else None
    sequences = np.split(found.features[order].astype(np.float32), starts[1:])
    return Raw(sequences, labels, splits, names, tuple(found.names))


def _labels(found: _Table, how: How, order: Array, of_sequences: Callable[[str, str], list[str]], path: Path) -> Given:
    columns = how.label_columns
    if how.each_step:
        cells = [found.texts[name] for name in columns]
        rows = [[column[row] for column in cells] for row in order]
    else:
        remedy = "for a label of each step pass --per-step"
        rows = [list(row) for row in zip(*(of_sequences(name, remedy) for name in columns), strict=True)]
    shown = f"column{'s' if len(columns) > 1 else ''} {', '.join(columns)}"
    return Given(values_of(rows, path, columns), bool(how.each_step), shown, columns)


def _check(found: _Table, path: Path) -> None:
    """Refuse cells that are empty, and features that are not finite."""
    for name, cells in found.texts.items():
        if "" in cells:
            raise SkipRNNError(f"{path}, {found.place(cells.index(''))}, column {name}: the cell {EMPTY}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(found.features.astype(np.float32))
    if not finite.all():
        row, column = (int(place) for place in np.argwhere(~finite)[0])
        place, value = f"{path}, {found.place(row)}, column {found.names[column]}", found.features[row, column]
        if np.isfinite(value):
            raise beyond_float32(value, place)
        raise SkipRNNError(f"{place}: NaN or infinity; fill it in, or take the row out")


def _codes(cells: Iterable[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A number for each text, in the order in which they first appear, and the texts by number."""
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(cell, len(known)) for cell in cells], dtype=np.int64)
    return codes, list(known)


def _times(found: _Table, column: str, path: Path) -> Array:
    """The times, (M,): whole numbers, numbers, or the seconds of dates."""
    cells = found.texts[column]
    if all(is_number(cell, int) and abs(int(cell)) < 2**63 for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    if all(map(is_number, cells)):
        times = np.array([float(cell) for cell in cells])
        if not np.isfinite(times).all():
            row = int(np.flatnonzero(~np.isfinite(times))[0])
            raise SkipRNNError(f"{path}, {found.place(row)}, column {column}: {cells[row]} is no time; {REMEDY}")
        return times
    seconds = []
    for row, cell in enumerate(cells):
        try:
            date = datetime.fromisoformat(cell)
        except ValueError as error:
            raise SkipRNNError(
                f"{path}, {found.place(row)}, column {column}: {cell!r:.40} is neither a number nor a date such as "
                "2024-01-31T12:00:00"
            ) from error
        seconds.append((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    return np.array(seconds)


def _roles(names: Sequence[str], how: How, path: Path) -> list[str]:
    """The columns that are no features.

    Raises:
        SkipRNNError: one of them is not there, or nothing else is.
    """
    roles = [name for name in (how.id_column, how.time_column, *how.label_columns) if name is not None]
    check_different(roles, "--id, --time and --label")
    check_different(names, path)
    if missing := [name for name in roles if name not in names]:
        raise SkipRNNError(f"{path} has no column {missing[0]!r:.60}; it has {listed(names)}")
    if not how.label_columns:
        others = [name for name in names if name not in roles]
        raise SkipRNNError(f"{path}: which column is the label? Pass --label with one of {listed(others)}")
    there = [*roles, *([SPLIT] if SPLIT in names and SPLIT not in roles else [])]
    if len(there) == len(names):
        raise SkipRNNError(f"{path} has no columns but {listed(there)}; it needs samples too")
    return there


def _csv(path: Path, how: How) -> _Table:
    with opening(path, "CSV", REMEDY) as size, path.open(encoding="utf-8-sig", newline="") as file:
        memory.check_fits(4 * size, str(path))  # a cell of two characters becomes eight bytes
        lines = lines_of(file, str(path))
        first = next(lines, "")
        rows = csv.reader(chain([first], lines), delimiter=separator_of(first) or ",")
        names = [cell.strip() for cell in next(rows, [])]
        special = _roles(names, how, path)
        at = {name: names.index(name) for name in special}
        others = [(place, name) for place, name in enumerate(names) if name not in at]
        texts: dict[str, list[str]] = {name: [] for name in special}
        numbers, numbered = array("d"), array("Q")
        shared: dict[str, str] = {}  # ids and labels repeat
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise SkipRNNError(
                    f"{path}, line {rows.line_num}: the first line names {len(names)} columns, this has {len(row)}"
                )
            numbered.append(rows.line_num)
            for name, place in at.items():
                cell = row[place].strip()
                texts[name].append(shared.setdefault(cell, cell))
            for place, name in others:
                try:
                    numbers.append(float(row[place]))
                except ValueError as error:
                    comma = decimal_comma(f"{row[place]};")
                    said = comma or f"{row[place]!r:.40} is not a number; mend it, or leave the column out"
                    what = said if row[place].strip() else f"the cell {EMPTY}"
                    raise SkipRNNError(f"{path}, line {rows.line_num}, column {name}: {what}") from error
    features = np.frombuffer(numbers, dtype=np.float64).reshape(-1, len(others))
    return _Table(texts, [name for _, name in others], features, lambda row: f"line {numbered[row]}")


def _parquet(path: Path, how: How) -> _Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SkipRNNError(
            f"{path} needs pyarrow to be read: `pip install 'skiprnn[parquet]'`, or save the table as CSV"
        ) from error

    def texts_of(column: Any) -> list[str]:
        kind = column.type
        if pa.types.is_dictionary(kind):
            return [text for chunk in column.chunks for text in _looked_up(chunk)]
        if pa.types.is_date32(kind) or pa.types.is_time32(kind):
            column = column.cast(pa.int32())
        elif pa.types.is_temporal(kind):
            column = column.cast(pa.int64())
        return ["" if value is None else str(value) for value in column.to_pylist()]

    with opening(path, "Parquet", REMEDY) as size:
        about = pq.read_metadata(path)
        names = list(about.schema.to_arrow_schema().names)
        special = _roles(names, how, path)
        unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        claimed = max(unpacked, 8 * about.num_rows * len(names))
        check_claim(claimed, size, str(path))
        memory.check_fits(3 * claimed, str(path))
        kinds = {field.name: field.type for field in about.schema.to_arrow_schema()}
        for name, kind in kinds.items():
            wanted_kinds = NUMBERS if name not in special else (*NUMBERS, *TEXTS)
            if not any(getattr(pa.types, f"is_{one}")(kind) for one in wanted_kinds):
                wanted = "numbers or texts" if name in special else "numbers"
                raise SkipRNNError(f"{path}: the column {name} holds {kind}, not {wanted}; leave it out, or convert it")
        # as dictionaries texts take no more than they do in the file
        table = pq.ParquetFile(path, read_dictionary=special).read(use_threads=False)
        texts = {name: texts_of(table[name]) for name in special}
        others = [name for name in names if name not in special]
        columns = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in others]  # none becomes NaN
    return _Table(texts, others, np.stack(columns, axis=1), lambda row: f"row {row}")


def _looked_up(chunk: Any) -> list[str]:
    """The texts of a dictionary array, each of which exists once."""
    known = [str(value) for value in chunk.dictionary.to_pylist()]
    return ["" if number is None else known[number] for number in chunk.indices.to_pylist()]
