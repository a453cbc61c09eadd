"""``skiprnn gen-data``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.presets import DATA, DEFAULT_SIZES
from skiprnn_cli import options

if TYPE_CHECKING:
    from pipelines.tasks import SyntheticTask


@click.group("gen-data", epilog="Example: skiprnn gen-data adding --length 100 --out data/adding-100.h5")
def command() -> None:
    """Generate a synthetic data set.

    Writes an HDF5 file with splits train, val and test, and all parameters in its attributes. The same parameters and
    seed give the same bytes of data.
    """


def file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every data file."""
    for name, size in reversed(DEFAULT_SIZES.items()):
        function = click.option(
            f"--{name}",
            type=click.IntRange(min=1),
            default=size,
            show_default=True,
            help=f"Sequences of the {name} split.",
        )(function)
    function = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")(
        function
    )
    function = click.option("--out", type=options.PATH, help="File to write.  [default: data/TASK.h5]")(function)
    return options.overwrite(function)


@command.command(epilog="Example: skiprnn gen-data adding --seed 1 --out data/adding-1.h5")
@click.option("--length", type=click.IntRange(min=10), default=50, show_default=True, help="Steps of a sequence.")
@file_options
def adding(length: int, **of_file: Any) -> None:
    """Generate the adding task: sum the two marked values of a sequence."""
    from pipelines.tasks import Adding

    _write(Adding(length=length), **of_file)


@command.command(epilog="Example: skiprnn gen-data sine --sampling-period 0.5 --out data/sine-0.5ms.h5")
@click.option(
    "--sampling-period",
    type=options.Number(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Time between samples, in ms.",
)
@click.option(
    "--duration",
    type=options.Number(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Of a sequence, in ms.",
)
@file_options
def sine(sampling_period: float, duration: float, **of_file: Any) -> None:
    """Generate the sine task: is the wave's period between 5 and 6 ms?"""
    from pipelines.tasks import Sine

    _write(Sine(sampling_period=sampling_period, duration=duration), **of_file)


def _write(
    task: "SyntheticTask", train: int, val: int, test: int, seed: int, out: Path | None, overwrite: bool
) -> None:
    write_with_progress(
        task, out or DATA / f"{task.name}.h5", {"train": train, "val": val, "test": test}, seed, overwrite
    )


def write_with_progress(task: "SyntheticTask", path: Path, sizes: dict[str, int], seed: int, overwrite: bool) -> None:
    """Generate a data file, saying so."""
    from pipelines.generation import generate
    from pipelines.storage import check_writable
    from skiprnn_cli.progress import counted

    check_writable(path, overwrite=overwrite)
    with counted(f"generating {task.name}", sum(sizes.values()), "sequences") as advance:
        generate(task, path, sizes, seed=seed, overwrite=overwrite, on_progress=advance)
    counts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    click.echo(f"wrote {path}: {counts} sequences, seed {seed}")
