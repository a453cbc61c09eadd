"""``train``: one loop, read from top to bottom."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pipelines.data.sequences import DataFile, Sequences, Split, mean_steps
from pipelines.errors import SkipRNNError
from pipelines.parallel.devices import choose_device
from pipelines.parallel.team import ALONE, Team
from pipelines.runs import budgets, checkpoints, collapse, directory
from pipelines.runs.batches import batches_after
from pipelines.runs.captured import CapturedSteps, why_not
from pipelines.runs.checkpoints import MEASURED, Checkpoint, Progress, check_tensors, load_checkpoint, save_checkpoint
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import load_config, lock_run
from pipelines.runs.edits import Edits, accept_edits, edits_of_run, refuse_edits
from pipelines.runs.evaluation import evaluate
from pipelines.runs.logs import Logs
from pipelines.runs.model import autocast, build_model, check_network
from pipelines.runs.prices import check_prices, prices
from pipelines.runs.schedules import learning_rate, share_of_lam
from pipelines.seeds import derive_seed
from pipelines.tasks import Task, load_data, task_of_attributes
from skiprnn import budget_loss, used_samples, weighted_budget_loss
from skiprnn.networks import SequenceModel

CHECK_EVERY = 100  # steps between looks for a loss that is not finite
NONE_USED = torch.zeros(())  # a share of the samples, where λ does not depend on it


@dataclass(frozen=True)
class Report:
    """What the loop tells whoever watches; ``record`` is a line of metrics.jsonl, present at evaluations."""

    step: int
    total_steps: int
    seconds: float
    record: dict[str, Any] | None = None
    warning: str | None = None  # that the gate has shut, a log failed, or λ will not be reached
    metric_name: str = "metric"


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    run: Path
    step: int
    total_steps: int
    reason: str  # "finished", "patience", "collapsed" or "interrupted"
    best_step: int
    remedy: str | None = None  # where the gate has shut
    missed: str | None = None  # what was asked of metric or usage and not reached, with the remedy


def train(
    run: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Report], None] = lambda report: None,
    log: Sequence[str] = (),
    accept: bool = False,
    team: Team = ALONE,
) -> Outcome:
    """Train the run in a directory, from its last checkpoint if it has one.

    On the CPU a run that was interrupted, however often, ends with the very weights of one that was not.

    Args:
        run: a directory made by ``directory.create_run``.
        should_stop: asked after each step; when true the run saves itself and returns.
        on_progress: called after each step.
        log: where evaluations go besides metrics.jsonl, names of ``logs.KINDS``; each needs the extra of its name.
        accept: take what was edited by hand in the run's files since its checkpoint, and record it.
        team: the processes that train together, each of which calls this.

    Returns:
        Why it ended, at which step, and which step has the best checkpoint.

    Raises:
        SkipRNNError: the run is in use, its files or data cannot be read or written, something in them was edited by
            hand, or the loss is no longer finite.
    """
    with lock_run(run) if team.is_first else nullcontext(), ExitStack() as ending:
        if team.is_first:
            directory.remove_leftovers(run)
        config = load_config(run)
        device = team.device(config.device)
        check_network(config, device)
        if config.cuda_graph and team.size > 1:
            raise SkipRNNError("--cuda-graph is for one process, which shares nothing within a step; drop it")
        task, data = load_training_data(config)
        splits = {name: sequences.to(device) for name, sequences in data.splits.items()}
        last_step = total_steps(config, splits)

        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = build_model(config, task)
        if config.memory is not None:
            model.rnn.remember(config.memory)
        model = model.to(device).train()
        task.initialize(model.embedding, data.extra)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        described = {"task": task.name, **task.parameters()}
        progress = Progress(step=0, data_digest=data.attributes["digest"], task=described)
        edits: Edits = {}
        if not team.is_first:
            team.wait()  # for the first to have a checkpoint
        if checkpoints.has_checkpoint(run, "last"):
            saved = load_checkpoint(run, "last")
            progress = saved.progress
            if progress.data_digest != data.attributes["digest"]:
                raise SkipRNNError(f"{config.data} is not the data {run} was trained on; name that with --data")
            if progress.task is not None and task_of_attributes(progress.task, run) != task:
                raise SkipRNNError(f"{config.data} describes its task otherwise than when {run} began; restore it")
            progress.task = described
            edits = edits_of_run(run, config, progress)
            if not accept:
                refuse_edits(run, edits)
            _restore(run, "last", saved, model, optimizer)
        elif checkpoints.has_checkpoint(run, "best"):
            raise SkipRNNError(f"{run} has lost its checkpoint last.json; train the run again")
        else:
            save_checkpoint(run, ("last",), _checkpoint(progress, config, model, optimizer))
        if team.is_first:
            directory.record_task(run, described)
            if "words" in data.extra:
                directory.record_words(run, data.extra["words"])
            directory.forget_outcome(run)
            directory.record_environment(run, config, progress.step, edits)
            if accept:
                accept_edits(run, config)
            directory.rewind_metrics(run, progress.step)
            progress.metrics_digest = directory.metrics_digest(run, progress.step)
            team.wait()
        logs = Logs(log if team.is_first else (), run, config, progress.step)
        ending.callback(logs.close, "failed")  # unless they are closed below

        batches = batches_after(progress.step, config, task, splits, device, team)
        sums = torch.tensor(progress.sums, device=device, dtype=torch.float64)
        grad_norm_max = torch.tensor(progress.grad_norm_max, device=device, dtype=torch.float64)
        budget = budgets.Budget(config, progress)
        watch = collapse.Watch.over(task, splits["val"]) if config.skip else None
        started = time.monotonic() - progress.seconds
        steps = None
        if config.cuda_graph and why_not(config, device) is None:

            def differentiate(batch: Sequences, lam: Tensor, share: Tensor) -> Tensor:
                return _differentiate(model, task, batch, config, lambda usage: lam, share)

            steps = CapturedSteps(differentiate, model.parameters(), config.batch_size)
        reason = _reason_to_end(config, progress, last_step)
        if config.lam and config.lam_warmup > last_step > progress.step:
            too_short = (
                f"λ rises over {config.lam_warmup:,} steps and training ends after {last_step:,}, at "
                f"{share_of_lam(config, last_step):.0%} of it; lower --lam-warmup, or train longer"
            )
            on_progress(Report(progress.step, last_step, progress.seconds, warning=too_short))
        while progress.step < last_step and reason == "finished":
            progress.step += 1
            batch = next(batches)  # before the seed: a loader that starts draws from torch's generator
            torch.manual_seed(derive_seed(config.seed, "step", progress.step, *([team.rank] if team.rank else [])))
            optimizer.param_groups[0]["lr"] = progress.lr_scale * learning_rate(config, progress.step, last_step)
            share = share_of_lam(config, progress.step)
            measured = _step(model, optimizer, task, batch, config, budget.cost, share, team, steps)
            sums += measured
            grad_norm_max = torch.maximum(grad_norm_max, measured[MEASURED.index("grad_norm")])

            record, warning, is_best = None, None, False
            if progress.step % config.eval_every == 0 or progress.step == last_step:
                result = evaluate(model, task, splits["val"], config, team)
                _check_finite([*sums.tolist(), result.loss], progress.step, run)
                means = dict(zip(MEASURED, (sums[:-1] / sums[-1]).tolist(), strict=True))
                means["grad_norm_max"] = grad_norm_max.item()
                sums.zero_()
                grad_norm_max.zero_()
                objective = budgets.objective(config, task, result, mean_steps(splits["val"]))
                is_best = objective < progress.best_objective
                progress.evaluations_since_best += 1
                if is_best:
                    progress.best_objective, progress.best_step = objective, progress.step
                    progress.evaluations_since_best = 0
                record = {
                    "step": progress.step,
                    "seconds": round(time.monotonic() - started, 3),
                    "train": means,
                    "val": {**asdict(result), "objective": objective},
                }
                if config.epochs is not None:
                    record["epoch"] = progress.step / steps_of_epoch(config, splits)
                budget.save(progress)
                if progress.lam is not None:
                    record["lam"] = progress.lam
                holds = budgets.holds(config, task, result.metric)
                budget.note(holds)
                progress.lost_evaluations = 0 if holds else progress.lost_evaluations + 1
                if watch is not None:
                    watch.note(result, progress)
                    warning = watch.warning(config, progress, last_step, result)
                    if collapse.has_collapsed(progress):
                        record["collapsed"] = True
                    if collapse.may_rewind(config, progress, last_step):
                        record["rewound_to"] = progress.best_step
                        _rewind(run, progress, model, optimizer)
                if budgets.is_lost(config, progress) and progress.step < last_step:
                    warning = budgets.back(config, progress, task.metric_name)
                    record["rewound_to"] = progress.best_step
                    _rewind(run, progress, model, optimizer)
                if team.is_first:
                    progress.metrics_digest = directory.append_metrics(run, record, progress.metrics_digest)
                logs.write(record)
                reason = _reason_to_end(config, progress, last_step)
            elif progress.step % CHECK_EVERY == 0:
                _check_finite(sums.tolist(), progress.step, run)
            stopping = team.any(should_stop())
            if record is not None or stopping:
                progress.sums, progress.grad_norm_max = sums.tolist(), grad_norm_max.item()
                _check_finite(progress.sums, progress.step, run)
                progress.seconds = time.monotonic() - started
                budget.save(progress)
                names = ("best", "last") if is_best else ("last",)  # last is what a resumed run believes: write it last
                if team.is_first:
                    save_checkpoint(run, names, _checkpoint(progress, config, model, optimizer))
            warnings = [said for said in (warning, logs.failures()) if said is not None]
            seconds, said = time.monotonic() - started, "; ".join(warnings) or None
            on_progress(Report(progress.step, last_step, seconds, record, said, task.metric_name))
            if stopping and progress.step < last_step:
                reason = "interrupted"
        logs.close(reason)
        if (said := logs.failures()) is not None:
            on_progress(Report(progress.step, last_step, time.monotonic() - started, warning=said))
        remedy = collapse.remedy(config, progress) if collapse.has_collapsed(progress) else None
        missed = None
        if reason != "interrupted" and team.is_first:
            records = {record["step"]: record["val"] for record in directory.read_metrics(run)}
            if (best := records.get(progress.best_step)) is not None:
                usage = best["used_mean"] / max(mean_steps(splits["val"]), 1)
                missed = budgets.missed(config, task, best["metric"], usage)
        outcome = Outcome(Path(run), progress.step, last_step, reason, progress.best_step, remedy, missed)
        if reason != "interrupted" and team.is_first:
            directory.record_outcome(run, {"reason": reason, "step": progress.step, "best_step": progress.best_step})
        return outcome


def load_training_data(config: TrainConfig) -> tuple[Task, DataFile]:
    """The task and the splits that training reads.

    Raises:
        SkipRNNError: they cannot be read.
    """
    splits = ("val",) if config.fresh_batches else ("train", "val")
    task, data = load_data(Path(config.data), config.task, splits, true_lengths=config.true_lengths)
    check_prices(config, data.splits["val"])
    return task, data


def change_run(run: Path, *, accept: bool = False, **changes: Any) -> None:
    """Change how long a run trains, on what device, or where its data lies, before it goes on.

    Args:
        run: the run directory.
        accept: as for ``train``.
        changes: fields of the configuration.

    Raises:
        SkipRNNError: a change is impossible, or the run was edited by hand; it is as it was.
    """
    with lock_run(run):
        config = replace(load_config(run), **changes)
        choose_device(config.device)
        _, data = load_training_data(config)
        if checkpoints.has_checkpoint(run, "last"):
            progress = load_checkpoint(run, "last").progress
            if not accept:
                refuse_edits(run, edits_of_run(run, config, progress))
            if progress.data_digest != data.attributes["digest"]:
                raise SkipRNNError(f"{config.data} is not the data {run} was trained on")
            last_step = total_steps(config, data.splits)
            if last_step < progress.step:
                raise SkipRNNError(f"{run} is at step {progress.step} already, beyond the {last_step} asked for")
        directory.extend_run(run, **changes)


def total_steps(config: TrainConfig, splits: Mapping[str, Split]) -> int:
    """Updates of the weights that a configuration asks for."""
    if config.steps is not None:
        return config.steps
    return (config.epochs or 0) * steps_of_epoch(config, splits)


def steps_of_epoch(config: TrainConfig, splits: Mapping[str, Split]) -> int:
    """Updates of the weights of a pass over the train split."""
    return math.ceil(len(splits["train"]) / config.batch_size)


def _step(
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    task: Task,
    batch: Sequences,
    config: TrainConfig,
    cost: budgets.Cost,
    lam_share: float = 1.0,
    team: Team = ALONE,
    captured: CapturedSteps | None = None,
) -> Tensor:
    """One update of the weights; returns MEASURED and 1, to be summed, on the device, so that nothing waits for it.

    What is measured has the whole λ, also where only a share of it acts.
    """
    if captured is not None and captured.take(batch):
        means = captured.run(batch, cost(NONE_USED), lam_share)
    else:
        optimizer.zero_grad()
        means = _differentiate(model, task, batch, config, cost, lam_share, team)
    team.sum_gradients(model.parameters())
    grad_norm = clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return torch.cat([team.sum(means), grad_norm.detach().double()[None], means.new_ones(1)])


def _differentiate(
    model: SequenceModel,
    task: Task,
    batch: Sequences,
    config: TrainConfig,
    cost: budgets.Cost,
    lam_share: float | Tensor,
    team: Team = ALONE,
) -> Tensor:
    """The loss of a batch and its gradients; returns what is measured but the gradients' norm."""
    device = batch.x.device
    share = 1.0  # of the joint batch
    if team.size > 1:
        share = len(batch) / float(team.sum(torch.tensor(float(len(batch)))))
    means = torch.zeros(len(MEASURED) - 1, dtype=torch.float64, device=device)
    used = steps = torch.zeros((), device=device)  # of a sequence of this process, if it has any
    if len(batch):
        if config.skip:  # a sequence's loss is this part of the one that is differentiated
            rnn: Any = model.rnn
            rnn.gate_grad_clip = None if config.gate_clip is None else config.gate_clip * share / len(batch)
        with autocast(config, device):
            prediction, update_gate = model(batch.x, batch.lengths)
        used = used_samples(update_gate.detach(), batch_first=True).mean()
        steps = torch.full_like(used, update_gate.shape[1]) if batch.lengths is None else batch.lengths.double().mean()
    usage = used / steps
    if team.size > 1 and config.target_usage is not None:  # which λ goes by, so that all processes have the same
        joint_used, joint_steps = team.sum(torch.stack([used.double(), steps.double()]) * share)
        usage = (joint_used / joint_steps).to(usage.dtype)
    lam = cost(usage)
    if len(batch):
        task_loss = task.loss(prediction, batch.y, batch.lengths)
        if config.has_prices:
            budget = weighted_budget_loss(update_gate, lam, prices(config, batch.x), batch_first=True)
        else:
            budget = budget_loss(update_gate, lam, batch_first=True)
        loss = task_loss + budget
        acting = task_loss + budget * lam_share
        (acting if team.size == 1 else acting * share).backward()  # type: ignore[no-untyped-call]
        metric = task.metric(task.scores(prediction.detach(), batch.y, batch.lengths))
        measured = (loss, task_loss, budget, metric, used)
        means += torch.stack([value.detach().double() for value in measured]) * share
    return means


