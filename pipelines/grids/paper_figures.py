"""The paper's figures, from the runs of its tables."""

from collections.abc import Callable
from pathlib import Path

from pipelines.errors import SkipRNNError
from pipelines.grids.paper import FIGURES
from pipelines.grids.results import read_results
from pipelines.runs.config import TrainConfig
from pipelines.runs.figures import plot_curves, plot_usage


def draw_figures(folder: Path, on_progress: Callable[[int], None] = lambda count: None) -> list[Path]:
    """Draw the figures of a table's task into ``folder/figures``, in place of those that are there.

    Args:
        folder: what ``reproduce`` wrote.
        on_progress: called with the number of figures just drawn.

    Returns:
        The files, such as figure-5.1-adding.png.

    Raises:
        SkipRNNError: the folder has no results, lacks a model that a figure shows, or cannot be written.
    """
    results = read_results(folder)
    written = []
    for figure in FIGURES[results["asked"]["task"]]:
        runs: list[Path] = []
        for cell, lam in figure.models:
            of_model = [
                folder / "runs" / result["name"]
                for result in sorted(results["runs"], key=lambda result: result["config"].seed)
                if _is(result["config"], figure.data.name, cell, lam)
            ]
            if not of_model:
                model = cell.upper() if lam is None else f"Skip {cell.upper()}, λ={lam:g},"
                where = f"{model} on {figure.data.name}"
                raise SkipRNNError(f"figure {figure.number} shows {where}; {folder} has no finished run of it")
            runs += of_model
        path = folder / "figures" / f"figure-{figure.number}-{figure.data.name}.png"
        if figure.examples is None:
            plot_curves(runs, path, overwrite=True)
        else:
            plot_usage(runs[0], path, examples=figure.examples, overwrite=True)
        written.append(path)
        on_progress(1)
    return written


def _is(config: TrainConfig, data: str, cell: str, lam: float | None) -> bool:
    """Whether a run is of a model on that data; with λ None of the plain cell."""
    gate = config.lam if config.skip else None
    return (Path(config.data).stem, config.cell, gate, config.p_skip) == (data, cell, lam, None)
