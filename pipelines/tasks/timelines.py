"""Usage figures of tasks with an answer to each step: used and skipped samples, and what is and was said over time."""

import math
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from pipelines.tasks.base import Usage
from pipelines.tasks.drawing import legend, samples, time_axis, titles, usage_handles

NAMED = 20  # classes or labels that are told apart by name
TRUE, SAID = "#555555", "#2ca02c"  # of labels and predictions that have two colours


def bands(usage: Usage, classes: Sequence[str | int], rows: dict[str, Tensor]) -> Figure:
    """Under each sequence a band for each of ``rows``, (N, T) numbers of classes, coloured by class."""
    colors = _colors(len(classes))
    figure = Figure()
    for index, end, axis in _panels(figure, usage, 0.22 * len(rows)):
        values = np.stack([row[index, :end].cpu().numpy() for row in rows.values()])
        axis.imshow(
            values, ListedColormap(colors), aspect="auto", interpolation="nearest", vmin=-0.5, vmax=len(classes) - 0.5,
            extent=(0.5, end + 0.5, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        _name_rows(axis, list(rows))
    shown = [Patch(color=color, label=str(c)) for c, color in zip(classes, colors[:NAMED], strict=False)]
    legend(figure, [*usage_handles(usage.sequences.ends()[: usage.shown]), *shown], usage.title)
    return figure


def label_rows(usage: Usage, labels: Sequence[str], said: Tensor) -> Figure:
    """Under each sequence a row a label: above where it holds, below where it is ``said``, (N, T, K) bool."""
    figure, shown = Figure(), labels[:NAMED]
    for index, end, axis in _panels(figure, usage, 0.3 * len(shown)):
        pairs = ((usage.sequences.y, -0.35, TRUE), (said, 0.05, SAID))
        for row in range(len(shown)):
            for values, top, color in pairs:
                axis.broken_barh(_runs(values[index, :end, row].cpu().numpy()), (row + top, 0.3), color=color)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        _name_rows(axis, shown)
    keys = [Patch(color=TRUE, label="label"), Patch(color=SAID, label="predicted")]
    legend(figure, [*usage_handles(usage.sequences.ends()[: usage.shown]), *keys], usage.title)
    return figure


def curves(usage: Usage, names: Sequence[str], y: Tensor, said: Tensor) -> Figure:
    """Under each sequence the numbers, y (N, T, K), dashed, and those that are ``said``, which stand until the next."""
    colors = _colors(len(names))
    figure = Figure()
    for index, end, axis in _panels(figure, usage, 1.1):
        step = range(1, end + 1)
        for k, color in enumerate(colors[:NAMED]):
            axis.plot(step, y[index, :end, k], "--", color=color, linewidth=1, alpha=0.8)
            axis.step(step, said[index, :end, k], where="post", color=color, linewidth=1.4)
    axis = figure.axes[1]
    keys = [axis.plot([], [], color=color, label=n)[0] for n, color in zip(names, colors[:NAMED], strict=False)]
    lines = [axis.plot([], [], s, color="black", label=n)[0] for s, n in (("--", "true"), ("-", "predicted"))]
    legend(figure, [*usage_handles(usage.sequences.ends()[: usage.shown]), *keys, *lines], usage.title)
    return figure


def _panels(figure: Figure, usage: Usage, height: float) -> Iterator[tuple[int, int, Axes]]:
    """Draw the samples of each sequence, and hand out an axis under it, inches high: its number, steps and axis."""
    lengths = usage.sequences.ends()[: usage.shown]
    columns = 1 if len(lengths) <= 3 else 2
    rows = math.ceil(len(lengths) / columns)
    figure.set_size_inches(5.2 * columns, (1.2 + height + 0.35) * rows + 1.1)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [1.2, max(height, 0.4)] * rows}
    )
    for index, (row, column) in enumerate(np.ndindex(rows, columns)):
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        if index >= len(lengths):
            above.set_axis_off()
            below.set_axis_off()
            continue
        end = lengths[index]
        gate = usage.used[index, :end]
        samples(above, usage.signal(usage.sequences.x[index, :end].cpu()), gate)
        titles(above, usage, index, end)
        above.set_ylabel(usage.signal_name, fontsize=8)
        below.spines[["top", "right"]].set_visible(False)
        below.tick_params(labelsize=8)
        if index + columns >= len(lengths):
            below.set_xlabel("time step")
            below.tick_params(labelbottom=True)
        yield index, end, below
    time_axis(grid[0, 0], max(lengths))


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0, labelsize=7)


def _runs(values: npt.NDArray[np.bool_ | np.uint8]) -> list[tuple[float, int]]:
    """Where values hold without a break: beginnings, half a step before the first sample's, and numbers of steps."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], values.astype(int), [0]])))
    return [(start + 0.5, end - start) for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def _colors(count: int) -> list[str]:
    """Colours that are neither that of used nor that of skipped samples."""
    if count <= 8:
        return [to_hex(color) for color in matplotlib.color_sequences["Dark2"][:count]]
    return [to_hex(matplotlib.colormaps["viridis"](k / (count - 1))) for k in range(count)]