def measure_step(model: SequenceModel, task: Task, batch: Sequences, config: TrainConfig) -> None:
    """The work of one update, to be timed."""
    _step(model, torch.optim.SGD(model.parameters(), lr=0.0), task, batch, config, lambda usage: config.lam)


def _reason_to_end(config: TrainConfig, progress: Progress, last_step: int) -> str:
    """Why training ends before its last step; "finished" where it does not."""
    if collapse.gives_up(config, progress, last_step):
        return "collapsed"
    out_of_patience = config.patience is not None and progress.evaluations_since_best >= config.patience
    return "patience" if out_of_patience else "finished"


def _check_finite(values: list[float], step: int, run: Path) -> None:
    if not all(map(math.isfinite, values)):
        raise SkipRNNError(
            f"the loss or its gradient is not finite near step {step} of {run}; the checkpoints before are intact. "
            "Train again with a lower --lr, or with --amp off"
        )


def _checkpoint(
    progress: Progress, config: TrainConfig, model: SequenceModel, optimizer: torch.optim.Optimizer
) -> Checkpoint:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{key}.{names[index]}": tensor for key, tensor in state.items()}
    moment = replace(progress, config=asdict(config))
    return Checkpoint({name: tensor.cpu() for name, tensor in tensors.items()}, moment)


