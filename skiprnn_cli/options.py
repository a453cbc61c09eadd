"""Options and types that commands share."""

import math
from pathlib import Path
from typing import Any

import click

RUNS = Path("runs")


class Number(click.FloatRange):
    """A float range that refuses NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


PATH = click.Path(path_type=Path)

overwrite = click.option("--overwrite", is_flag=True, help="Replace what exists.")
run_argument = click.argument("run", type=PATH, required=False)
split = click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True, help="Part of the data."
)
checkpoint = click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Weights: the lowest validation loss, budget included, or the latest.",
)
device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="auto: CUDA where there is one.  [default: the run's]"
)
data_of_run = click.option("--data", type=PATH, help="Data file.  [default: the run's]")


def cpu_name() -> str:
    """What Linux calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def chosen_run(run: Path | None) -> Path:
    """The run named, or the one under runs/ that was trained last."""
    from pipelines.runs import newest_run

    if run is not None:
        return run
    newest = newest_run(RUNS)
    click.echo(f"run: {newest}", err=True)
    return newest
