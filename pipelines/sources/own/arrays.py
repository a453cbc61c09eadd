"""A user's sequences in the arrays of an .npz or HDF5 file."""

from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data.arrays import Npz, open_npz
from pipelines.data.columns import COLUMNS
from pipelines.data.doors import reading
from pipelines.data.hdf5 import open_hdf5
from pipelines.errors import SkipRNNError
from pipelines.sources.own.labels import Array, Given, check_shape, is_binary
from pipelines.sources.own.raw import REMEDY, How, Raw, floats

PARTS = ("x", "y", "lengths", "offsets", "split", "names", *COLUMNS)  # arrays of a file
OBJECTS = {  # what to do about arrays of Python objects
    "x": "sequences of different length lie end to end, x (rows, D), with offsets (N + 1,): np.savez('data.npz', "
    "x=np.concatenate(x), offsets=np.cumsum([0, *map(len, x)]), y=y)",
    "y": "save texts as y=np.array(y, dtype=str), numbers as y=np.array(y, dtype=float)",
}


def read_arrays(path: Path, how: How) -> Raw:
    """The sequences of an .npz or HDF5 file."""
    arrays = _load(path)
    if missing := {"x", "y"} - set(arrays):
        raise SkipRNNError(f"{path} has no array {' nor '.join(sorted(missing))}; it needs x (N, T, D) and y (N, ...)")
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise SkipRNNError(f"{path}: x must hold numbers, (N, T, D), got {x.dtype} {x.shape}{_nearest(x)}")
    if "split" in arrays and arrays["split"].ndim != 1:
        raise SkipRNNError(f"{path}: split must be (N,), got shape {arrays['split'].shape}; {REMEDY}")
    columns = _columns(arrays, 1 if x.ndim == 2 and "offsets" not in arrays else x.shape[-1], path)
    shown_x = f"x {x.shape}"
    counts: tuple[int, int | None, int]  # sequences; steps, or None where they lie end to end; and their rows then
    if "offsets" in arrays:
        offsets = _integers(arrays["offsets"], "offsets", path)
        right = x.ndim == 2 and len(offsets) > 1 and (np.diff(offsets) >= 0).all()
        if not right or offsets[0] != 0 or offsets[-1] != len(x):
            raise SkipRNNError(f"{path}: offsets must be (N + 1,), rising from 0 to the {len(x)} rows of x (rows, D)")
        parts = [x[start:end] for start, end in pairwise(offsets.tolist())]
        counts, shown_x = (len(parts), None, len(x)), f"{shown_x} and offsets {offsets.shape}"
    else:
        x = x[..., None] if x.ndim == 2 else x
        lengths = _integers(arrays.get("lengths", np.full(len(x), x.shape[1])), "lengths", path)
        right = x.ndim == 3 and len(x) == len(lengths)
        if not right or lengths.min(initial=0) < 0 or lengths.max(initial=0) > x.shape[1]:
            raise SkipRNNError(
                f"{path}: x must be (N, T, D) or (N, T), and lengths (N,) from 1 to T, got x {arrays['x'].shape} and "
                f"lengths {lengths.shape}{_nearest(x)}"
            )
        parts = [row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]
        counts = (len(x), x.shape[1], 0)
    if not parts:
        raise SkipRNNError(f"{path} holds no sequences")
    names = [f"sequence {row}" for row in range(len(parts))]
    sequences = [floats(part, f"{path}: {name}", columns) for part, name in zip(parts, names, strict=True)]
    try:
        of_step, either = check_shape(y, counts, how.each_step, shown_x)
    except SkipRNNError as error:
        raise SkipRNNError(f"{path}: {error}") from error
    shown = f"y {y.shape} of {'texts' if y.dtype.kind in 'SUO' else y.dtype}"
    if of_step and counts[1] is not None:
        y = np.concatenate([row[: len(sequence)] for row, sequence in zip(y, sequences, strict=True)])
    with reading(path, "UTF-8 in its texts", REMEDY):
        splits = _texts(arrays["split"]).tolist() if "split" in arrays else None
        y = _texts(y)
        called = _names(arrays["names"], y.shape[1] if y.ndim > 1 else 1, path) if "names" in arrays else None
    instead = f"x has {counts[1]} steps; if y has {counts[1]} of each sequence, pass --per-sequence"
    either = either and how.each_step is None and (y.dtype.kind == "f" or is_binary(y))
    nearest = f"; a class a step is y ({f'{counts[0]}, {counts[1]}' if counts[1] else f'{counts[2]},'})"
    if y.ndim == 2 and y.shape[1] == 1:
        nearest = f"; a class a {'step' if of_step else 'sequence'} is y[..., 0]"
    labels = Given(y, of_step, shown, called, nearest, instead if either else "")
    return Raw(sequences, labels, splits, names, columns)


def _load(path: Path) -> dict[str, Any]:
    """The arrays there are of PARTS."""
    opened: Any = (open_npz if path.suffix.lower() == ".npz" else open_hdf5)(path, REMEDY)
    with closing(opened):
        found = [name for name in PARTS if name in opened]
        for name in found if isinstance(opened, Npz) else ():
            if opened.holds_objects(name):
                what = OBJECTS.get(name, "save numbers or texts")
                raise SkipRNNError(f"{path}: {name} holds Python objects, which are not loaded; {what}")
        return {name: opened.array(name) for name in found}


def _nearest(x: Array) -> str:
    """The form that x might be meant to have."""
    if x.dtype.kind not in "fiub" or not x.size or x.ndim == 3:
        return ""
    if x.ndim == 1:
        return f"; one sequence of one feature is x.reshape(1, {len(x)}, 1)"
    return f"; the nearest is x.reshape({x.shape[0]}, {x.shape[1]}, -1)" if x.ndim > 3 else ""


def _columns(arrays: dict[str, Any], count: int, path: Path) -> tuple[str, ...]:
    """The names of the features; none where there is no array of texts for them."""
    there = [name for name in COLUMNS if name in arrays and arrays[name].dtype.kind in "SUO"]
    if not there:
        return ()
    with reading(path, "UTF-8 in its texts", REMEDY):
        found = tuple(str(name) for name in _texts(arrays[there[0]]).reshape(-1))
    if len(found) != count or len(set(found)) < count:
        raise SkipRNNError(f"{path}: {there[0]} must be {count} different texts, one for each feature of x")
    return found


def _names(array: Array, count: int, path: Path) -> tuple[str, ...]:
    names = tuple(str(name) for name in _texts(array).reshape(-1))
    if len(names) != count or len(set(names)) < count or array.ndim != 1:
        raise SkipRNNError(f"{path}: names must be {count} different texts, one for each of y's last axis")
    return names


def _integers(array: Array, name: str, path: Path) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise SkipRNNError(f"{path}: {name} must hold integers, (N,), got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _texts(array: Array) -> Array:
    """Bytes as strings, all else as it is."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