def _rewind(run: Path, progress: Progress, model: SequenceModel, optimizer: torch.optim.Optimizer) -> None:
    """Take the weights of the best checkpoint, half the learning rate, and patience anew; the step goes on."""
    saved = load_checkpoint(run, "best")
    if saved.progress.step != progress.best_step:
        raise SkipRNNError(
            f"the checkpoint 'best' of {run} is of step {saved.progress.step}, training's was of {progress.best_step}; "
            "restore it, or train the run again"
        )
    _restore(run, "best", saved, model, optimizer)
    progress.lr_scale /= 2
    progress.rewinds += 1
    progress.evaluations_since_best = progress.lost_evaluations = progress.shut_evaluations = progress.shut_since = 0


def _restore(run: Path, which: str, saved: Checkpoint, model: SequenceModel, optimizer: torch.optim.Optimizer) -> None:
    tensors = saved.tensors
    wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        kinds = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        prefixed = {key: f"optimizer.{key}.{name}" for key in kinds}
        if any(full in tensors for full in prefixed.values()):  # a parameter that had no gradient has no state
            wanted |= {full: kinds[key] for key, full in prefixed.items()}
            state[index] = {key: tensors.get(full, parameter) for key, full in prefixed.items()}
    check_tensors(tensors, wanted, f"the checkpoint {which!r} of {run}")
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
