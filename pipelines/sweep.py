"""``sweep`` and ``reproduce``: a grid of runs, each an ordinary run directory, trained wherever there is room.

A run that is finished is kept, one that was interrupted goes on, one that failed is tried again and then reported.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipelines.cluster import connected, map_tasks, require_ray
from pipelines.errors import SkipRNNError
from pipelines.evaluation import evaluate_run
from pipelines.model import build_model, choose_device
from pipelines.paper import table
from pipelines.presets import TrainConfig, configure
from pipelines.processes import Died, cores, pool
from pipelines.runs import create_run, load_config, load_outcome, read_metrics
from pipelines.storage import write_text
from pipelines.tasks import TASKS, Sine, SyntheticTask
from pipelines.training import load_training_data, measure_step, total_steps, train

ATTEMPTS = 2  # at a run that fails
RETRIES = 3  # of a run whose Ray worker died
RUNS_A_GPU = 4  # small models leave most of one idle


@dataclass(frozen=True)
class Planned:
    """A run of the grid."""

    path: Path
    config: TrainConfig


@dataclass(frozen=True)
class Finished:
    """What came of training a run; ``reason`` says why it failed."""

    planned: Planned
    reason: str | None = None


Results = Generator[tuple[Planned, str | None], None, None]
Engine = Callable[[Iterator[Planned]], Results]
"""Trains runs; yields each with why it failed, or None."""


def grid_of_table(
    task: str, preset: str, data: Path, seeds: Iterable[int], **options: Any
) -> list[TrainConfig]:  # fmt: skip
    """The configurations of one of the paper's tables.

    Args:
        task: adding, sine, mnist, imdb or ucf101.
        preset: quick or paper.
        data: folder of the data files.
        seeds: a run each.
        options: fields of the configuration that are to be other than the preset's.
    """
    return [
        configure(
            task, preset, data=str((data / f"{row.data}.h5").absolute()), cell=row.cell, skip=row.lam is not None,
            lam=row.lam or 0.0, p_skip=row.p_skip, seed=seed, **options,
        )
        for row in table(task)
        for seed in seeds
    ]  # fmt: skip


def grid(
    task: str, preset: str, cells: Iterable[str], lams: Iterable[float | None], seeds: Iterable[int], **options: Any
) -> list[TrainConfig]:
    """The configurations of one's own grid; a λ of None is the plain cell."""
    seeds = list(seeds)
    lams = list(lams)
    return [
        configure(task, preset, cell=cell, skip=lam is not None, lam=lam or 0.0, seed=seed, **options)
        for cell in cells
        for lam in lams
        for seed in seeds
    ]


def plan(out: Path, configs: Iterable[TrainConfig]) -> list[Planned]:
    """Where each configuration's run goes.

    Raises:
        SkipRNNError: a run is there with another configuration.
    """
    runs = []
    for config in configs:
        model = config.model_name.lower().replace(" ", "-").replace("=", "")
        gate = f"-lam{config.lam:g}" if config.skip else ""
        path = out / "runs" / f"{Path(config.data).stem}-{model}{gate}-seed{config.seed}"
        if path.exists():
            there = load_config(path)
            for field in fields(TrainConfig):
                old, new = getattr(there, field.name), getattr(config, field.name)
                if old != new:
                    raise SkipRNNError(
                        f"{path} was made with {field.name} {old}, not {new}; name another --out, or remove it"
                    )
        runs.append(Planned(path, config))
    return runs


def is_finished(run: Planned) -> bool:
    """Whether a run has been trained to its end."""
    return run.path.exists() and load_outcome(run.path) is not None


def train_all(runs: list[Planned], engine: Engine, on_finished: Callable[[Finished], None]) -> dict[str, str]:
    """Train the runs that are not finished.

    Args:
        runs: from ``plan``.
        engine: ``local`` or ``on_ray``.
        on_finished: called with each run that ends.

    Returns:
        Why runs failed, by path; those that did not are left out.
    """
    failed: dict[str, str] = {}
    wanted = [run for run in runs if not is_finished(run)]
    for _ in range(ATTEMPTS):
        with closing(engine(iter(wanted))) as results:
            for run, reason in results:
                failed.pop(str(run.path), None)
                if reason is not None:
                    failed[str(run.path)] = reason
                on_finished(Finished(run, reason))
        wanted = [run for run in wanted if str(run.path) in failed]
    return failed


