"""What ``reproduce`` and ``sweep`` share: options, training a grid with something to see, and its table."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipelines.errors import SkipRNNError
from pipelines.runs.config import NONE, TrainConfig
from skiprnn_cli import options
from skiprnn_cli.groups import did_you_mean
from skiprnn_cli.messages import QUIET, VERBOSE, level, note

if TYPE_CHECKING:
    from pipelines.grids.sweep import Planned

LOOK_EVERY = 20.0  # s between lines about runs that are being trained
NOT_SETTABLE = {"task", "preset", "data", "cell", "skip", "lam", "p_skip", "seed", "device"}


class Setting(options.ParamType[tuple[str, Any]]):
    """NAME=VALUE, a field of the configuration."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, sign, text = str(value).partition("=")
        name = name.strip().replace("-", "_")
        name = {"hidden": "hidden_size", "layers": "num_layers"}.get(name, name)  # as train calls them
        if not sign:
            self.fail(f"{value!r} is not NAME=VALUE, such as lr=1e-3.", param, ctx)
        kinds = {
            field.name: getattr(field.type, "__name__", str(field.type))
            for field in fields(TrainConfig)
            if field.name not in NOT_SETTABLE
        }
        if name not in kinds:
            self.fail(f"{name!r} is none of {', '.join(sorted(kinds))}.{did_you_mean(name, kinds)}", param, ctx)
        try:
            return name, _parsed(text.strip(), kinds[name])
        except (ValueError, KeyError):
            self.fail(f"{text!r} is no {kinds[name].split(' ')[0]}, which {name} is.", param, ctx)


def _parsed(text: str, kind: str) -> Any:
    if "bool" in kind:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
    if "None" in kind and text == NONE:
        return NONE
    if "int" in kind:
        return int(text)
    return float(text) if "float" in kind else text


