"""``skiprnn sweep``."""

from pathlib import Path
from typing import Any

import click

from pipelines.errors import SkipRNNError
from pipelines.runs.config import CHOICES, DATA, TASK_NAMES
from skiprnn_cli import options
from skiprnn_cli.grids import grid_options, run_grid


class Several(options.ParamType[tuple[Any, ...]]):
    """Values separated by commas; of whole numbers also ranges such as 0-3."""

    name = "A,B,…"

    def __init__(self, kind: type, words: dict[str, Any] | None = None) -> None:
        self._kind, self._words = kind, words or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            given = tuple(dict.fromkeys(one for text in str(value).split(",") for one in self._read(text.strip())))
        except ValueError:
            self.fail(f"{value!r} is no list of {self._kind.__name__}s separated by commas.", param, ctx)
        if not given:
            self.fail(f"{value!r} holds nothing.", param, ctx)
        return given

    def _read(self, text: str) -> list[Any]:
        if text in self._words:
            return [self._words[text]]
        first, dash, last = text.partition("-")
        if self._kind is int and dash:
            return list(range(int(first), int(last) + 1))
        return [self._kind(text)]


class SeveralCells(Several):
    """Names of cells separated by commas."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        return tuple(options.CELL.convert(name, param, ctx) for name in super().convert(value, param, ctx))


@click.command(
    epilog="Example: skiprnn sweep --task adding --cell lstm,gru --lam none,0,1e-5 --seeds 0-3 --set steps=5000"
)
@click.option("--task", type=click.Choice(TASK_NAMES), help="What to learn.  [default: the data file's, or adding]")
@click.option("--data", type=options.PATH, help="Data file.  [default: data/TASK.h5]")
@click.option("--preset", type=click.Choice(CHOICES["preset"]), default="quick", show_default=True, help="As of train.")
@click.option("--cell", "cells", type=SeveralCells(str), default="lstm", show_default=True,
              help="Cells, as of train; only lstm and gru have a plain cell, --lam none.")  # fmt: skip
@click.option("--lam", "lams", type=Several(float, {"none": None}), default="none,0,1e-5,1e-4", show_default=True,
              help="Each λ; none is the plain cell.")  # fmt: skip
@click.option("--seeds", type=Several(int), default="0", show_default=True, help="Seeds, such as 0-3.")
@click.option("--out", type=options.PATH, help="Folder of runs and tables.  [default: sweeps/DATA-PRESET]")
@grid_options
def command(
    task: str | None,
    data: Path | None,
    preset: str,
    cells: tuple[str, ...],
    lams: tuple[float | None, ...],
    seeds: tuple[int, ...],
    out: Path | None,
    settings: tuple[tuple[str, Any], ...],
    device: str,
    **how: Any,
) -> None:
    """Train a grid of models: each cell with each λ and seed.

    As for reproduce, runs are ordinary run directories under OUT/runs, and the same command goes on where it was.
    """
    from pipelines.grids.sweep import grid
    from pipelines.tasks import task_of_file

    if data is not None and data.is_dir():
        raise SkipRNNError(f"{data} is a folder; `skiprnn gen-data own {data}` makes a data file of its sequences")
    if data is not None:
        task = task_of_file(data, task).name
    task = task or "adding"
    path = (data or DATA / f"{task}.h5").absolute()
    configs = grid(task, preset, cells, lams, seeds, data=str(path), device=device, **dict(settings))
    run_grid(configs, out or Path("sweeps") / f"{path.stem}-{preset}", settings, **how)