def local(jobs: int | None = None) -> Engine:
    """Processes of this machine, by default one a CPU core, or four a GPU."""

    def run(runs: Iterator[Planned]) -> Results:
        first = next(runs, None)
        if first is None:
            return
        on_gpu = choose_device(first.config.device).type == "cuda"
        count = jobs or (RUNS_A_GPU * torch.cuda.device_count() if on_gpu else cores())
        with pool(count, train_one, threads=max(cores() // count, 1)) as processes:
            for planned, reason in processes.map(chain([first], runs)):
                yield planned, "its process died" if isinstance(reason, Died) else reason

    return run


def on_ray(jobs: int | None, address: str | None) -> Engine:
    """Tasks of a Ray cluster, a CPU core or a quarter of a GPU each; run directories lie on storage that all share.

    A run whose worker dies goes on from its last checkpoint on another.

    Raises:
        SkipRNNError: Ray is not installed; later, no cluster answers.
    """
    require_ray()

    def run(runs: Iterator[Planned]) -> Results:
        first = next(runs, None)
        if first is None:
            return
        with connected(address) as ray:
            there = ray.cluster_resources()
            gpus, share = int(there.get("GPU", 0)), {"num_cpus": 1.0}
            if gpus:
                share["num_gpus"] = 1 / RUNS_A_GPU
            at_once = jobs or gpus * RUNS_A_GPU or int(there.get("CPU", 1))
            for planned, said in map_tasks(
                ray, _train_one_on_ray, chain([first], runs), at_once=at_once, retries=RETRIES, **share
            ):
                died = isinstance(said, Exception)
                yield planned, f"its worker died ({' '.join(str(said).split())[:200]})" if died else said

    return run


def _train_one_on_ray(run: Planned) -> str | None:
    torch.set_num_threads(1)
    return train_one(run)


def synthetic_task(config: TrainConfig) -> SyntheticTask | None:
    """The task whose data file a configuration names, where it can be generated; None where not."""
    kind = TASKS[config.task]
    if not issubclass(kind, SyntheticTask):
        return None
    return Sine(sampling_period=0.5) if Path(config.data).stem == "sine-0.5ms" else kind()


def train_one(run: Planned) -> str | None:
    """Train a run, from where it was; why it failed, or None."""
    try:
        if not run.path.exists():
            create_run(run.path, run.config)
        train(run.path)
    except SkipRNNError as error:
        return str(error)
    return None


def evaluate_all(runs: list[Planned], on_progress: Callable[[int], None] = lambda count: None) -> list[dict[str, Any]]:
    """Evaluate finished runs on their test splits, one after the other, or take what is known of them.

    Returns:
        For each finished run its configuration, its evaluation, and the seconds its training took.
    """
    results = []
    for run in runs:
        outcome = load_outcome(run.path) if run.path.exists() else None
        if outcome is not None:
            results.append(_result(run, outcome))
        on_progress(1)
    return results


def _result(run: Planned, outcome: dict[str, Any]) -> dict[str, Any]:
    path = run.path / "result.json"
    if path.exists():
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if there["outcome"] == outcome:
            return there
    result = {
        "name": run.path.name,
        "config": asdict(run.config),
        "outcome": outcome,
        "training_seconds": read_metrics(run.path)[-1]["seconds"],
        "evaluation": asdict(evaluate_run(run.path)),
    }
    write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def estimate(configs: list[TrainConfig]) -> dict[TrainConfig, float | None]:
    """Seconds that training each configuration should take here, alone; None where its data is missing.

    A step of each kind of model is timed, as the gate is at first: open nearly everywhere.
    """
    known: dict[TrainConfig, float | None] = {}
    for config in configs:
        kind = replace(config, seed=0, lam=0.0)
        if kind not in known:
            known[kind] = _estimate(kind) if Path(config.data).exists() else None
    return {config: known[replace(config, seed=0, lam=0.0)] for config in configs}


def _estimate(config: TrainConfig) -> float:
    device = choose_device(config.device)
    task, data = load_training_data(config)
    model = build_model(config, task).to(device).train()
    steps = total_steps(config, data.splits)
    sequences = data.splits["val"].take(slice(config.batch_size)).to(device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        measure_step(model, task, sequences, config)
        seconds.append(time.perf_counter() - start)
    evaluations = math.ceil(steps / config.eval_every) * len(data.splits["val"]) / len(sequences) / 3
    return (steps + evaluations) * statistics.median(seconds[1:])