def grid_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every grid."""
    for option in reversed(
        [
            click.option("--set", "settings", type=Setting(), multiple=True,
                         help="Another option of training than the preset's, such as lr=1e-3; may be repeated."),
            click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                         help="auto: CUDA where there is one."),
            click.option("--jobs", type=click.IntRange(min=1),
                         help="Runs trained at once, each in a process with its share of the CPU cores; GPUs are dealt "
                         "out to them in turn.  [default: one a CPU core, or 4 a GPU]"),
            click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                         help="Processes of this machine, or actors of a Ray cluster (extra: ray)."),
            click.option("--ray-address", help="The cluster's address.  [default: RAY_ADDRESS, or start one here]"),
            options.checkpoint,
            click.option("--dry-run", is_flag=True, help="Say what would be trained, and how long it should take."),
            click.option("--no-train", is_flag=True, help="Train nothing: make the table of finished runs."),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


class Work(NamedTuple):
    """What a grid is estimated to take."""

    core_hours: float = 0.0  # of a CPU, where that trains
    missing: int = 0  # runs that are not in it, for their data is missing


def run_grid(configs: list[TrainConfig], out: Path, settings: tuple[tuple[str, Any], ...], **how: Any) -> Work:
    """Train a grid and write its table; ``how`` are the other options of ``grid_options``.

    Returns:
        With ``dry_run`` what there is to do; else nothing.
    """
    from pipelines.grids.results import markdown, write_results
    from pipelines.grids.sweep import evaluate_all, is_finished, local, on_ray, others, plan, train_all
    from pipelines.parallel.devices import choose_device
    from pipelines.runs.model import check_network
    from skiprnn_cli.progress import counted

    runs = plan(out.absolute(), configs)  # workers elsewhere have other working folders
    for config in configs:
        check_network(config, choose_device(config.device) if how["executor"] == "local" else None)
    if how["dry_run"]:
        return _say_plan(runs, how["jobs"], how["executor"])
    failed: dict[str, str] = {}
    if how["no_train"]:
        if not any(map(is_finished, runs)):
            raise SkipRNNError(f"no run in {out / 'runs'} is finished; leave out --no-train, and they are trained")
        note(f"{sum(map(is_finished, runs))} of {len(runs)} runs are finished")
    else:
        for config in configs:
            ensure_data(config)
        try:
            (out / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SkipRNNError(f"cannot write {out / 'runs'}: {error.strerror}; name another --out") from error
        with _watching(runs) as on_finished:
            executor = on_ray(how["jobs"], how["ray_address"]) if how["executor"] == "ray" else local(how["jobs"])
            failed = train_all(runs, executor, on_finished)
    shown = runs + others(out.absolute(), runs)  # the table is of all that the folder holds
    with counted("evaluating", len(shown), "runs") as advance:
        results = evaluate_all(shown, failed, advance, how["checkpoint"])
    if results:
        asked = {"task": configs[0].task, "preset": configs[0].preset, "settings": dict(settings)}
        lines = write_results(out, results, failed, {"asked": asked, "where": _where(results)})
        click.echo(markdown(lines), nl=False)
        note(f"wrote {out / 'results.json'}, table.md and table.tex; next: skiprnn report {out}")
    if failed:
        for path, reason in failed.items():
            click.echo(f"failed: {path}: {reason}", err=True)
        raise SkipRNNError(
            f"{len(failed)} of {len(shown)} runs failed; the same command tries them again, those whose directory is "
            "removed from the beginning"
        )
    return Work()


def _say_plan(runs: list["Planned"], jobs: int | None, executor: str) -> Work:
    from pipelines.grids.sweep import at_once, estimate, is_finished
    from pipelines.parallel.devices import choose_device
    from pipelines.parallel.processes import cores
    from skiprnn_cli.progress import clock

    left = [run for run in runs if not is_finished(run)]
    if left:
        note(f"estimating how long {len(left)} runs take")
    times = estimate([run.config for run in left], jobs)
    total, unknown = 0.0, 0
    alike: dict[tuple[TrainConfig, str], list[Planned]] = {}  # but for the seed
    for run in runs:
        seconds = times.get(run.config)
        if is_finished(run):
            state = "finished"
        else:
            state, of = ("to go on", " in all") if run.path.exists() else ("not trained yet", "")
            state += f", about {clock(seconds)}{of}" if seconds else ", its data is not there yet"
            total += seconds or 0
            unknown += not seconds
        alike.setdefault((replace(run.config, seed=0), state), []).append(run)
    for (config, state), group in alike.items():
        here = group[0].path
        path, seeds = str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here), ""
        if len(group) > 1:
            path = f"{path.removesuffix(str(group[0].config.seed))}*"
            seeds = f"{len(group)} seeds ({', '.join(str(run.config.seed) for run in group)}), "
        each = " each" if seeds and "about" in state else ""
        click.echo(f"{path}: {config.model_name} on {Path(config.data).name}, {seeds}{state}{each}")
    missing = f"{unknown} runs whose data is missing"
    if not total:
        if unknown:
            click.echo(missing)
        return Work(missing=unknown)
    device = choose_device(runs[0].config.device)
    count = at_once(len(left), device, jobs)
    where = "by processes of this machine" if executor == "ray" else "at once"
    rest = f", and {missing}" if unknown else ""
    hours = total * max(cores() // count, 1) / 3600 if device.type == "cpu" else 0.0
    work = f", {hours:.1f} core-hours" if hours >= 0.05 else ""
    click.echo(f"about {clock(total / count)} with {count} {where}{work}{rest}")
    return Work(hours, unknown)


@contextmanager
def _watching(runs: list["Planned"]) -> Iterator[Callable[["Planned", str | None], None]]:
    """Say which runs end, and now and then where the others are."""
    from pipelines.grids.sweep import is_finished
    from pipelines.runs.directory import read_metrics
    from pipelines.tasks import TASKS

    done = sum(map(is_finished, runs))
    ended, lock = threading.Event(), threading.Lock()
    if done:
        note(f"{done} of {len(runs)} runs are finished already")

    def line(run: "Planned") -> str | None:
        records = read_metrics(run.path) if run.path.exists() else []
        if not records:
            return None
        val = records[-1]["val"]
        shut = ", its gate shut and its metric lost" if records[-1].get("collapsed") else ""
        metric = f"val {TASKS[run.config.task].metric_name} {val['metric']:.5f}"
        return f"{run.path.name}: step {records[-1]['step']:,}, {metric}, {val['used_mean']:.1f} used{shut}"

    def look() -> None:
        told: dict[Path, str] = {}
        while not ended.wait(seconds):
            for run in runs:
                said = None
                with suppress(SkipRNNError):  # who trains it says so
                    said = None if is_finished(run) else line(run)
                if said is not None and told.get(run.path) != said:
                    told[run.path] = said
                    with lock:
                        click.echo(f"  {said}", err=True)

    def on_finished(run: "Planned", reason: str | None) -> None:
        nonlocal done
        done += reason is None
        with lock:
            if reason is None:
                note(f"{done} of {len(runs)} runs finished; {line(run)}")
            else:
                click.echo(f"{run.path}: {reason}", err=True)

    seconds = LOOK_EVERY / 4 if level() >= VERBOSE else LOOK_EVERY
    watcher = threading.Thread(target=look, daemon=True)
    if level() > QUIET:
        watcher.start()
    try:
        yield on_finished
    finally:
        ended.set()
        if watcher.ident is not None:
            watcher.join()


def refuse_other_data(config: TrainConfig) -> None:
    """Refuse a data file that was made with other parameters than the paper's."""
    from pipelines.grids.sweep import synthetic_task
    from pipelines.tasks import task_of_file

    path, task = Path(config.data), synthetic_task(config)
    if path.exists() and task is not None and (there := task_of_file(path, config.task)) != task:
        raise SkipRNNError(f"{path} holds {there}, but the paper's is {task}; move it away, or name another --data")


def ensure_data(config: TrainConfig) -> None:
    """Generate a synthetic task's data file if it is missing."""
    from pipelines.grids.sweep import synthetic_task
    from pipelines.runs.config import DEFAULT_SIZES
    from skiprnn_cli.gen_data import write_with_progress

    path, task = Path(config.data), synthetic_task(config)
    if path.exists():
        return
    if task is None:
        raise SkipRNNError(f"no data file {path}; {_maker(path)} makes it, see docs/guide.md")
    note(f"generating {path}")
    write_with_progress(task, path, DEFAULT_SIZES, 0, overwrite=True)


def _maker(path: Path) -> str:
    """The command that makes a data file of that name."""
    from pipelines.grids.paper import DATA_SETS

    known = DATA_SETS.get(path.stem)
    return f"`skiprnn {known.command} --out {path}`" if known else "`skiprnn gen-data`"


def _where(results: list[dict[str, Any]]) -> dict[str, Any]:
    import platform
    import sys
    from datetime import UTC, datetime

    import torch

    from skiprnn import __version__

    devices = {result["evaluation"]["device"] for result in results}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["skiprnn", *sys.argv[1:]]),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if devices & {"cuda", "cuda:0"} else options.cpu_name(),
        "threads of the evaluation": torch.get_num_threads(),
        "torch": torch.__version__,
        "skiprnn": __version__,
    }
