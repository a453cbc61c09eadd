"""``skiprnn reproduce``."""

from pathlib import Path
from typing import Any

import click

from pipelines.errors import SkipRNNError
from pipelines.runs.config import CHOICES, DATA, TrainConfig
from skiprnn_cli import options
from skiprnn_cli.grids import ensure_data, grid_options, refuse_other_data, run_grid
from skiprnn_cli.messages import note


@click.command(epilog="Example: skiprnn reproduce adding --preset quick --runs 2")
@click.argument("experiment", type=click.Choice(["adding", "sine", "mnist", "imdb", "ucf101", "all"]))
@click.option("--runs", type=click.IntRange(min=1), default=4, show_default=True, help="Seeds, from 0.")
@click.option("--preset", type=click.Choice(CHOICES["preset"]), default="paper", show_default=True,
              help="paper: its protocol, which wants a GPU; quick: minutes a run on a CPU core; settled: as far as "
              "CPUs carry.")  # fmt: skip
@click.option("--data", type=options.PATH, default=DATA, show_default=True,
              help="Folder of the data files; adding and sine are generated if missing.")  # fmt: skip
@click.option("--out", type=options.PATH, help="Folder of runs and tables.  [default: reproduced/EXPERIMENT-PRESET]")
@click.option("--only", multiple=True, metavar="TEXT",
              help="Only runs whose name has this in it, such as skip-lstm or lam0.0001; may be repeated.")  # fmt: skip
@click.option("--figures", is_flag=True, help="Draw the paper's figures of the task, too, into OUT/figures.")
@grid_options
def command(
    experiment: str,
    runs: int,
    preset: str,
    data: Path,
    out: Path | None,
    only: tuple[str, ...],
    figures: bool,
    settings: tuple[tuple[str, Any], ...],
    device: str,
    **how: Any,
) -> None:
    """Train the models of a table of the paper and print it with ours beside it.

    Each run is an ordinary run directory under OUT/runs. Finished runs are kept and interrupted ones go on, so the same
    command may be run again after an interruption, or with more --runs. Writes results.json, table.md and table.tex.
    """
    from pipelines.grids.paper import FIGURES, NUMBERS
    from pipelines.grids.sweep import grid_of_table, plan

    tasks = list(NUMBERS) if experiment == "all" else [experiment]
    folders = {
        task: (out / task if experiment == "all" else out) if out else Path("reproduced") / f"{task}-{preset}"
        for task in tasks
    }
    grids: dict[str, list[TrainConfig]] = {}
    problems: dict[str, str] = {}
    for task in tasks:  # before hours of training
        try:
            grids[task] = grid_of_table(
                task, preset, data, range(runs), figures=figures, device=device, **dict(settings)
            )
            planned = plan(folders[task].absolute(), grids[task])
            if only:
                grids[task] = [run.config for run in planned if any(text in run.path.name for text in only)]
            if not grids[task]:
                names = ", ".join(dict.fromkeys(run.path.name.rpartition("-seed")[0] for run in planned))
                raise SkipRNNError(f"--only {' --only '.join(only)} is in no run's name; they are {names}")
            for config in grids[task]:
                refuse_other_data(config)
                if not (how["dry_run"] or how["no_train"]):
                    ensure_data(config)
        except SkipRNNError as error:
            problems[task] = str(error)
            if experiment == "all":
                click.echo(f"table {NUMBERS[task]}, {task}, cannot be made: {error}", err=True)
    hours, missing = 0.0, 0
    for task in tasks:
        if task in problems:
            continue
        note(f"table {NUMBERS[task]}, {task}: {folders[task]}")
        try:
            work = run_grid(grids[task], folders[task], settings, **how)
            hours, missing = hours + work.core_hours, missing + work.missing
            if figures and FIGURES[task] and not how["dry_run"]:
                _draw(folders[task], len(FIGURES[task]))
        except SkipRNNError as error:
            problems[task] = str(error)
    if len(grids) > 1 and hours:
        without = f", without {missing} runs whose data is missing" if missing else ""
        click.echo(f"about {hours:.1f} core-hours in all{without}")
    if problems:
        raise SkipRNNError("; ".join(f"{task}: {problem}" for task, problem in problems.items()))


def _draw(folder: Path, count: int) -> None:
    from pipelines.grids.paper_figures import draw_figures
    from skiprnn_cli.progress import counted

    with counted("drawing", count, "figures") as advance:
        written = draw_figures(folder, advance)
    for path in written:
        click.echo(f"wrote {path}")
