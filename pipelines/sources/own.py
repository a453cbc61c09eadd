"""A user's own sequences, in an HDF5 or NPZ file or a folder of CSV files, to a data file."""

import csv
import io
import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from pipelines.data import doors
from pipelines.data.arrays import open_npz
from pipelines.data.doors import opening, reading
from pipelines.data.hdf5 import open_hdf5
from pipelines.data.memory import check_fits
from pipelines.data.samples import csv_source, is_number
from pipelines.data.sequences import SPLITS, Sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.seeds import derive_seed
from pipelines.tasks.base import Task
from pipelines.tasks.own import OwnClasses, OwnNumbers

LABELS = "labels.csv"
PARTS = ("x", "y", "lengths", "offsets", "split")  # arrays of a file
REMEDY = "mend it, or name another"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WrittenSequences:
    """What ``write_own`` wrote."""

    task: Task
    sizes: dict[str, int]
    steps: int  # of the longest sequence
    numeric_headers: int  # CSV files whose first line 0,1,... was passed over


@dataclass(frozen=True)
class _Raw:
    """Sequences as they came: (T, D) each, a label to each, and perhaps the split of each."""

    sequences: Sequence[Floats]
    labels: list[Any]  # strings, integers or floats
    splits: list[str] | None
    names: Sequence[str]
    numeric_headers: int = 0


def write_own(
    source: Path,
    path: Path,
    *,
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    header: bool | None = None,
    allow_outside: bool = False,
    overwrite: bool = False,
) -> WrittenSequences:
    """Write one's own sequences.

    Args:
        source: an .npz or HDF5 file with ``x`` (N, T, D), or (N, T) for one feature, and ``y`` (N,), integers or
            strings for classes or floats; sequences that differ in length either have ``lengths`` (N,) or follow
            each other in ``x`` (sum of lengths, D) with ``offsets`` (N + 1,); an optional ``split`` (N,) says train,
            val or test. Or a folder of CSV files, a sample a row, and a table labels.csv with the columns file and
            label, and perhaps split.
        path: the HDF5 file to write.
        val, test: shares of the sequences, where no split is given; drawn class by class.
        seed: of the draw.
        header: whether the CSV files of a folder begin with one; None follows the rule of ``samples.csv_source``.
        allow_outside: read files outside the folder, too, where labels.csv names such.
        overwrite: replace a file that exists.

    Raises:
        SkipRNNError: the source is missing, damaged or contradicts itself; or ``path`` cannot be written.
    """
    source = Path(source)
    if not os.path.exists(source):
        raise SkipRNNError(f"no {source}; name an .npz or .h5 file, or a folder of CSV files with {LABELS}")
    raw = _folder(source, header, allow_outside) if source.is_dir() else _file(source)
    _check(raw, source)
    y, names = _targets(raw, source)
    rows = _rows(raw, y if names else None, val, test, seed, source)
    lengths = torch.tensor([len(sequence) for sequence in raw.sequences])
    ragged, longest = len(set(lengths.tolist())) > 1, int(lengths.max())
    shape = (len(lengths), longest, raw.sequences[0].shape[1])
    check_fits(4 * math.prod(shape), f"sequences of shape {shape}, all as long as the longest,")
    x = pad_sequence([torch.from_numpy(sequence) for sequence in raw.sequences], batch_first=True)
    task = _task(raw.sequences, y, names, rows["train"])
    with sequences_writer(path, overwrite=overwrite) as writer:
        for split, part in rows.items():
            sequences = Sequences(x[part], torch.from_numpy(y[part]), lengths[part] if ragged else None)
            writer.write_split(split, len(part), [sequences])
        writer.finish({"task": task.name, **task.parameters(), "seed": seed, "source": source.name})
    return WrittenSequences(task, {split: len(part) for split, part in rows.items()}, longest, raw.numeric_headers)


