"""A user's sequences in a folder of CSV files, a sample a row, with a table of their labels."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data import doors
from pipelines.data.columns import check_different, listed
from pipelines.data.doors import opening, reading
from pipelines.data.samples import Source, cells_of, csv_source, decimal_comma, separator_of
from pipelines.errors import SkipRNNError
from pipelines.sources.own.labels import Given, values_of
from pipelines.sources.own.raw import REMEDY, Floats, How, Raw

TABLE = "labels.csv"
NO_LABELS = ("file", "split")  # columns of the table
FIRST = 3  # files that a note names

Record = tuple[str, dict[str, str]]  # where a row of the table stands, and its cells


def read_folder(folder: Path, how: How) -> Raw:
    """The sequences of a folder; with label columns the table is needed for splits only."""
    columns = how.label_columns
    if columns and how.header is False:
        raise SkipRNNError("--label-column names columns by the files' header; drop --no-header")
    if len(set(columns)) < len(columns):
        raise SkipRNNError("a --label-column is named twice")
    records = _records(folder, needs_labels=not columns)
    sequences: list[Floats] = []
    found: list[list[list[str]]] = []  # of each file, of each row: the cells of the columns
    names: tuple[str, ...] = ()
    numeric_headers, reordered = 0, []
    for path in _checked(folder, records, how.allow_outside):
        taken: list[list[str]] = []
        width = sequences[0].shape[1] if sequences else None
        sequence, source = _csv(path, width, how.header, columns, taken, names)
        sequences.append(sequence)
        found.append(taken)
        numeric_headers += source.numeric_header
        reordered += [path] if source.reordered else []
        if not names and source.columns:
            names = source.columns
            check_different(names, path)
    if columns:
        shown = f"column{'s' if len(columns) > 1 else ''} {', '.join(columns)}"
        values = values_of([row for taken in found for row in taken], folder, columns)
        labels = Given(values, True, shown, tuple(columns))
    else:
        labels = _table_labels([record for _, record in records], folder / TABLE)
    splits = [record["split"] for _, record in records] if "split" in records[0][1] else None
    notes = _unlisted(folder, records)
    if reordered:
        notes.append(
            f"{_files(len(reordered))} in another order of columns, matched by their names: {_first(reordered)}"
        )
    files = [record["file"] for _, record in records]
    return Raw(sequences, labels, splits, files, names, numeric_headers, tuple(notes))


def files_of(folder: Path, how: How) -> list[Path]:
    """The files that ``read_folder`` reads."""
    records = _records(folder, needs_labels=not how.label_columns)
    table = [folder / TABLE] if os.path.lexists(folder / TABLE) else []
    return [*table, *_checked(folder, records, how.allow_outside)]


def _records(folder: Path, needs_labels: bool) -> list[Record]:
    """The rows of the table, with where they stand; without a table the folder's CSV files."""
    table = folder / TABLE
    if not needs_labels and not os.path.lexists(table):
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".csv"))
        if not names:
            raise SkipRNNError(f"{folder} holds no CSV files")
        return [(str(folder / name), {"file": name}) for name in names]
    columns = "the columns file and label" if needs_labels else "the column file"
    first, rows = _rows(table, f"a table with {columns}", f"{folder} needs {TABLE} with {columns}")
    known = {(name or "").strip() for name in first}
    if not rows or "file" not in known or (needs_labels and not known - {*NO_LABELS, ""}):
        more = ", or several columns of labels" if needs_labels else ""
        raise SkipRNNError(f"{table} must have {columns}{more}, and a row for each file")
    used = known & {*NO_LABELS, "label"} if "label" in known else known - {""}
    used = used if needs_labels else used & {*NO_LABELS}
    records = []
    listed_in: dict[str, int] = {}  # the line that a file was listed in
    for line, record in rows:
        if None in record.values():
            raise SkipRNNError(f"{table}, line {line}: the row is too short")
        if None in record:
            raise SkipRNNError(
                f"{table}, line {line}: the row has more cells than the first line; quote what has commas"
            )
        cells = {name.strip(): cell.strip() for name, cell in record.items()}
        if "\0" in cells["file"]:
            raise SkipRNNError(f"{table}, line {line}: the name of a file holds a null byte; {REMEDY}")
        if empty := [name for name, cell in cells.items() if name in used and not cell]:
            raise SkipRNNError(f"{table}, line {line}: {empty[0]} is empty; fill it in, or take the row out")
        before = listed_in.setdefault(os.path.realpath(folder / cells["file"]), line)
        if before != line:
            raise SkipRNNError(f"{table}, line {line}: {cells['file']} is listed in line {before} already; drop one")
        records.append((f"{table}, line {line}", cells))
    return records


