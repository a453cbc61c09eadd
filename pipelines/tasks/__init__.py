"""The tasks, by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.data.columns import order_of
from pipelines.data.features import read_features
from pipelines.data.schema import FEATURES, read_attributes, schema_of
from pipelines.data.sequences import DataFile, Sequences, read_sequences
from pipelines.errors import SkipRNNError
from pipelines.tasks.adding import Adding
from pipelines.tasks.base import SyntheticTask, Task
from pipelines.tasks.imdb import Imdb
from pipelines.tasks.mnist import Mnist
from pipelines.tasks.own import OwnClasses, OwnLabels, OwnNumbers, OwnTags
from pipelines.tasks.sine import Sine
from pipelines.tasks.videos import Ucf101, Videos

_KINDS = (Adding, Sine, Mnist, Imdb, Ucf101, Videos, OwnClasses, OwnTags, OwnLabels, OwnNumbers)
TASKS: dict[str, type[Task]] = {task.name: task for task in _KINDS}

__all__ = [
    "TASKS", "Adding", "Imdb", "Mnist", "OwnClasses", "OwnLabels", "OwnNumbers", "OwnTags", "Sine", "SyntheticTask",
    "Task", "Ucf101", "Videos", "load_data", "task_of_attributes", "task_of_file",
]  # fmt: skip


def task_of_file(path: Path, expected: str | None = None) -> Task:
    """The task, with its parameters, that a data file was made for.

    Raises:
        SkipRNNError: the file cannot be read, or is not of the ``expected`` task.
    """
    return task_of_attributes(read_attributes(path), path, expected)


def task_of_attributes(attributes: dict[str, Any], path: Path, expected: str | None = None) -> Task:
    """The task that the attributes found in ``path`` describe.

    Raises:
        SkipRNNError: they describe none, or not the ``expected`` one.
    """
    name = attributes.get("task")
    if expected is not None and name != expected:
        raise SkipRNNError(
            f"{path} holds data for the task {name}, not {expected}; pass --task {name} or another --data"
        )
    if not isinstance(name, str) or name not in TASKS:
        raise SkipRNNError(f"{path} holds data for the unknown task {name}; this skiprnn knows {', '.join(TASKS)}")
    try:
        return TASKS[name].from_attributes(attributes)
    except ValueError as error:
        raise SkipRNNError(f"{path} does not describe the task {name} properly: {error}; generate it again") from error


def load_data(
    path: Path,
    expected: str | Task,
    splits: tuple[str, ...],
    *,
    true_lengths: bool = False,
    rows: slice | None = None,
) -> tuple[Task, DataFile]:
    """A data file's task and some of its splits.

    Args:
        path: the data file.
        expected: the task's name, or the task that a run was trained on, of whose kind the data must be.
        splits: of train, val and test.
        true_lengths: keep the lengths of the sequences; otherwise padding is part of them.
        rows: read these sequences of each split only; features stay in their file anyway, and all are returned.

    Returns:
        The data file's task, and the splits, whose columns are in the order of the task that the run was trained on.

    Raises:
        SkipRNNError: the file cannot be read, or does not hold sequences of the ``expected`` task.
    """
    task = task_of_file(path, expected if isinstance(expected, str) else expected.name)
    order = None if isinstance(expected, str) else order_of(expected.columns, task.columns, path)
    for field in () if isinstance(expected, str) else expected.meaning:
        ours, theirs = getattr(expected, field), getattr(task, field)
        if ours != theirs:
            raise SkipRNNError(f"{path} has {field} {theirs}, the run was trained on {ours}; name other --data")
    data = read_features(path, splits) if schema_of(path) == FEATURES else read_sequences(path, splits, rows)
    for name, sequences in data.splits.items():
        try:
            task.check(sequences)
            wanted = ((sequences.steps,) if task.each_step else ()) + task.target_shape
            if sequences.y.shape[1:] != wanted:
                raise SkipRNNError(f"y must be {(len(sequences), *wanted)}, got {tuple(sequences.y.shape)}")
        except SkipRNNError as error:
            raise SkipRNNError(f"{path}, split {name}: {error}; generate it again with --overwrite") from error
        known = sequences
        if order is not None and isinstance(sequences, Sequences):
            known = replace(sequences, x=sequences.x[..., order])
        data.splits[name] = known if true_lengths else task.with_padding(known)
    return task, replace(data, reordered=order is not None)