def _folder(folder: Path, header: bool | None, allow_outside: bool) -> _Raw:
    table = folder / LABELS
    text = doors.read_text(table, "a table", f"{folder} needs {LABELS} with the columns file and label")
    with reading(table, "a table with the columns file and label", REMEDY):
        records = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    if not records or not {"file", "label"} <= set(records[0]):
        raise SkipRNNError(f"{table} must have the columns file and label, and a row for each file")
    sequences: list[Floats] = []
    numeric_headers = 0
    for line, record in enumerate(records, start=2):
        if None in record.values():
            raise SkipRNNError(f"{table}, line {line}: the row is too short")
        path = folder / (record["file"] or "")
        inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))
        if not (inside or allow_outside):
            raise SkipRNNError(f"{table}, line {line}: the file lies outside {folder}; pass --allow-outside to read it")
        if not os.path.isfile(path):
            raise SkipRNNError(f"{table}, line {line}: there is no file {str(path)[:300]}")
        sequence, numeric = _csv(path, sequences[0].shape[1] if sequences else None, header)
        sequences.append(sequence)
        numeric_headers += numeric
    labels: list[Any] = [record["label"] for record in records]
    if all(map(is_number, labels)) and not all(is_number(label, int) for label in labels):
        labels = [float(label) for label in labels]
    splits = [record["split"] for record in records] if "split" in records[0] else None
    return _Raw(sequences, labels, splits, [record["file"] for record in records], numeric_headers)


def _csv(path: Path, width: int | None, header: bool | None) -> tuple[Floats, bool]:
    """The rows of a file, and whether it began with names 0,1,... of columns."""
    with opening(path, "CSV", REMEDY), path.open(encoding="utf-8-sig", errors="replace") as file:
        source = csv_source(file, width, str(path), header)
        samples: list[npt.NDArray[Any]] = []
        while (sample := source.read(len(samples))) is not None:
            samples.append(sample)
    return np.stack(samples).astype(np.float32), source.numeric_header


def _file(path: Path) -> _Raw:
    opened: Any = (open_npz if path.suffix == ".npz" else open_hdf5)(path, REMEDY)
    with closing(opened):
        arrays: dict[str, Any] = {name: opened.array(name) for name in PARTS if name in opened}
    if missing := {"x", "y"} - set(arrays):
        raise SkipRNNError(f"{path} has no array {' nor '.join(sorted(missing))}; it needs x (N, T, D) and y (N,)")
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "fiub" or x.ndim < 2 or y.ndim != 1:
        raise SkipRNNError(
            f"{path}: x must hold numbers, (N, T, D), and y be (N,), got x {x.dtype} {x.shape}, y {y.shape}"
        )
    if "offsets" in arrays:
        offsets = _integers(arrays["offsets"], "offsets", path)
        right = x.ndim == 2 and len(offsets) == len(y) + 1 and (np.diff(offsets) >= 0).all()
        if not right or offsets[0] != 0 or offsets[-1] != len(x):
            raise SkipRNNError(f"{path}: offsets must be (N + 1,), rising from 0 to the {len(x)} rows of x (rows, D)")
        sequences = [x[start:end].astype(np.float32) for start, end in pairwise(offsets)]
    else:
        x = x[..., None] if x.ndim == 2 else x
        whole = np.full(len(y), x.shape[1] if x.ndim == 3 else 0)
        lengths = _integers(arrays.get("lengths", whole), "lengths", path)
        right = x.ndim == 3 and len(x) == len(y) == len(lengths)
        if not right or lengths.min(initial=0) < 0 or lengths.max(initial=0) > x.shape[1]:
            raise SkipRNNError(
                f"{path}: x must be (N, T, D) or (N, T), y (N,) and lengths (N,) from 1 to T, got x {x.shape}, y "
                f"{y.shape}"
            )
        sequences = [row[:length].astype(np.float32) for row, length in zip(x, lengths.tolist(), strict=True)]
    if "split" in arrays and arrays["split"].ndim != 1:
        raise SkipRNNError(f"{path}: split must be (N,), got shape {arrays['split'].shape}; {REMEDY}")
    with reading(path, "UTF-8 in its texts", REMEDY):
        splits = _texts(arrays["split"]).tolist() if "split" in arrays else None
        y = _texts(y)
    return _Raw(sequences, y.tolist(), splits, [f"sequence {row}" for row in range(len(y))])


