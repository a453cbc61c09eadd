"""What a user's labels are: classes, labels or numbers, of sequences or of their steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data.samples import is_number
from pipelines.errors import SkipRNNError
from pipelines.tasks.own import LARGEST_TARGET

CLASSES, TAGS, LABELS, NUMBERS = "own-classes", "own-tags", "own-labels", "own-numbers"
KINDS = (CLASSES, TAGS, LABELS, NUMBERS)

LARGE = 2**53  # whole numbers that floats tell apart
DISTINCT = 0.75  # of the integers that are labels: where more are different, they may be numbers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Given:
    """Labels as they came."""

    values: Array  # (M,) or (M, K) texts, integers or floats, M being the sequences, or their steps end to end
    each_step: bool
    shown: str  # what to call them, such as "y (40, 12) of int64"
    names: tuple[str, ...] | None = None  # of the K
    nearest: str = ""  # what a class would look like
    instead: str = ""  # what else their shape might mean, and what to say then
    said: str | None = None  # one of KINDS, where the file itself says what they are


@dataclass(frozen=True)
class Targets:
    """Labels as a task has them."""

    task: str
    y: Array  # (M,) int64 classes or float32, or (M, K) uint8 or float32
    each_step: bool
    names: tuple[str, ...]  # of the classes, the labels or the numbers
    taken: str  # what they were taken for, in words
    note: str = ""  # what else they might be, and how to say so


def values_of(rows: list[list[str]], where: Path, names: Sequence[str]) -> Array:
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


def check_shape(
    y: Array, counts: tuple[int, int | None, int], each_step: bool | None, x_shown: str
) -> tuple[bool, bool]:
    """Whether y has a label a step, and whether its shape alone could mean either.

    Args:
        y: the array.
        counts: the sequences; their steps, or None where they lie end to end; and the rows they have then.
        each_step: what the user said, if anything.
        x_shown: what to call x.

    Raises:
        SkipRNNError: it fits neither, or not what was said.
    """
    sequences, steps, rows = counts
    flat, shape = steps is None, y.shape
    of_step = (rows,) if flat else (sequences, steps)
    fits = 0 not in shape and shape[:1] == (sequences,) and y.ndim <= 2
    fits_step = 0 not in shape and shape[: len(of_step)] == of_step and y.ndim <= len(of_step) + 1
    if each_step is None:
        each_step = fits_step and not (flat and fits)
    if not (fits_step if each_step else fits):
        forms = {True: f"{_said(of_step)} or {_said(of_step, 'K')}", False: f"({sequences},) or ({sequences}, K)"}
        raise SkipRNNError(
            f"y {shape} does not go with {x_shown}: y is {forms[False]} for labels of sequences, {forms[True]} for "
            f"labels of steps; the nearest is {_nearest(shape, sequences, of_step, each_step)}"
        )
    return each_step, fits and fits_step and not flat


def _said(shape: tuple[Any, ...], *more: str) -> str:
    return f"({', '.join(str(size or 'K') for size in (*shape, *more))}{',' if len(shape) + len(more) == 1 else ''})"


def _nearest(shape: tuple[int, ...], sequences: int, of_step: tuple[Any, ...], each_step: bool) -> str:
    if len(of_step) == 1:  # end to end
        close = shape and abs(shape[0] - of_step[0]) < abs(shape[0] - sequences)
        return _said(((of_step[0] if close or each_step else sequences), *shape[1:2]))
    if each_step or len(shape) > 2:
        return _said((*of_step, *shape[2:][-1:]))
    return _said((sequences, *shape[1:]))


def recognise(given: Given, task: str | None, name_of: Callable[[int], str], source: object) -> Targets:
    """Take labels for what they look like, or for what the user says.

    Args:
        given: the labels.
        task: one of KINDS; None goes by the labels.
        name_of: what the m-th sequence, or step, is called in messages.
        source: where they came from.

    Raises:
        SkipRNNError: they are no such labels, or might be several.
    """
    values, where = given.values, f"{source}: {given.shown}"
    if task in (LABELS, NUMBERS) and values.dtype.kind == "U" and all(map(is_number, values.flat)):
        values = values.astype(np.float64)
    several = values.ndim == 2
    kind = task or given.said or _kind(values, given, where)
    open_ = not (task or given.said)  # whether it might be meant otherwise
    if kind in (CLASSES, TAGS):
        if several or given.each_step != (kind == TAGS):
            raise SkipRNNError(
                f"{where} is not {_words(kind, kind == TAGS, 1)}, which is what {kind} needs{given.nearest}"
            )
        if open_:
            _check_distinct(values, given, source)
        return _classes(values, kind, given, source)
    if values.dtype.kind not in "fiub":
        raise SkipRNNError(f"{where} may be classes; {kind} needs numbers")
    flat = values.reshape(len(values), -1).astype(np.float64)
    finite = np.isfinite(flat).all(1)
    if not finite.all():
        raise SkipRNNError(f"{source}: {name_of(int(np.flatnonzero(~finite)[0]))} has no finite label")
    count = values.shape[1] if several else 1
    taken = f"{given.shown} for {_words(kind, given.each_step, count)}"
    if kind == LABELS:
        values = values.reshape(len(values), count)
        if not is_binary(values):
            raise SkipRNNError(f"{where} must be 0 or 1 everywhere, to be labels")
        if (values == values[0]).all():
            raise SkipRNNError(f"{source}: all labels are the same everywhere; there is nothing to learn")
        called = given.names or tuple(f"label {k}" for k in range(count))
        return Targets(kind, values.astype(np.uint8), given.each_step, called, taken, _one_hot(values, given, open_))
    if (beyond := abs(flat) > LARGEST_TARGET).any():
        item, column = (int(place) for place in np.argwhere(beyond)[0])
        raise SkipRNNError(
            f"{source}: {name_of(item)} has the label {flat[item, column]:.6g}, whose square is beyond float32; scale "
            f"the labels down, to {LARGEST_TARGET:g} at most"
        )
    called = given.names or (("value",) if count == 1 else tuple(f"value {k}" for k in range(count)))
    taken = f"{taken}, from {flat.min():.6g} to {flat.max():.6g}"
    note = ""
    if open_ and not several and (flat == np.round(flat)).all():
        note = "the labels are floats, and all of them whole: taken for numbers; if they are classes, pass --classes"
    y = values.astype(np.float32)
    return Targets(kind, y[:, 0] if several and count == 1 else y, given.each_step, called, taken, note)


def _kind(values: Array, given: Given, where: str) -> str:
    several = values.ndim == 2
    if values.dtype.kind == "f":
        if (several or given.each_step) and is_binary(values):
            ways = f"{LABELS} or {NUMBERS}" if several else f"{TAGS}, {LABELS} or {NUMBERS}"
            raise SkipRNNError(
                f"{where} holds floats that are all 0 or 1, and may be several things; pass --task {ways}"
            )
        return NUMBERS
    if not several:
        return TAGS if given.each_step else CLASSES
    if values.dtype.kind in "iub" and is_binary(values):
        return LABELS
    what = "integers other than 0 and 1" if values.dtype.kind in "iu" else "texts"
    raise SkipRNNError(
        f"{where} holds {what}: several labels at once are 0 or 1 each, several numbers are floats{given.nearest}"
    )


def _check_distinct(values: Array, given: Given, source: object) -> None:
    """Refuse integers nearly all of which are different, unless the user says what they are."""
    if values.dtype.kind not in "iu" and not (values.dtype.kind in "UO" and all(is_number(v, int) for v in values)):
        return
    count, what = len(np.unique(values.astype(str))), "step" if given.each_step else "sequence"
    if count > DISTINCT * len(values):
        of = f"of one {what} each" if count == len(values) else f"in {len(values)} {what}s"
        raise SkipRNNError(
            f"{source}: {given.shown} would be {count} classes {of}: for numbers pass --numbers, for classes --classes"
        )


def _one_hot(values: Array, given: Given, open_: bool) -> str:
    """A note on labels of which always one holds."""
    if open_ and values.shape[1] > 1 and (values.sum(1) == 1).all():
        each = "step" if given.each_step else "sequence"
        return f"of the labels exactly one holds for every {each}; if they are classes, y.argmax(-1) says which"
    return ""


def is_binary(values: Array) -> bool:
    """Whether numbers are 0 or 1 everywhere."""
    return bool(((values == 0) | (values == 1)).all())


def _classes(values: Array, kind: str, given: Given, source: object) -> Targets:
    if values.dtype.kind == "f":
        if not ((abs(values) < LARGE) & (values == np.round(values))).all():
            raise SkipRNNError(f"{source}: {given.shown} must be whole numbers or texts, to be classes")
        values = values.astype(np.int64)
    found, y = np.unique(values.astype(str), return_inverse=True)
    texts = [str(text) for text in found]
    order = sorted(range(len(texts)), key=lambda k: _place(texts[k]))
    if len(texts) < 2:
        what = "steps" if given.each_step else "sequences"
        raise SkipRNNError(f"{source}: all {what} are of the class {texts[0]!r}; there is nothing to learn")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    names = tuple(texts[k] for k in order)
    taken = f"{given.shown} for {_words(kind, given.each_step, 1)}, one of {len(names)}"
    return Targets(kind, place[y.reshape(-1)], given.each_step, names, taken)


def _place(text: str) -> tuple[int, int, str]:
    """Where a class stands: numbers by their size, then texts."""
    return (0, int(text), "") if is_number(text, int) else (1, 0, text)


def _words(kind: str, each_step: bool, count: int) -> str:
    """A task in words: "a class a step", "3 labels a sequence"."""
    each = "step" if each_step else "sequence"
    what = {CLASSES: "class", TAGS: "class", LABELS: "label", NUMBERS: "number"}[kind]
    return f"{f'a {what}' if count == 1 else f'{count} {what}s'} a {each}"
