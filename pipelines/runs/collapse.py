"""A gate that has shut: how training notices, what it says, and whether it goes back to before.

A shut gate hardly learns: the budget's gradient never points back, and the task's comes of one sample a sequence. It
shuts where the gradient explodes in single sequences, or where λ outweighs what samples are worth.
"""

from dataclasses import dataclass

from pipelines.data.sequences import Split, mean_steps
from pipelines.runs.checkpoints import REWINDS, Progress
from pipelines.runs.config import TrainConfig
from pipelines.runs.evaluation import Evaluation
from pipelines.tasks import Task

EVALUATIONS = 2  # in a row that find the gate shut and the metric lost, before it counts as collapsed


@dataclass(frozen=True)
class Watch:
    """What the evaluations of a run are held against."""

    task: Task
    chance: float  # the metric of the constant that does best on the validation split
    steps: float  # of a sequence there, mean

    @classmethod
    def over(cls, task: Task, split: Split) -> "Watch":
        """The watch over evaluations on a split."""
        return cls(task, task.chance(split.y, split.lengths), mean_steps(split))

    def is_shut(self, used: float) -> bool:
        """Whether of so many samples a sequence a gate uses hardly any: 1.05, or a twentieth of them."""
        return used <= max(1.05, 0.05 * self.steps) < self.steps

    def is_at_chance(self, metric: float) -> bool:
        """Whether a metric is nearly the constant's: nine tenths of its error, or a twentieth of what it lacks to 1."""
        if self.task.higher_is_better:
            return metric <= self.chance + 0.05 * (1 - self.chance)
        return metric >= 0.9 * self.chance

    def is_lost(self, metric: float, best: float) -> bool:
        """Whether a metric is at chance, or nearer to it than to the best that was."""
        return self.is_at_chance(metric) or abs(metric - self.chance) < abs(metric - best)

    def note(self, result: Evaluation, progress: Progress) -> None:
        """Count the evaluation of ``progress.step`` if the gate was shut, and those in a row with it."""
        better = max if self.task.higher_is_better else min
        before = result.metric if progress.best_metric is None else progress.best_metric
        progress.best_metric = better(result.metric, before)
        if not (self.is_shut(result.used_mean) and self.is_lost(result.metric, progress.best_metric)):
            progress.shut_evaluations = progress.shut_since = 0
            return
        progress.shut_evaluations += 1
        progress.shut_since = progress.shut_since or progress.step

    def warning(self, config: TrainConfig, progress: Progress, last_step: int, result: Evaluation) -> str | None:
        """What to say of an evaluation: once for a collapse, and whenever something is done about it."""
        if not has_collapsed(progress) or (config.on_collapse == "warn" and progress.shut_evaluations > EVALUATIONS):
            return None
        where = "at chance"
        if not self.is_at_chance(result.metric):
            where = f"nearer to chance, {self.chance:.4g}, than to its best, {progress.best_metric:.4g}"
        what = (
            f"the gate has shut: {result.used_mean:.1f} of {self.steps:.4g} samples used, and {self.task.metric_name} "
            f"{result.metric:.4g} is {where}, since step {progress.shut_since:,}"
        )
        if may_rewind(config, progress, last_step):
            return (
                f"{what}; going back to the weights of step {progress.best_step:,}, with half the learning rate "
                f"(rewind {progress.rewinds + 1} of {REWINDS})"
            )
        goes_on = "training stops" if gives_up(config, progress, last_step) else "it will hardly open again"
        return f"{what}; {goes_on}: {remedy(config, progress)}"


def has_collapsed(progress: Progress) -> bool:
    """Whether the gate was shut and the metric lost in the last evaluations."""
    return progress.shut_evaluations >= EVALUATIONS


def may_rewind(config: TrainConfig, progress: Progress, last_step: int) -> bool:
    """Whether a collapsed run, if it has steps left, goes back to its best checkpoint, which must be from before."""
    wanted = config.on_collapse == "rewind" and has_collapsed(progress) and progress.step < last_step
    return wanted and _can_go_back(progress) and progress.rewinds < REWINDS


def gives_up(config: TrainConfig, progress: Progress, last_step: int) -> bool:
    """Whether a run ends because it has collapsed."""
    return has_collapsed(progress) and config.on_collapse != "warn" and not may_rewind(config, progress, last_step)


def _can_go_back(progress: Progress) -> bool:
    return 0 < progress.best_step < progress.shut_since


def remedy(config: TrainConfig, progress: Progress) -> str:
    """What to do about a run that has collapsed."""
    ways = ["lower --lr"]
    if config.gate_clip is None:
        ways.append("bound the gate's gradient with --gate-clip 1")
    if config.lam:
        ways.append(f"lower --lam, if {config.lam:g} a sample outweighs the task")
    if config.on_collapse != "rewind" and _can_go_back(progress):
        ways.append("train with --on-collapse rewind")
    best = f"the best checkpoint is of step {progress.best_step:,}, before that"
    if not _can_go_back(progress):
        best = "no checkpoint is from before that"
    return f"{', or '.join(ways)}; {best}"