def _integers(array: npt.NDArray[Any], name: str, path: Path) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise SkipRNNError(f"{path}: {name} must hold integers, (N,), got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _texts(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bytes as strings, all else as it is."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _check(raw: _Raw, source: Path) -> None:
    if not raw.sequences:
        raise SkipRNNError(f"{source} holds no sequences")
    if raw.splits is not None and len(raw.splits) != len(raw.sequences):
        raise SkipRNNError(f"{source}: there are {len(raw.splits)} splits for {len(raw.sequences)} sequences")
    for sequence, name in zip(raw.sequences, raw.names, strict=True):
        if sequence.size == 0:
            raise SkipRNNError(f"{source}: {name} is empty; leave it out")
        if not np.isfinite(sequence).all():
            step = int(np.flatnonzero(~np.isfinite(sequence).all(1))[0])
            raise SkipRNNError(f"{source}: {name} holds NaN or infinity at step {step}; drop or fill it")
    if raw.splits is not None and (unknown := set(raw.splits) - set(SPLITS)):
        raise SkipRNNError(f"{source}: unknown split {sorted(unknown)[0]!r}; it must be train, val or test")


def _targets(raw: _Raw, source: Path) -> tuple[npt.NDArray[Any], list[str]]:
    """The labels, and the names of their classes; none where they are numbers."""
    if all(isinstance(label, float) for label in raw.labels):
        y = np.array(raw.labels, dtype=np.float32)
        if not np.isfinite(y).all():
            raise SkipRNNError(f"{source}: {raw.names[int(np.flatnonzero(~np.isfinite(y))[0])]} has no finite label")
        return y, []
    texts = [str(label) for label in raw.labels]
    names = sorted(set(texts), key=lambda text: (0, int(text), "") if is_number(text, int) else (1, 0, text))
    if len(names) < 2:
        raise SkipRNNError(f"{source}: all sequences are of the class {names[0]!r}; there is nothing to learn")
    return np.array([names.index(text) for text in texts], dtype=np.int64), names


def _rows(
    raw: _Raw, classes: npt.NDArray[Any] | None, val: float, test: float, seed: int, source: Path
) -> dict[str, npt.NDArray[np.int64]]:
    """The rows of each split."""
    count = len(raw.sequences)
    chosen = np.full(count, "train", dtype=object)
    if raw.splits is not None:
        chosen[:] = raw.splits
    else:
        draws = np.random.default_rng(derive_seed(seed, "own", "split"))
        for group in [np.arange(count)] if classes is None else [np.flatnonzero(classes == c) for c in set(classes)]:
            order = draws.permutation(group)
            first = min(math.ceil(val * len(group)), len(group) - 1)  # of each class one at least is for training
            second = min(math.ceil(test * len(group)), len(group) - 1 - first)
            chosen[order[:first]] = "val"
            chosen[order[first : first + second]] = "test"
    rows = {split: np.flatnonzero(chosen == split) for split in SPLITS}
    for split, part in rows.items():
        if len(part) == 0:
            raise SkipRNNError(f"{source}: {count} sequences leave none for {split}; give more, or their splits")
    return rows


def _task(sequences: Sequence[Floats], y: npt.NDArray[Any], names: list[str], train: npt.NDArray[np.int64]) -> Task:
    steps = np.concatenate([sequences[row] for row in train]).astype(np.float64)
    mean, std = steps.mean(0), steps.std(0)
    std[std < 1e-8] = 1
    features: dict[str, Any] = {
        "features": steps.shape[1], "mean": tuple(mean.tolist()), "std": tuple(std.tolist())
    }  # fmt: skip
    if names:
        return OwnClasses(**features, classes=tuple(names))
    target = y[train].astype(np.float64)
    return OwnNumbers(**features, target_mean=float(target.mean()), target_std=float(target.std()) or 1.0)
