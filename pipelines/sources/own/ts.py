"""The .ts files of the UCR and UEA archives of time series.

A header of lines that begin with @, then after @data a case a line: its dimensions with a colon between them, each the
numbers of its steps with commas between them, and at the end the class or the number that goes with the case.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.data import memory
from pipelines.data.doors import lines_of, opening
from pipelines.data.samples import is_number
from pipelines.errors import SkipRNNError
from pipelines.sources.own.labels import CLASSES, NUMBERS, Given
from pipelines.sources.own.raw import REMEDY, Floats, Raw, floats

SUFFIX = ".ts"
SPLITS = {"_TRAIN": "train", "_TEST": "test"}
TRUTH = {"true": True, "false": False}


@dataclass
class _Header:
    """What stands before @data."""

    classes: list[str] | None = None  # None: the labels are numbers
    labelled: bool = False
    dimensions: int | None = None
    length: int | None = None
    seen: set[str] = field(default_factory=set)


def among(folder: Path) -> list[Path]:
    """The .ts files of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == SUFFIX)


def files_of(sources: Sequence[Path]) -> list[Path]:
    """The files that a user means: one, or NAME_TRAIN.ts and NAME_TEST.ts, in this order.

    Raises:
        SkipRNNError: they are others.
    """
    paths = among(sources[0]) if len(sources) == 1 and sources[0].is_dir() else list(sources)
    if len(paths) == 1:
        return paths
    paths.sort(key=lambda path: list(SPLITS).index(_part(path)[1]) if _part(path)[1] in SPLITS else len(SPLITS))
    parts = [_part(path) for path in paths]
    if [suffix for _, suffix in parts] != list(SPLITS) or len({name for name, _ in parts}) > 1:
        where = f"{sources[0]} holds" if len(sources) == 1 else "there are"
        shown = ", ".join(path.name for path in paths[:5])
        raise SkipRNNError(f"{where} {shown}: several files are read where they are NAME_TRAIN.ts and NAME_TEST.ts")
    return paths


def read_ts(paths: Sequence[Path]) -> Raw:
    """The cases of one file, or of those of training and test, which are then the splits."""
    sequences: list[Floats] = []
    labels: list[str] = []
    splits: list[str] = []
    names: list[str] = []
    classes: list[str] | None = None
    for path in paths:
        with opening(path, "a .ts file", REMEDY) as size, path.open(encoding="utf-8-sig") as file:
            memory.check_fits(2 * size, str(path))  # a number has two characters, or more, and four bytes
            header, inside = _Header(), False
            for number, line in enumerate(lines_of(file, str(path)), start=1):
                text, where = line.strip(), f"{path}, line {number}"
                if not text or text.startswith("#"):
                    continue
                if not inside:
                    inside = _read_header(text, header, where)
                    continue
                before = len(sequences[0][0]) if sequences else None
                sequence, label = _case(text, header, before, where)
                sequences.append(sequence)
                labels.append(label)
                splits.append(SPLITS.get(_part(path)[1], ""))
                names.append(f"{path.name}, line {number}," if len(paths) > 1 else f"line {number}")
            if not inside:
                raise SkipRNNError(f"{path} has no line @data; {REMEDY}")
        if paths[0] != path and (classes is None) != (header.classes is None):
            raise SkipRNNError(f"{paths[0]} and {path} do not both have classes; {REMEDY}")
        classes = header.classes
    shown = "@classLabel" if classes is not None else "@targetLabel"
    values = np.array(labels if classes is not None else [float(label) for label in labels])
    given = Given(values, False, shown, said=NUMBERS if classes is None else CLASSES)
    return Raw(sequences, given, splits if len(paths) > 1 else None, names, notes=_note(paths))


