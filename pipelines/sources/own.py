"""A user's own sequences, in an HDF5 or NPZ file or a folder of CSV files, to a data file."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.data.memory import check_fits
from pipelines.data.sequences import SPLITS, Sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.seeds import derive_seed
from pipelines.sources.own_files import TABLE, Floats, Raw, read_arrays, read_folder
from pipelines.sources.own_labels import CLASSES, LABELS, TAGS, Targets, recognise
from pipelines.tasks.base import Task
from pipelines.tasks.own import OwnClasses, OwnLabels, OwnNumbers, OwnTags

SMALLEST = 1e-8  # standard deviation, below which a feature counts as constant


@dataclass(frozen=True)
class WrittenSequences:
    """What ``write_own`` wrote."""

    task: Task
    sizes: dict[str, int]
    steps: int  # of the longest sequence
    numeric_headers: int  # CSV files whose first line 0,1,... was passed over
    taken: str  # what the labels were taken for, in words
    instead: str  # how else their shape might be meant; "" where it might not


def write_own(
    source: Path,
    path: Path,
    *,
    task: str | None = None,
    each_step: bool | None = None,
    label_columns: Sequence[str] = (),
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    header: bool | None = None,
    allow_outside: bool = False,
    overwrite: bool = False,
) -> WrittenSequences:
    """Write one's own sequences.

    Args:
        source: an .npz or HDF5 file with ``x`` (N, T, D), or (N, T) for one feature, and ``y``; sequences that differ
            in length either have ``lengths`` (N,) or follow each other in ``x`` (rows, D) with ``offsets`` (N + 1,);
            an optional ``split`` (N,) says train, val or test. Labels of sequences are ``y`` (N,), integers or strings
            for a class, floats for a number, or (N, K), integers of 0 and 1 for several labels, floats for several
            numbers, with optional ``names`` (K,); labels of steps are the same with T after N, or with ``offsets``
            (rows,) or (rows, K). Or a folder of CSV files, a sample a row, and a table labels.csv with the columns file
            and label, or instead of that several columns of 0 and 1 or of numbers, and perhaps split.
        path: the HDF5 file to write.
        task: what the labels are, one of the names of ``own_labels.KINDS``; None goes by them.
        each_step: whether they are of the steps; None goes by the shape.
        label_columns: of the CSV files, which hold labels of the steps; labels.csv then need not be.
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
        raise SkipRNNError(f"no {source}; name an .npz or .h5 file, or a folder of CSV files with {TABLE}")
    if each_step is None and task in (CLASSES, TAGS):
        each_step = task == TAGS
    if source.is_dir():
        if each_step is not None and each_step != bool(label_columns):
            raise SkipRNNError(
                f"labels of steps are columns of the CSV files, which --label-column names, and those of sequences "
                f"stand in {TABLE}"
            )
        raw = read_folder(source, header, allow_outside, label_columns)
    elif label_columns:
        raise SkipRNNError(f"{source} is no folder of CSV files, so it has no --label-column; its labels are y")
    else:
        raw = read_arrays(source, each_step)
    _check(raw, source)
    lengths = torch.tensor([len(sequence) for sequence in raw.sequences])
    ends = np.cumsum(lengths.numpy())

    def name_of(item: int) -> str:
        if not raw.labels.each_step:
            return raw.names[item]
        row = int(np.searchsorted(ends, item, side="right"))
        return f"{raw.names[row]}, step {item - (ends[row] - len(raw.sequences[row]))},"

    targets = recognise(raw.labels, task, name_of, source)
    rows = _rows(raw, targets.y if targets.task == CLASSES else None, val, test, seed, source)
    ragged, longest = len(set(lengths.tolist())) > 1, int(lengths.max())
    shape = (len(lengths), longest, raw.sequences[0].shape[1] + math.prod(targets.y.shape[1:]) * targets.each_step)
    check_fits(4 * math.prod(shape), f"sequences of shape {shape}, all as long as the longest,")
    x = pad_sequence([torch.from_numpy(sequence) for sequence in raw.sequences], batch_first=True)
    y = torch.from_numpy(targets.y)
    of_train = y[np.repeat(np.isin(np.arange(len(lengths)), rows["train"]), lengths if targets.each_step else 1)]
    made = _task(raw.sequences, targets, of_train, rows["train"])
    if targets.each_step:
        y = pad_sequence(list(torch.split(y, lengths.tolist())), batch_first=True)
    with sequences_writer(path, overwrite=overwrite) as writer:
        for split, part in rows.items():
            sequences = Sequences(x[part], y[part], lengths[part] if ragged else None)
            writer.write_split(split, len(part), [sequences])
        writer.finish({"task": made.name, **made.parameters(), "seed": seed, "source": source.name})
    sizes = {split: len(part) for split, part in rows.items()}
    instead = "" if task else raw.labels.instead
    return WrittenSequences(made, sizes, longest, raw.numeric_headers, targets.taken, instead)


def _check(raw: Raw, source: Path) -> None:
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


def _rows(
    raw: Raw, classes: npt.NDArray[Any] | None, val: float, test: float, seed: int, source: Path
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


def _task(sequences: Sequence[Floats], targets: Targets, training: Tensor, rows: npt.NDArray[np.int64]) -> Task:
    """The task, its numbers standardised by the training split: by ``rows`` of the sequences, and by their targets."""
    steps = np.concatenate([sequences[row] for row in rows]).astype(np.float64)
    features = {"features": steps.shape[1], **dict(zip(("mean", "std"), _moments(steps), strict=True))}
    if targets.task == CLASSES:
        return OwnClasses(**features, classes=targets.names)
    if targets.task == TAGS:
        return OwnTags(**features, classes=targets.names)
    if targets.task == LABELS:
        return OwnLabels(**features, labels=targets.names, each_step=targets.each_step)
    mean, std = _moments(training.double().numpy().reshape(-1, len(targets.names)))
    return OwnNumbers(
        **features, names=targets.names, each_step=targets.each_step, target_mean=mean, target_std=std
    )  # fmt: skip


def _moments(values: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean of each column, and its standard deviation, 1 where it is constant."""
    mean, std = values.mean(0), values.std(0)
    return tuple(mean.tolist()), tuple(np.where(std < SMALLEST, 1.0, std).tolist())