def labels_of(folder: Path) -> dict[str, str]:
    """The column label of a folder's table by the column file, as far as both are there; without a table, none."""
    if not (folder / TABLE).is_file():
        return {}
    _, rows = _rows(folder / TABLE, "a table", "it needs the columns file and label; mend it, or move it away")
    found = [
        {name.strip(): cell.strip() for name, cell in r.items() if name and isinstance(cell, str)} for _, r in rows
    ]
    return {Path(r["file"]).as_posix(): r["label"] for r in found if r.get("file") and r.get("label")}


def _rows(table: Path, what: str, remedy: str) -> tuple[Sequence[str], list[tuple[int, dict[str | Any, str | Any]]]]:
    """The first line of a table, and the others, each with its number in the file, by the names of the first."""
    text = doors.read_text(table, "a table", remedy).removeprefix("\ufeff")
    with reading(table, what, REMEDY):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator_of(text.partition("\n")[0]) or ",")
        rows = [(reader.line_num, record) for record in reader]
        return reader.fieldnames or (), rows


def _checked(folder: Path, records: list[Record], allow_outside: bool) -> Iterator[Path]:
    """The paths of the files, which are there and may be read."""
    for where, record in records:
        path = folder / record["file"]
        inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))
        if not (inside or allow_outside):
            raise SkipRNNError(f"{where}: the file lies outside {folder}; pass --allow-outside to read it")
        if not os.path.isfile(path):
            raise SkipRNNError(f"{where}: there is no file {str(path)[:300]}")
        yield path


def _unlisted(folder: Path, records: list[Record]) -> list[str]:
    """A note on files that lie beside the ones listed, and are of their kind."""
    named = {os.path.realpath(folder / record["file"]) for _, record in records}
    named.add(os.path.realpath(folder / TABLE))
    kinds = {os.path.splitext(path)[1].lower() for path in named}
    places = {folder, *(folder / os.path.dirname(record["file"]) for _, record in records)}
    there = [
        Path(entry.path)
        for place in sorted(places)
        for entry in os.scandir(place)
        if entry.is_file()
        and not entry.name.startswith(".")
        and os.path.splitext(entry.name)[1].lower() in kinds
        and os.path.realpath(entry.path) not in named
    ]
    if not there:
        return []
    return [f"{_files(len(there))} not listed in {folder / TABLE} and left out: {_first(sorted(there))}"]


def _files(count: int) -> str:
    return "1 file is" if count == 1 else f"{count:,} files are"


def _first(paths: Sequence[Path]) -> str:
    return listed([path.name for path in paths[:FIRST]]) + (", ..." if len(paths) > FIRST else "")


def _table_labels(records: list[dict[str, str]], table: Path) -> Given:
    """The column label; where there is none, all others but file and split."""
    names = ["label"] if "label" in records[0] else [name for name in records[0] if name and name not in NO_LABELS]
    values = values_of([[record[name] for name in names] for record in records], table, names)
    shown = f"column{'s' if len(names) > 1 else ''} {', '.join(names)} of {TABLE}"
    return Given(values, False, shown, None if names == ["label"] else tuple(names))


def _csv(
    path: Path,
    width: int | None,
    header: bool | None,
    columns: Sequence[str],
    taken: list[list[str]],
    names: Sequence[str],
) -> tuple[Floats, Source]:
    """The rows of a file, and what else is known of it; labels are put into ``taken``."""
    with opening(path, "CSV", REMEDY), path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = _without(doors.lines_of(file, str(path)), path, columns, taken) if columns else file
        source = csv_source(lines, width, str(path), True if columns else header, names)
        samples: list[npt.NDArray[Any]] = []
        while (sample := source.read(len(samples))) is not None:
            samples.append(sample)
    return np.stack(samples).astype(np.float32), source


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
                if comma := decimal_comma(line):
                    raise SkipRNNError(f"{path}, line {number}: {comma}")
                raise SkipRNNError(f"{path}, line {number}: a row has {len(names)} cells, this has {len(row)}")
            cells = [row[names.index(name)] for name in columns]
            if "" in cells:
                raise SkipRNNError(f"{path}, line {number}: {columns[cells.index('')]} is empty; fill it in")
            taken.append(cells)
        yield (
            ",".join(cell for cell, name in zip(row, names, strict=True) if name not in columns) + "\n" if row else line
        )
