"""Options and types that commands share."""

import math
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pipelines.errors import SkipRNNError
from pipelines.runs.config import CHOICES, NONE, is_own_cell
from skiprnn_cli.groups import did_you_mean
from skiprnn_cli.messages import note

RUNS = Path("runs")

if TYPE_CHECKING:
    ParamType = click.ParamType
else:

    class ParamType(click.ParamType):
        """Click's own, which before 8.4 has no subscript."""

        def __class_getitem__(cls, kind):
            return cls


class Number(click.FloatRange):
    """A float range that refuses NaN and infinity."""

    wanted = "a number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is not {self.wanted}.", param, ctx)
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class PathType(ParamType[Path]):
    """A path that the system can name."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        encoded = os.fsencode(value)
        if b"\0" in encoded:
            self.fail("a path cannot hold a null byte.", param, ctx)
        if len(encoded) >= LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(os.fsencode(os.sep))):
            self.fail(
                f"{str(value)[:40]!r}... is too long: a name has at most {LONGEST_NAME} bytes, a path {LONGEST_PATH}.",
                param, ctx,
            )  # fmt: skip
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux and others
PATH = PathType()


class CellType(ParamType[str]):
    """A cell's name; one of one's own is imported when the command line is read."""

    name = f"[{'|'.join(CHOICES['cell'])}|package.module:Cell]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value)
        if is_own_cell(name):
            from pipelines.runs.cells import import_cell

            import_cell(name)
        elif name not in CHOICES["cell"]:
            known = ", ".join(map(repr, CHOICES["cell"]))
            alike = did_you_mean(name, CHOICES["cell"])
            self.fail(f"{name!r} is not one of {known}, nor one of your own, 'package.module:Cell'.{alike}", param, ctx)
        return name

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name


CELL = CellType()

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
own_cell = click.option(
    "--cell",
    type=CELL,
    help="The run's cell: needed where it is one of your own, package.module:Cell, whose code is imported and run.",
)
header = click.option(
    "--header/--no-header",
    default=None,
    help="CSV: the first line is one, or is a sample.  [default: a header if it has no number, or is 0,1,2 and so on]",
)
classes = click.option(
    "--classes/--numbers",
    default=None,
    help="Your own sequences: what integers, or floats that are whole, stand for.  [default: classes, or numbers]",
)
data_of_run = click.option("--data", type=PATH, help="Data file.  [default: the run's]")


def check_classes(task: str | None, classes: bool | None) -> None:
    """Refuse to be told twice what labels are."""
    if task is not None and classes is not None:
        raise click.UsageError(
            f"--task {task} says what the labels are; drop {'--classes' if classes else '--numbers'}."
        )


def say_numeric_headers(count: int) -> None:
    """Say that first lines of files were passed over which could be samples."""
    if count:
        files = "the file begins" if count == 1 else f"{count:,} files begin"
        note(f"note: {files} with 0,1,..., taken for names of columns; pass --no-header if it is a sample")


def say_reordered(reordered: bool) -> None:
    """Say that columns were put in the order that the run reads them in."""
    if reordered:
        note("note: the columns stand in another order than in training; they were matched by their names")


def cpu_name() -> str:
    """What Linux calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def chosen_run(run: Path | None, cell: str | None = None) -> Path:
    """The run or model named, or the run under runs/ trained last; ``cell``, if given, must be its own."""
    from pipelines.runs.directory import newest_run

    if run is None:
        run = newest_run(RUNS)
        note(f"run: {run}")
    else:
        run = run_or_model(run)
    if cell is not None:
        check_cell(run, cell)
    return run


def run_or_model(run: Path) -> Path:
    """A path as it came, or the run directory of the model of that name."""
    from skiprnn import models

    if len(run.parts) > 1 and not run.exists():
        alike = get_close_matches(run.name, [config.parent.name for config in run.parent.glob("*/config.json")], n=1)
        if alike:
            raise SkipRNNError(f"there is no run {run}; did you mean {run.parent / alike[0]}?")
    try:
        return models.run_or_model(run)
    except FileNotFoundError as error:
        raise SkipRNNError(str(error)) from error


def output_of_run(run: Path, name: str) -> Path:
    """Where a file about a run goes by default: into it, but into the current folder of a model, which is only read."""
    from pipelines.runs.named import is_model

    return Path(f"{run.name}-{name}") if is_model(run) else run / name


def check_cell(run: Path, cell: str) -> None:
    """Refuse another cell than a run was trained with."""
    from pipelines.runs.directory import load_config

    trained = load_config(run).cell
    if cell != trained:
        raise SkipRNNError(
            f"{run} was trained with the cell {trained}, not {cell}; drop --cell, or say --cell {trained}"
        )


class OrNone(ParamType[Any]):
    """Takes NONE too, for what None cannot say, which stands for an option that was not given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == NONE else super().convert(value, param, ctx)


class CountOrNone(OrNone, click.IntRange):
    """A whole number or NONE."""

    name = "integer or none"


class NumberOrNone(OrNone, Number):
    """A number or NONE."""

    name = "number or none"
    wanted = "a number or none"
