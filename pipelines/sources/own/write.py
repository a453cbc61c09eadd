"""What was read of a user's own sequences, checked, split and written."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from pipelines.sources.own.fingerprint import fingerprint, how_of, stored_fingerprint
from pipelines.sources.own.forms import read
from pipelines.sources.own.labels import CLASSES, LABELS, NUMBERS, TAGS, Targets, recognise
from pipelines.sources.own.raw import How, Raw, column_name
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
    notes: tuple[str, ...]  # what the user should know: files that were left out, what else labels might be


def write_own(
    source: Path | Sequence[Path],
    path: Path,
    *,
    task: str | None = None,
    classes: bool | None = None,
    each_step: bool | None = None,
    label_columns: Sequence[str] = (),
    id_column: str | None = None,
    time_column: str | None = None,
    header: bool | None = None,
    allow_outside: bool = False,
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    overwrite: bool = False,
) -> WrittenSequences:
    """Write one's own sequences.

    Args:
        source: an .npz or HDF5 file with ``x`` (N, T, D), or (N, T) for one feature, and ``y``; sequences that differ
            in length either have ``lengths`` (N,) or follow each other in ``x`` (rows, D) with ``offsets`` (N + 1,);
            an optional ``split`` (N,) says train, val or test, optional ``columns`` (D,) names the features. Labels of
            sequences are ``y`` (N,), integers or strings for a class, floats for a number, or (N, K), integers of 0 and
            1 for several labels, floats for several numbers, with optional ``names`` (K,); labels of steps are the same
            with T after N, or with ``offsets`` (rows,) or (rows, K). Or a folder of CSV files, a sample a row, and a
            table labels.csv with the columns file and label, or instead of that several columns of 0 and 1 or of
            numbers, and perhaps split. Or one CSV or Parquet table with a row a sample. Or a .ts file; or, as two paths
            or in a folder, NAME_TRAIN.ts and NAME_TEST.ts.
        path: the HDF5 file to write.
        task: what the labels are, one of the names of ``labels.KINDS``; None goes by them.
        classes: whether they are classes, or else numbers; None goes by them.
        each_step: whether they are of the steps; None goes by the shape.
        label_columns: of the CSV files, which hold labels of the steps; labels.csv then need not be. Or of a table.
        id_column: of a table, which says which sequence a row is of.
        time_column: of a table, by which the rows of a sequence are sorted; None leaves them as they stand.
        header: whether the CSV files of a folder begin with one; None follows the rule of ``samples.csv_source``.
        allow_outside: read files outside the folder, too, where labels.csv names such.
        val, test: shares of the sequences, where no split is given; drawn class by class. Where one is given without
            val, that is drawn from train.
        seed: of the draw.
        overwrite: replace a file that exists.

    Raises:
        SkipRNNError: the source is missing, damaged or contradicts itself; or ``path`` cannot be written.
    """
    sources = _paths(source)
    shown = sources[0] if len(sources) == 1 else sources[0].parent
    how = How(each_step, tuple(label_columns), id_column, time_column, header, allow_outside)
    of_source = fingerprint(sources, path, how, _options(task, classes, val, test, seed))
    if how.each_step is None and task in (CLASSES, TAGS):
        how = replace(how, each_step=task == TAGS)
    raw = read(sources, how)
    _check(raw, shown)
    if classes is not None:
        task = (TAGS if raw.labels.each_step else CLASSES) if classes else NUMBERS
    lengths = torch.tensor([len(sequence) for sequence in raw.sequences])
    ends = np.cumsum(lengths.numpy())

    def name_of(item: int) -> str:
        if not raw.labels.each_step:
            return raw.names[item]
        row = int(np.searchsorted(ends, item, side="right"))
        return f"{raw.names[row]}, step {item - (ends[row] - len(raw.sequences[row]))},"

    targets = recognise(raw.labels, task, name_of, shown)
    rows = _rows(raw, targets.y if targets.task == CLASSES else None, val, test, seed, shown)
    ragged, longest = len(set(lengths.tolist())) > 1, int(lengths.max())
    shape = (len(lengths), longest, raw.sequences[0].shape[1] + math.prod(targets.y.shape[1:]) * targets.each_step)
    check_fits(4 * math.prod(shape), f"sequences of shape {shape}, all as long as the longest,")
    x = pad_sequence([torch.from_numpy(sequence) for sequence in raw.sequences], batch_first=True)
    y = torch.from_numpy(targets.y)
    of_train = y[np.repeat(np.isin(np.arange(len(lengths)), rows["train"]), lengths if targets.each_step else 1)]
    made = _task(raw, targets, of_train, rows["train"])
    if targets.each_step:
        y = pad_sequence(list(torch.split(y, lengths.tolist())), batch_first=True)
    with sequences_writer(path, overwrite=overwrite) as writer:
        for split, part in rows.items():
            sequences = Sequences(x[part], y[part], lengths[part] if ragged else None)
            writer.write_split(split, len(part), [sequences])
        writer.finish({"task": made.name, **made.parameters(), "seed": seed, "source": shown.name, **vars(of_source)})
    sizes = {split: len(part) for split, part in rows.items()}
    notes = (*raw.notes, "" if task else raw.labels.instead, targets.note)
    return WrittenSequences(made, sizes, longest, raw.numeric_headers, targets.taken, tuple(filter(None, notes)))


@dataclass(frozen=True)
class Earlier:
    """What a data file is to a source that is to be converted to it."""

    found: str  # "same": what would be written; "changed": of this source, but of other files or labels; "other"
    task: str | None  # what the labels are, as one says now, or said then
    classes: bool | None
    how: How  # as it was read then


def earlier(source: Path | Sequence[Path], path: Path, *, task: str | None, classes: bool | None) -> Earlier:
    """Hold a data file against a source that is to be converted to it, without other options than these.

    Where these say nothing, what was said when the file was made holds, and how the source is read is what it was then.
    """
    sources, then = _paths(source), stored_fingerprint(path)
    if then is None:
        return Earlier("other", task, classes, How())
    options = json.loads(then.source_options)
    said = (options.get("task"), options.get("classes"))
    task, classes = said if task is None and classes is None else (task, classes)
    how = how_of(options)
    now = fingerprint(sources, path, how, _options(task, classes))
    plain = json.dumps({**options, "task": task, "classes": classes}, sort_keys=True)
    if plain != now.source_options:
        found = "other"
    elif then.source_digest == now.source_digest and said == (task, classes):
        found = "same"
    else:
        found = "changed" if then.source_place == now.source_place else "other"
    return Earlier(found, task, classes, how)


def _paths(source: Path | Sequence[Path]) -> list[Path]:
    return [Path(source)] if isinstance(source, str | Path) else [Path(part) for part in source]


def _options(
    task: str | None, classes: bool | None, val: float = 0.15, test: float = 0.15, seed: int = 0
) -> dict[str, Any]:
    """The options that say what is made of what was read."""
    return {"task": task, "classes": classes, "val": val, "test": test, "seed": seed}


def _check(raw: Raw, source: Path) -> None:
    if not raw.sequences:
        raise SkipRNNError(f"{source} holds no sequences")
    if raw.splits is not None and len(raw.splits) != len(raw.sequences):
        raise SkipRNNError(f"{source}: there are {len(raw.splits)} splits for {len(raw.sequences)} sequences")
    for sequence, name in zip(raw.sequences, raw.names, strict=True):
        if sequence.size == 0:
            raise SkipRNNError(f"{source}: {name} is empty; leave it out")
        if not np.isfinite(sequence).all():
            step, feature = (int(place) for place in np.argwhere(~np.isfinite(sequence))[0])
            where = f"step {step}, {column_name(feature, raw.columns)}"
            raise SkipRNNError(f"{source}: {name} holds NaN or infinity at {where}; drop or fill it")
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
    draws = np.random.default_rng(derive_seed(seed, "own", "split"))
    if raw.splits is None or {*raw.splits} == {"train", "test"}:
        of_train = np.flatnonzero(chosen == "train")
        kinds = np.zeros(count) if classes is None else classes
        for kind in set(kinds[of_train].tolist()):
            group = of_train[kinds[of_train] == kind]
            order = draws.permutation(group)
            first = min(math.ceil(val * len(group)), len(group) - 1)  # of each class one at least is for training
            chosen[order[:first]] = "val"
            if raw.splits is None:
                second = min(math.ceil(test * len(group)), len(group) - 1 - first)
                chosen[order[first : first + second]] = "test"
    rows = {split: np.flatnonzero(chosen == split) for split in SPLITS}
    for split, part in rows.items():
        if len(part) == 0:
            raise SkipRNNError(f"{source}: {count} sequences leave none for {split}; give more, or their splits")
    return rows


def _task(raw: Raw, targets: Targets, training: Tensor, rows: npt.NDArray[np.int64]) -> Task:
    """The task, its numbers standardised by the training split: by ``rows`` of the sequences, and by their targets."""
    steps = np.concatenate([raw.sequences[row] for row in rows]).astype(np.float64)
    mean, std = _moments(steps)
    features: dict[str, Any] = {"features": len(mean), "mean": mean, "std": std, "columns": raw.columns}
    features["label_columns"] = (targets.each_step and raw.labels.names) or ()
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
