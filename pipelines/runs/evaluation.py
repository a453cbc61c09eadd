"""``evaluate``: how well a run does, how much it reads for it, and what that costs."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.data.sequences import Sequences, Split
from pipelines.errors import SkipRNNError
from pipelines.parallel.team import ALONE, Team
from pipelines.runs.classes import OfClass, by_class
from pipelines.runs.config import WITH_BASELINES, TrainConfig
from pipelines.runs.load import TrainedRun, load_run
from pipelines.runs.model import autocast, stream, without_skipping
from pipelines.runs.prices import prices
from pipelines.seeds import derive_seed
from pipelines.tasks import Task
from pipelines.tasks.base import ClassificationTask
from skiprnn import SkipRNN, compiled, used_cost, used_samples
from skiprnn.networks import ModelOutput, SequenceModel

TIMED_REPEATS = 5
TIMED_SEQUENCES = 32  # one at a time
SLOWER = 1.05  # times as long, from which on it is no chance of the clock
MOST_USED = 80  # percent of the samples, from which on there is little to save


@dataclass(frozen=True)
class Evaluation:
    """A model's results on a split."""

    loss: float  # without the budget
    metric: float
    used_mean: float  # samples a sequence
    used_std: float  # over the sequences
    price: float  # of a sequence's used samples, in units of λ


@dataclass(frozen=True)
class RunEvaluation:
    """What ``skiprnn evaluate`` says of a run."""

    run: str
    model: str
    task: str
    split: str
    checkpoint: str
    step: int
    sequences: int
    metric_name: str
    metric: float
    other_metrics: dict[str, float]
    solved: bool | None
    steps_per_sequence: float  # without padding, where sequences end where they end
    used_mean: float
    used_std: float
    used_percent: float
    cost: float  # multiply-accumulates a sequence, the paper's count
    cost_without_skipping: float
    device: str
    batch_size: int
    seconds_per_sequence: float  # at that batch size
    seconds_per_sequence_without_skipping: float
    seconds_alone: float | None  # one sequence at a time, reading what it uses; None where it skips at random
    seconds_alone_without_skipping: float
    columns_reordered: bool  # whether those of the data stood in another order than the run reads them in
    not_faster: str | None  # why skipping saves no time at that batch size, where it does not
    alone_not_faster: str | None  # the same of one sequence at a time
    by_class: list[OfClass]  # of tasks with classes
    sampled: bool = False  # whether the gate drew
    price: float | None = None  # of a sequence's used samples, in units of λ; None: each costs 1


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    device: str | None = None,
    sample: bool = False,
    seed: int | None = None,
) -> RunEvaluation:
    """Evaluate a trained run on a split of its data: metric, used samples, cost and time.

    Args:
        run: the run directory.
        split: "train", "val" or "test".
        checkpoint: "best" or "last".
        data: a data file instead of the run's own.
        device: a device instead of the run's own.
        sample: let a Bernoulli gate draw, as in training, instead of rounding.
        seed: of these draws; None: the run's.

    Raises:
        SkipRNNError: the run, its checkpoint or its data cannot be read; or the gate is to draw, and rounds always.
    """
    trained = load_run(run, split=split, checkpoint=checkpoint, data=data, device=device)
    config, task, model = trained.config, trained.task, trained.model
    sequences = trained.sequences
    if sample:
        _let_draw(model, run)
    torch.manual_seed(derive_seed(config.seed if seed is None else seed, "evaluate"))
    outputs: list[Tensor] = []
    gates: list[Tensor] = []

    def keep(said: ModelOutput) -> None:
        outputs.append(said.output.cpu())
        gates.append(said.update_gate.bool().cpu() if task.each_step else _used(said).cpu())

    result = evaluate(model, task, sequences, config, on_prediction=keep)
    output, gate = torch.cat(outputs), torch.cat(gates)
    ends = None if sequences.lengths is None else sequences.lengths.cpu()
    batch = sequences.take(slice(config.batch_size))
    steps = sequences.steps if sequences.lengths is None else sequences.lengths.double().mean().item()
    cost = model.cost_per_update() + task.sample_cost
    plain = without_skipping(model).eval()
    alone, plain_alone = _seconds_alone(model, plain, sequences.take(slice(TIMED_SEQUENCES)), config)
    seconds, plain_seconds = (_seconds(each, batch, config) / len(batch) for each in (model, plain))
    used_percent = 100 * result.used_mean / steps
    return RunEvaluation(
        run=str(run),
        model=config.model_name,
        task=task.name,
        split=split,
        checkpoint=checkpoint,
        step=trained.step,
        sequences=len(sequences),
        metric_name=task.metric_name,
        metric=result.metric,
        other_metrics=task.other_metrics(output, sequences.y.cpu(), ends),
        solved=task.solved(result.metric),
        steps_per_sequence=steps,
        used_mean=result.used_mean,
        used_std=result.used_std,
        used_percent=used_percent,
        cost=result.used_mean * cost,
        cost_without_skipping=steps * cost,
        device=str(trained.device),
        batch_size=len(batch),
        seconds_per_sequence=seconds,
        seconds_per_sequence_without_skipping=plain_seconds,
        seconds_alone=alone,
        seconds_alone_without_skipping=plain_alone,
        columns_reordered=trained.reordered,
        not_faster=_not_faster(config, used_percent, seconds, plain_seconds, batch.x.is_cuda),
        alone_not_faster=_alone_not_faster(trained, used_percent, alone, plain_alone),
        by_class=by_class(task, output, gate, sequences) if isinstance(task, ClassificationTask) else [],
        sampled=sample,
        price=result.price if config.has_prices else None,
    )


