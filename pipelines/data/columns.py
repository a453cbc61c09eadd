"""The names of a sequence's columns: what a run was trained on, held against what a file says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.data.doors import reading
from pipelines.errors import SkipRNNError

COLUMNS = ("columns", "features")  # arrays that hold the names of columns, where they hold texts
SHOWN = 300  # characters of a list of names


def order_of(wanted: Sequence[str], found: Sequence[str], where: Path | str) -> list[int] | None:
    """Where each of the wanted columns stands among those found.

    Args:
        wanted: the names the columns should have, in the order they are read; none if that is not known.
        found: the names that a file gives, in its order; none if it gives none.
        where: the file, the beginning of the message.

    Returns:
        The places; None where the columns stand as they are wanted, or one side has no names.

    Raises:
        SkipRNNError: a column is missing, or one is there that is not wanted.
    """
    if not wanted or not found or list(wanted) == list(found):
        return None
    missing = [name for name in wanted if name not in found]
    others = [name for name in found if name not in wanted]
    if missing or others:
        said = [f"{kind} {listed(names)}" for kind, names in (("lacks", missing), ("has", others)) if names]
        must = (
            f"columns must be {listed(wanted)}, in any order" if len(wanted) > 1 else f"column must be {listed(wanted)}"
        )
        raise SkipRNNError(f"{where} {' and '.join(said)}: the {must}; rename, add or drop them")
    check_different(found, where)
    return [list(found).index(name) for name in wanted]


def texts_of(array: Any, path: Path) -> list[str]:
    """The texts of an array, (K,), of an .npz or HDF5 file."""
    with reading(path, "UTF-8 in its texts", "name another file, or mend this one"):
        texts = array.asstr()[()] if hasattr(array, "asstr") else array
        if texts.ndim != 1 or texts.dtype.kind not in "USO":
            raise ValueError("the names of columns must be texts, (D,)")
        return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def check_different(names: Sequence[str], where: Path | str) -> None:
    """Refuse two columns of one name."""
    if twice := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
        raise SkipRNNError(f"{where}: several columns are called {twice[0]!r:.60}; give each a name of its own")


def listed(names: Sequence[str]) -> str:
    """Names in a message, without what would move a terminal's cursor."""
    text = ", ".join(name if name.isprintable() else repr(name)[1:-1] for name in names)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def beyond_float32(value: Any, place: str) -> SkipRNNError:
    """The refusal of a number that is finite, and infinite as float32."""
    return SkipRNNError(f"{place}: {value:.6g} is beyond float32, which ends at 3.4e38; scale the column down")
