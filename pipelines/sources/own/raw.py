"""A user's sequences in memory, whatever file they came from, before anything is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data.columns import beyond_float32
from pipelines.sources.own.labels import Given

REMEDY = "mend it, or name another"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class How:
    """How a source is to be read; None, () and "" where the user did not say."""

    each_step: bool | None = None  # whether the labels are of the steps
    label_columns: tuple[str, ...] = ()  # of CSV files or a table
    id_column: str | None = None  # of a table: which sequence a row is of
    time_column: str | None = None  # of a table: by what its rows are sorted
    header: bool | None = None  # whether the CSV files of a folder begin with one; None: by the rule
    allow_outside: bool = False  # read files outside the folder, too, where labels.csv names such


@dataclass(frozen=True)
class Raw:
    """Sequences as they came: (T, D) each, their labels, and perhaps the split of each."""

    sequences: Sequence[Floats]
    labels: Given
    splits: list[str] | None
    names: Sequence[str]  # what to call each in messages
    columns: tuple[str, ...] = ()  # names of the D features
    numeric_headers: int = 0  # CSV files whose first line 0,1,... was passed over
    notes: tuple[str, ...] = ()  # what the user should know


def floats(array: npt.NDArray[Any], place: str, columns: Sequence[str] = ()) -> Floats:
    """A sequence (T, D) as float32; NaN and infinity stay, what is infinite as float32 only is refused."""
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    lost = np.isinf(found) & np.isfinite(array)
    if lost.any():
        step, feature = (int(number) for number in np.argwhere(lost)[0])
        raise beyond_float32(array[step, feature], f"{place}, step {step}, {column_name(feature, columns)}")
    return found


def column_name(feature: int, columns: Sequence[str]) -> str:
    """What to call a feature in messages."""
    return f"column {columns[feature]}" if columns else f"feature {feature}"
