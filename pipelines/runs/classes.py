"""What a run makes of each class: precision, recall, and how much it reads of what is of that class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.data.sequences import Split
from pipelines.tasks.base import ClassificationTask
from pipelines.tasks.measures import items


@dataclass(frozen=True)
class OfClass:
    """A class of a split: its sequences or, where each step has an answer, its steps."""

    name: str
    precision: float | None  # of those said to be of it, how many are; None where none is
    recall: float | None  # of those that are of it, how many are said to be; None where none is
    support: int  # how many are of it
    used_mean: float | None  # samples used of a sequence of it; None of steps, and where none is of it
    used_percent: float | None  # of its samples
    said: dict[str, int]  # how often what is of it is said to be of which class


def by_class(task: ClassificationTask, output: Tensor, gate: Tensor, sequences: Split) -> list[OfClass]:
    """The results of each class, in the task's order.

    Args:
        task: which classes there are.
        output: (N, K), or (N, T, K) where each step has an answer.
        gate: (N,) used samples of each sequence; or (N, T), which samples are used, where each step has an answer.
        sequences: the split.
    """
    names, lengths = [str(name) for name in task.classes], sequences.lengths
    ends = None if lengths is None else lengths.cpu()
    true, said, used = (
        items(values, ends, task.each_step) for values in (sequences.y.cpu(), output.cpu().argmax(-1), gate.cpu())
    )
    counts = (true * len(names) + said).bincount(minlength=len(names) ** 2).reshape(len(names), len(names))
    samples = torch.full_like(true, sequences.steps) if ends is None else ends
    samples = torch.ones_like(true) if task.each_step else samples
    right, support, found = (values.tolist() for values in (counts.diagonal(), counts.sum(1), counts.sum(0)))
    of_class = [torch.zeros(len(names), dtype=torch.float64).index_add_(0, true, v.double()) for v in (used, samples)]
    used_sums, sample_sums = (values.tolist() for values in of_class)
    return [
        OfClass(
            name=name,
            precision=_share(right[k], found[k]),
            recall=_share(right[k], support[k]),
            support=support[k],
            used_mean=None if task.each_step else _share(used_sums[k], support[k]),
            used_percent=None if not sample_sums[k] else 100 * used_sums[k] / sample_sums[k],
            said={other: count for other, count in zip(names, counts[k].tolist(), strict=True) if count},
        )
        for k, name in enumerate(names)
    ]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
