"""``skiprnn runs``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skiprnn_cli import options

if TYPE_CHECKING:
    from pipelines.runs.listing import RunSummary

NEEDED = ("run", "state", "metric", "used", "steps", "age", "model", "budget", "task")


@click.command(epilog="Example: skiprnn runs sweeps/adding-quick")
@click.argument("folder", type=options.PATH, default=options.RUNS)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a run, one a line.")
def command(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (default: runs/), or of the sweep there, those first that were trained last.

    Metric and used samples are those of the best checkpoint on the validation split. A run is running while a process
    of this machine holds it, collapsed where its training ended with the gate shut and the metric lost, and
    interrupted where it can go on: `skiprnn train --resume RUN`. On a narrow terminal columns are left out.
    """
    from pipelines.runs.listing import list_runs
    from skiprnn_cli.messages import note
    from skiprnn_cli.tables import show_table

    runs = list_runs(folder)
    if as_json:
        import json
        from dataclasses import asdict

        for run in runs:
            click.echo(json.dumps(asdict(run)))
    elif runs:
        rows = [_cells(run, folder) for run in runs]
        show_table({name: [row[name] for row in rows] for name in rows[0]}, NEEDED, numbers=("used", "age"))
    else:
        note(f"no runs in {folder}; make one with `skiprnn train`")


def _cells(run: "RunSummary", folder: Path) -> dict[str, str]:
    path = Path(run.run)
    of_all = "" if run.total_steps is None else f" of {run.total_steps:,}"
    return {
        "run": str(path.relative_to(folder)) if path != folder else str(path),
        "task": run.task or "",
        "model": run.model or "",
        "budget": run.budget or "",
        "steps": "" if run.step is None else f"{run.step:,}{of_all}",
        "metric": "" if run.metric is None else f"{run.metric_name} {run.metric:.4g}",
        "used": "" if run.used_samples is None else f"{run.used_samples:.1f}",
        "state": run.state,
        "age": age(run.age),
    }


def age(seconds: float) -> str:
    """How long ago, in the largest unit that is not below one: "5 s", "12 min", "3 h", "20 d"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