def _not_faster(config: TrainConfig, used_percent: float, seconds: float, plain: float, cuda: bool) -> str | None:
    """Why skipping takes longer than the plain cell; None where it hardly does, or nothing is skipped."""
    if seconds <= SLOWER * plain or not config.skip:
        return None
    if used_percent >= MOST_USED:
        return f"{used_percent:.0f} % of the samples are used, and deciding costs more than the few others save"
    if cuda:
        return (
            f"with {config.hidden_size} units a step is so short on a GPU that starting it, not computing it, takes "
            "the time"
        )
    if config.cell not in WITH_BASELINES:
        return f"the cell {config.cell} has no compiled code: it is computed step by step in torch operations"
    if compiled.LIBRARY is None:
        return "the compiled code was not built, and torch operations step by step cost more than is saved"
    return f"with {config.hidden_size} units a step is so cheap that deciding whether to make it costs as much"


def _alone_not_faster(trained: TrainedRun, used_percent: float, seconds: float | None, plain: float) -> str | None:
    if seconds is not None and seconds > SLOWER * plain and trained.task.each_step:
        return "there is an answer to each sample used, and each is a call of its own"
    on_gpu = trained.device.type == "cuda"
    return None if seconds is None else _not_faster(trained.config, used_percent, seconds, plain, on_gpu)


def _used(said: ModelOutput) -> Tensor:
    return used_samples(said.update_gate, batch_first=True)


def _let_draw(model: SequenceModel, run: Path) -> None:
    rnn = model.rnn
    if not isinstance(rnn, SkipRNN) or rnn.gate == "round":
        raise SkipRNNError(
            f"{run} has no gate that draws, so --sample has nothing to act on; drop it, or train with --gate bernoulli"
        )
    rnn.draw_in_eval()


@torch.inference_mode()
def evaluate(
    model: SequenceModel,
    task: Task,
    sequences: Split,
    config: TrainConfig,
    team: Team = ALONE,
    on_prediction: Callable[[ModelOutput], object] = lambda prediction: None,
) -> Evaluation:
    """Loss, metric and used samples of a model over sequences on its device, each process doing its part of them.

    ``on_prediction`` is given what the model says of this process's part, batch by batch.
    """
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    rows, size = team.part(len(sequences)), 4 * config.batch_size
    training = model.training
    model.eval()
    try:
        for start in range(rows.start, rows.stop, size):
            batch = sequences.take(slice(start, min(start + size, rows.stop)))
            with autocast(config, sequences.device):
                prediction = model(batch.x, batch.lengths)
            said = (prediction.output, batch.y, batch.lengths)
            loss, scores = task.loss(*said), task.scores(*said)
            on_prediction(prediction)
            spent = used_cost(prediction.update_gate, prices(config, batch.x), batch_first=True)
            found.append((loss * len(batch), scores, _used(prediction), spent))
    finally:
        model.train(training)
    if team.size > 1:
        mine = [(loss.cpu(), scores.cpu(), used.cpu(), spent.cpu()) for loss, scores, used, spent in found]
        found = [of_batch for part in team.gather(mine) for of_batch in part]
    losses, metrics, counts, spendings = zip(*found, strict=True)
    used = torch.cat(counts).double()
    return Evaluation(
        loss=torch.stack(losses).double().sum().item() / len(sequences),
        metric=task.metric(torch.cat(metrics)).item(),
        used_mean=used.mean().item(),
        used_std=used.std(correction=0).item(),
        price=torch.cat(spendings).double().mean().item(),
    )


@torch.inference_mode()
def _seconds(model: SequenceModel, batch: Sequences, config: TrainConfig) -> float:
    """Median wall-clock of a forward pass."""
    seconds = []
    for _ in range(1 + TIMED_REPEATS):
        start = time.perf_counter()
        with autocast(config, batch.x.device):
            model(batch.x, batch.lengths)
        if batch.x.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@torch.inference_mode()
def _seconds_alone(
    model: SequenceModel, plain: SequenceModel, sequences: Sequences, config: TrainConfig
) -> tuple[float | None, float]:
    """Median wall-clock of one sequence in float32: through a stream, and of the plain cell over all of it."""
    config = replace(config, amp="off")
    alone = [x[:end] for x, end in zip(sequences.x, sequences.ends(), strict=True) if end]
    plain_seconds = statistics.median(_seconds(plain, Sequences(x[None], x[:0]), config) for x in alone)
    if config.p_skip:
        return None, plain_seconds
    follower, seconds = stream(model), []
    for _ in range(1 + TIMED_REPEATS):
        for x in alone:
            start = time.perf_counter()
            follower.reset()
            if model.each_step:  # a prediction after each update
                for _, prediction in follower.pull(x.__getitem__, len(x)):
                    prediction.cpu()
            else:
                follower.feed(model.embedding(x))
                follower.prediction.cpu()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[len(alone) :]), plain_seconds
