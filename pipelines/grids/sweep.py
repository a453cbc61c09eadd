"""``sweep`` and ``reproduce``: a grid of runs, each an ordinary run directory, trained wherever there is room.

A run that is finished is kept, one that was interrupted goes on, one that failed is tried again and then reported.
"""

import math
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pipelines.data.doors import read_json, reading
from pipelines.data.fields import check_fields
from pipelines.data.files import write_json, write_text
from pipelines.data.schema import read_attributes
from pipelines.errors import SkipRNNError
from pipelines.grids.paper import DATA_SETS, only_in_figures, table
from pipelines.parallel.cluster import connected, map_on_actors, require_ray
from pipelines.parallel.devices import choose_device
from pipelines.parallel.processes import cores, map_in_processes
from pipelines.runs.cells import import_cell
from pipelines.runs.config import DEFAULT_SIZES, TrainConfig, configure, is_own_cell
from pipelines.runs.directory import JSON_BYTES, create_run, load_config, load_outcome, load_task, read_metrics
from pipelines.runs.evaluation import RunEvaluation, evaluate_run
from pipelines.runs.model import build_model, check_network
from pipelines.runs.training import load_training_data, measure_step, total_steps, train
from pipelines.sources.synthetic import generate
from pipelines.tasks import SyntheticTask

ATTEMPTS = 2  # at a run that fails
RETRIES = 3  # of a run whose actor died
RUNS_A_GPU = 4  # small models leave most of one idle


@dataclass(frozen=True)
class Planned:
    """A run of the grid."""

    path: Path
    config: TrainConfig


Endings = Generator[tuple[Planned, str | None], None, None]
Executor = Callable[[list[Planned]], Endings]
"""Trains runs; yields each with why it failed, or None."""


def grid_of_table(
    task: str, preset: str, data: Path, seeds: Iterable[int], *, figures: bool = False, **options: Any
) -> list[TrainConfig]:
    """The configurations of one of the paper's tables.

    Args:
        task: adding, sine, mnist, imdb or ucf101.
        preset: quick, settled or paper.
        data: folder of the data files.
        seeds: a run each.
        figures: with the models that only the task's figures show.
        options: fields of the configuration that are to be other than the preset's.
    """
    return [
        _config(
            task, preset, row.cell, row.lam, options, p_skip=row.p_skip, seed=seed,
            data=str((data / f"{row.data.name}.h5").absolute()),
        )
        for row in [*table(task), *(only_in_figures(task) if figures else ())]
        for seed in seeds
    ]  # fmt: skip


def grid(
    task: str, preset: str, cells: Iterable[str], lams: Iterable[float | None], seeds: Iterable[int], **options: Any
) -> list[TrainConfig]:
    """The configurations of one's own grid: each cell with each λ and seed.

    Args:
        task, preset: as for ``runs.config.configure``.
        cells: names, as of ``TrainConfig.cell``.
        lams: λ, the loss of using one sample; None is the plain cell.
        seeds: a run each.
        options: fields of the configuration that are to be other than the preset's; ``data`` among them.

    Raises:
        SkipRNNError: as for ``runs.config.configure``.
    """
    return [_config(task, preset, cell, lam, options, seed=seed) for cell, lam, seed in product(cells, lams, seeds)]


def _config(
    task: str, preset: str, cell: str, lam: float | None, options: dict[str, Any], **others: Any
) -> TrainConfig:
    """A model's configuration, with a grid's options; that of how a GRU resets is for those that learn a gate alone."""
    fitting = options if cell == "gru" and lam is not None else {k: v for k, v in options.items() if k != "reset_after"}
    return configure(task, preset, cell=cell, skip=lam is not None, lam=lam or 0.0, **fitting, **others)


def plan(out: Path, configs: Iterable[TrainConfig]) -> list[Planned]:
    """Where each configuration's run goes.

    Args:
        out: the folder of the sweep; runs go to ``out/runs``, under names that say what they are.
        configs: from ``grid`` or ``grid_of_table``.

    Returns:
        The runs, of which nothing is written yet.

    Raises:
        SkipRNNError: a run is there with another configuration, or two would be one.
    """
    runs: list[Planned] = []
    for config in configs:
        gate = f"-lam{config.lam:g}" if config.skip else ""
        path = out / "runs" / f"{Path(config.data).stem}-{config.file_name}{gate}-seed{config.seed}"
        if path.exists():
            try:
                there = load_config(path)
                load_outcome(path)
            except SkipRNNError as error:
                raise SkipRNNError(f"{error}; or remove {path}, and it is trained anew") from error
            for field in fields(TrainConfig):
                old, new = getattr(there, field.name), getattr(config, field.name)
                if old != new and field.name != "device":
                    raise SkipRNNError(
                        f"{path} was made with {field.name} {old}, not {new}; name another --out, or remove it"
                    )
        if any(path == run.path for run in runs):
            raise SkipRNNError(f"the grid has two runs called {path.name}; λ must differ in its first six digits")
        runs.append(Planned(path, config))
    return runs


