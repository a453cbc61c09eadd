"""λ, the loss of a sample: given, or found while training, for a metric to keep or a share of the samples to use."""

from collections.abc import Callable

from torch import Tensor

from pipelines.runs.checkpoints import REWINDS, Progress
from pipelines.runs.config import TrainConfig
from pipelines.runs.evaluation import Evaluation
from pipelines.tasks import Task
from skiprnn.budget import NEAR, MetricCost, UsageCost

START = 1e-5  # λ at first where it is found and none was given
MISSED = 1e3  # of an objective, more than any loss
LOST = 10  # evaluations in a row that do not keep the metric, before training goes back to one that did

Cost = Callable[[Tensor], "float | Tensor"]
"""λ of a training step, from the share of its batch's samples that is used."""


class Budget:
    """λ of a run, step by step."""

    def __init__(self, config: TrainConfig, progress: Progress) -> None:
        first = config.lam or START
        self._given = config.lam
        self._keep: MetricCost | None = None
        self._usage: UsageCost | None = None
        if config.keep is not None:
            self._keep = MetricCost(first)
            self._keep.cost_per_sample = progress.lam or first
        elif config.target_usage is not None:
            self._usage = UsageCost(config.target_usage, progress.lam or first)

    def cost(self, usage: Tensor) -> float | Tensor:
        """λ of a training step whose batch uses such a share of its samples."""
        if self._keep is not None:
            return self._keep.cost_per_sample
        return self._given if self._usage is None else self._usage.cost_per_sample(usage)

    def save(self, progress: Progress) -> None:
        """Leave with a checkpoint what goes on from there needs."""
        if self._keep is not None:
            progress.lam = self._keep.cost_per_sample
        elif self._usage is not None:
            progress.lam = self._usage.largest.item()

    def note(self, holds: bool) -> None:
        """Go on after an evaluation."""
        if self._keep is not None:
            self._keep.note(holds)


def holds(config: TrainConfig, task: Task, metric: float) -> bool:
    """Whether a metric is as good as is to be kept, if any is."""
    if config.keep is None:
        return False
    return metric >= config.keep if task.higher_is_better else metric <= config.keep


def is_lost(config: TrainConfig, progress: Progress) -> bool:
    """Whether a metric that was to be kept, and was, has not been for so long that training goes back to then."""
    was_kept = config.keep is not None and progress.best_objective < MISSED
    return was_kept and progress.lost_evaluations >= LOST and progress.rewinds < REWINDS


def back(config: TrainConfig, progress: Progress, metric_name: str) -> str:
    """What to say where training goes back because the metric is lost."""
    return (
        f"{metric_name} was not kept at {config.keep:g} for {progress.lost_evaluations} evaluations; going back to "
        f"the weights of step {progress.best_step:,}, with half the learning rate (rewind {progress.rewinds + 1} of "
        f"{REWINDS})"
    )


def usage_of(result: Evaluation, steps: float) -> float:
    """The share of the samples used, of sequences of so many steps."""
    return result.used_mean / max(steps, 1)


def objective(config: TrainConfig, task: Task, result: Evaluation, steps: float) -> float:
    """What the best checkpoint has least of, from an evaluation on sequences of so many steps.

    Where λ is given, what training minimises; else the usage of those that keep the metric, or the loss of those that
    are near the wanted usage, before all others.
    """
    usage = usage_of(result, steps)
    if config.keep is not None:
        return usage if holds(config, task, result.metric) else MISSED + result.loss
    if config.target_usage is not None:
        off = abs(usage / config.target_usage - 1)
        return result.loss if off <= NEAR else MISSED + off
    return result.loss + config.lam * result.price