def _note(paths: Sequence[Path]) -> tuple[str, ...]:
    """That the other half was not named."""
    name, part = _part(paths[0])
    other = [path for path in paths[0].parent.iterdir() if path.suffix.lower() == SUFFIX and _part(path)[0] == name]
    left = [path.name for path in other if _part(path)[1] in SPLITS and path.name != paths[0].name]
    if len(paths) > 1 or part not in SPLITS or not left:
        return ()
    return (f"{left[0]} lies beside {paths[0].name} and was left out; pass both files to keep the official split",)


def _part(path: Path) -> tuple[str, str]:
    """NAME and _TRAIN or _TEST, of NAME_TRAIN.ts or NAME_TEST.ts."""
    for suffix in SPLITS:
        if path.stem.upper().endswith(suffix):
            return path.stem[: -len(suffix)], suffix
    return path.stem, ""


def _read_header(text: str, header: _Header, where: str) -> bool:
    """Take a line of the header; whether it is @data, the last one."""
    words = text.split()
    key, values = words[0].lower(), words[1:]
    if not key.startswith("@"):
        raise SkipRNNError(f"{where}: a line of the header begins with @ or #, and cases follow @data; {REMEDY}")
    if key == "@data":
        if not header.labelled:
            raise SkipRNNError(f"{where}: there is no @classLabel true and no @targetLabel true, so no labels to learn")
        return True
    flag = TRUTH.get(values[0].lower()) if values else None
    if key in ("@classlabel", "@targetlabel", "@timestamps") and flag is None:
        raise SkipRNNError(f"{where}: {words[0]} must be true or false; {REMEDY}")
    if key == "@timestamps" and flag:
        raise SkipRNNError(f"{where}: cases with a time stamp a step are not read; write the numbers alone")
    if key in ("@classlabel", "@targetlabel") and flag:
        header.labelled = True
        header.classes = values[1:] if key == "@classlabel" else None
    if key in ("@dimension", "@dimensions", "@serieslength"):
        if not values or not is_number(values[0], int):
            raise SkipRNNError(f"{where}: {words[0]} must be a whole number; {REMEDY}")
        if key == "@serieslength":
            header.length = int(values[0])
        else:
            header.dimensions = int(values[0])
    if key == "@univariate" and flag:
        header.dimensions = 1
    return False


def _case(text: str, header: _Header, features: int | None, where: str) -> tuple[Floats, str]:
    """The numbers of a case, (T, D), and its label."""
    *parts, label = (part.strip() for part in text.split(":"))
    for wanted in (header.dimensions, features):  # what this file says, and what the case before has, or file
        if not parts or (wanted and len(parts) != wanted):
            raise SkipRNNError(
                f"{where}: {len(parts)} dimensions and a label, where there should be {wanted or 'one at least'}; "
                f"{REMEDY}"
            )
    if header.classes is None and not is_number(label):
        raise SkipRNNError(f"{where}: the label {label!r:.40} is not a number; {REMEDY}")
    if header.classes and label not in header.classes:
        raise SkipRNNError(f"{where}: the label {label!r:.40} is none of @classLabel's; {REMEDY}")
    numbers = [_numbers(part, f"{where}, dimension {place}") for place, part in enumerate(parts, start=1)]
    for place, series in enumerate(numbers, start=1):
        if len(series) != (header.length or len(numbers[0])):
            of = "@seriesLength says" if header.length else "the first has"
            raise SkipRNNError(
                f"{where}, dimension {place}: {len(series)} numbers, {of} {header.length or len(numbers[0])}; {REMEDY}"
            )
    return floats(np.stack(numbers, axis=1), where), label


def _numbers(part: str, where: str) -> npt.NDArray[np.float64]:
    cells = [cell.strip() for cell in part.split(",")]
    for place, cell in enumerate(cells, start=1):
        if cell == "?" or cell.lower() == "nan":
            raise SkipRNNError(f"{where}, number {place}: the value is missing ({cell}); fill it, or take the case out")
        if not is_number(cell):
            raise SkipRNNError(f"{where}, number {place}: {cell!r:.40} is not a number; {REMEDY}")
    return np.array(cells, dtype=np.float64)