def is_finished(run: Planned) -> bool:
    """Whether a run has been trained to its end."""
    return run.path.exists() and load_outcome(run.path) is not None


def train_all(
    runs: list[Planned],
    executor: Executor,
    on_finished: Callable[[Planned, str | None], None] = lambda run, reason: None,
) -> dict[str, str]:
    """Train the runs that are not finished.

    Args:
        runs: from ``plan``.
        executor: ``in_turn``, ``local()`` or ``on_ray(...)``.
        on_finished: called with each run that ends, and why it failed, or None.

    Returns:
        Why runs failed, by path; those that did not are left out.
    """
    failed: dict[str, str] = {}
    wanted = [run for run in runs if not is_finished(run)]
    for _ in range(ATTEMPTS):
        if not wanted:
            break
        with closing(executor(wanted)) as endings:
            for run, reason in endings:
                failed.pop(str(run.path), None)
                if reason is not None:
                    failed[str(run.path)] = reason
                on_finished(run, reason)
        wanted = [run for run in wanted if str(run.path) in failed]
    return failed


def in_turn(runs: list[Planned]) -> Endings:
    """One run after the other, in this process."""
    for run in runs:
        yield run, train_one(run)


def local(jobs: int | None = None) -> Executor:
    """Processes of this machine, by default one a CPU core, or four a GPU.

    A script that calls it does so under ``if __name__ == "__main__"``, since the processes import it.
    """

    def run(runs: list[Planned]) -> Endings:
        device = choose_device(runs[0].config.device)
        count = at_once(len(runs), device, jobs)
        gpus = torch.cuda.device_count() if device.type == "cuda" else 0
        found = map_in_processes(count, train_one, iter(runs), threads=max(cores() // count, 1), gpus=gpus)
        with closing(found):
            for planned, said in found:
                yield planned, "its process died, twice" if isinstance(said, Exception) else said

    return run


def at_once(runs: int, device: torch.device, jobs: int | None) -> int:
    """How many runs are trained at once in local processes."""
    room = jobs or (RUNS_A_GPU * torch.cuda.device_count() if device.type == "cuda" else cores())
    return max(min(room, runs), 1)


def on_ray(jobs: int | None, address: str | None) -> Executor:
    """Actors of a Ray cluster, a CPU core or a quarter of a GPU each; run directories lie on storage that all share.

    A run whose worker dies goes on from its last checkpoint on another.

    Raises:
        SkipRNNError: Ray is not installed; later, no cluster answers.
    """
    require_ray()

    def run(runs: list[Planned]) -> Endings:
        with connected(address) as ray:
            there = ray.cluster_resources()
            gpus = int(there.get("GPU", 0))
            room = jobs or gpus * RUNS_A_GPU or int(there.get("CPU", 1))
            share = 1 / RUNS_A_GPU if gpus else 0
            workers = min(room, len(runs))
            endings = map_on_actors(ray, workers, train_one, iter(runs), retries=RETRIES, num_gpus=share)
            with closing(endings):
                for planned, said in endings:
                    if isinstance(said, Exception):
                        yield planned, f"its worker died ({' '.join(str(said).split())[:200]})"
                    else:
                        yield planned, said

    return run


def synthetic_task(config: TrainConfig) -> SyntheticTask | None:
    """The task whose data file a configuration names, where it can be generated; None where not."""
    of_task = {name: data for name, data in DATA_SETS.items() if data.task == config.task}
    known = of_task.get(Path(config.data).stem) or of_task.get(config.task)
    return None if known is None else known.synthetic_task()


def train_one(run: Planned) -> str | None:
    """Train a run, from where it was; why it failed, or None. An error that is not ours leaves error.txt in the run."""
    try:
        if is_own_cell(run.config.cell):  # as the grid was asked for, in a process that has not imported it yet
            import_cell(run.config.cell)
        if not run.path.exists():
            create_run(run.path, run.config)
        train(run.path)
        (run.path / "error.txt").unlink(missing_ok=True)
    except SkipRNNError as error:
        return str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if not run.path.exists():
            return said
        write_text(run.path / "error.txt", traceback.format_exc())
        return f"{said}; see {run.path / 'error.txt'}"
    return None


VARIED = ("cell", "reset_after", "skip", "lam", "p_skip", "seed", "device")  # within a table


def others(out: Path, runs: list[Planned]) -> list[Planned]:
    """Finished runs of a folder as earlier grids with the same settings left them, that are not among these."""

    def settings(config: TrainConfig) -> dict[str, Any]:
        """What is not the preset's, which differs by cell."""
        usual = asdict(configure(config.task, config.preset, cell=config.cell, skip=config.skip))
        found = {"task": config.task, "preset": config.preset}
        return found | {k: v for k, v in asdict(config).items() if k not in VARIED and v != usual[k]}

    wanted = [settings(run.config) for run in runs]
    known = {replace(run.config, device="auto") for run in runs}
    found = []
    for path in sorted((out / "runs").glob("*")):
        with suppress(SkipRNNError):  # what cannot be read is none of ours
            run = Planned(path, load_config(path))
            config = replace(run.config, device="auto")
            if config not in known and settings(config) in wanted and is_finished(run):
                known.add(config)
                found.append(run)
    return found


def evaluate_all(
    runs: list[Planned],
    failed: dict[str, str],
    on_progress: Callable[[int], None] = lambda count: None,
    checkpoint: str = "best",
) -> list[dict[str, Any]]:
    """Evaluate finished runs on their test splits, one after the other, or take what is known of them.

    Args:
        runs: those that are not finished are left out.
        failed: why runs failed, by path; receives those that cannot be evaluated.
        on_progress: called with the number of runs just done.
        checkpoint: best or last.

    Returns:
        For each finished run its configuration, its evaluation, and the seconds its training took.
    """
    results = []
    for run in runs:
        outcome = load_outcome(run.path) if run.path.exists() else None
        if outcome is not None:
            try:
                results.append(_result(run, outcome, checkpoint))
            except SkipRNNError as error:
                failed[str(run.path)] = f"cannot be evaluated: {error}"
            except Exception as error:
                failed[str(run.path)] = f"cannot be evaluated: {type(error).__name__}: {error}"
        on_progress(1)
    return results


def _result(run: Planned, outcome: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    path = run.path / "result.json"
    made_of: dict[str, Any] = {"task": load_task(run.path)}
    if Path(run.config.data).exists():
        made_of["data_digest"] = read_attributes(Path(run.config.data)).get("digest")
    with suppress(SkipRNNError), reading(path, "a note", ""):  # it is no more than a note of what an evaluation said
        there = read_json(path, dict, "", limit=JSON_BYTES)
        check_fields(RunEvaluation, there["evaluation"])
        check_fields(TrainConfig, there["config"])
        named = there["name"] == run.path.name and isinstance(there["training_seconds"], int | float)
        named &= there["evaluation"]["checkpoint"] == checkpoint
        if named and there["outcome"] == outcome and made_of.items() <= there.items():
            return there
    records = read_metrics(run.path)
    if not records:
        raise SkipRNNError(f"{run.path} has no evaluation in its metrics.jsonl; train it again")
    result = {
        "name": run.path.name,
        "config": asdict(run.config),
        **made_of,
        "outcome": outcome,
        "training_seconds": records[-1]["seconds"],
        "evaluation": asdict(evaluate_run(run.path, checkpoint=checkpoint)),
    }
    write_json(path, result)
    return result


def estimate(configs: list[TrainConfig], jobs: int | None) -> dict[TrainConfig, float | None]:
    """Seconds that training each configuration should take here; None where its data is missing.

    A step of each kind of model is timed, as the gate is at first: open nearly everywhere.

    Args:
        configs: of runs.
        jobs: as for ``local``, which says how many cores a run has.
    """
    kinds = {config: replace(config, seed=0, lam=0.0) for config in configs}
    known: dict[TrainConfig, float | None] = {}
    before = torch.get_num_threads()
    try:
        for kind in dict.fromkeys(kinds.values()):
            torch.set_num_threads(max(cores() // at_once(len(configs), choose_device(kind.device), jobs), 1))
            known[kind] = _estimate(kind)
    finally:
        torch.set_num_threads(before)
    return {config: known[kind] for config, kind in kinds.items()}


def _estimate(config: TrainConfig) -> float | None:
    device = choose_device(config.device)
    validation = None
    if not Path(config.data).exists():
        drawn = synthetic_task(config)
        if drawn is None:
            return None
        validation = DEFAULT_SIZES["val"]
        with tempfile.TemporaryDirectory() as folder:
            sizes = dict.fromkeys(DEFAULT_SIZES, config.batch_size)
            path = generate(drawn, Path(folder) / "data.h5", sizes, seed=config.seed)
            task, data = load_training_data(replace(config, data=str(path)))
    else:
        task, data = load_training_data(config)
    check_network(config, device)
    model = build_model(config, task).to(device).train()
    steps = total_steps(config, data.splits)
    sequences = data.splits["val"].take(slice(config.batch_size)).to(device)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        measure_step(model, task, sequences, config)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    evaluations = math.ceil(steps / config.eval_every) * (validation or len(data.splits["val"])) / len(sequences) / 3
    return (steps + evaluations) * min(seconds[1:])
