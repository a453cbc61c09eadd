"""Usage figures: which samples of some sequences a model used, red, and which it skipped, blue."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipelines.tasks.base import Usage

USED, SKIPPED = "#d62728", "#1f77b4"
INK, PAPER = (USED, SKIPPED), ("#fbd5d1", "#d6e6f4")  # of used and of skipped pixels
LINE = 110  # characters
DOTS = 400  # samples that a panel has room for
FAINTEST = 0.35  # of red in a strip's piece of which few samples were used
STRIP = 0.09  # of a panel's height
GROUND = "#444444"  # of the line above a strip
TITLE = 8  # points


def signals(usage: Usage) -> Figure:
    """The samples of each sequence over time."""
    lengths = usage.sequences.ends()[: usage.shown]
    count = len(lengths)
    columns = 1 if count <= 3 else 2
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 1.35 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, axis in enumerate(axes.flat):
        if index >= count:
            axis.set_axis_off()
            continue
        length = lengths[index]
        gate = usage.used[index, :length]
        samples(axis, usage.signal(usage.sequences.x[index, :length].cpu()), gate)
        titles(axis, usage, index, length)
        if index + columns >= count:
            axis.set_xlabel("time step")
            axis.tick_params(labelbottom=True)
    time_axis(axes[0, 0], max(lengths))
    figure.supylabel(usage.signal_name, fontsize=10)
    legend(figure, usage_handles(lengths), usage.title)
    return figure


def images(usage: Usage, side: int) -> Figure:
    """Images of side² pixels, the used ones red and the skipped ones blue, and how often each is used."""
    count = min(usage.shown, len(usage.used))
    columns = min(count, 5)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(1.7 * columns + 3.4, max(2.05 * rows, 3.2) + 0.6), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 2)
    ink = usage.sequences.x.cpu().float().reshape(-1, side, side, 1).numpy() / 255
    gates = usage.used.reshape(-1, side, side, 1).numpy()
    light, dark = (np.where(gates, *(to_rgb(color) for color in pair)) for pair in (PAPER, INK))
    pictures = light * (1 - ink) + dark * ink
    for index in range(count):
        axis = figure.add_subplot(grid[divmod(index, columns)])
        axis.imshow(pictures[index], interpolation="nearest")
        used = f"{int(usage.used[index].sum())} of {side * side} used"
        axis.set_title(f"#{usage.rows[index]}: {usage.said[index]}\n{used}", fontsize=TITLE, pad=3)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[:, columns:])
    share = axis.imshow(usage.used.float().mean(0).reshape(side, side).numpy(), cmap="RdBu_r", vmin=0, vmax=1)
    axis.set_title(f"share of {len(usage.used):,} digits\nthat use a pixel", fontsize=8)
    axis.set_axis_off()
    figure.colorbar(share, ax=axis, shrink=0.8)
    legend(figure, [Patch(color=INK[0], label="used"), Patch(color=INK[1], label="skipped")], usage.title)
    return figure


Text = tuple[str, list[tuple[str, bool]]]  # a heading, and each word with whether it was used


def texts(found: list[Text], title: str) -> Figure:
    """Texts word by word."""
    lines: list[list[tuple[str, str]]] = []  # words and their colours
    for heading, pairs in found:
        lines += [[(heading, "black")], []]
        for word, on in pairs:
            if sum(len(w) + 1 for w, _ in lines[-1]) + len(word) > LINE:
                lines.append([])
            lines[-1].append((word, USED if on else SKIPPED))
        lines.append([])
    height = 0.17 * len(lines) + 0.7
    figure = Figure(figsize=(0.0675 * LINE + 0.2, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set(xlim=(-1, LINE + 1), ylim=(0, height))
    for number, line in enumerate(lines):
        column, y = 0, height - 0.6 - 0.17 * number
        for word, color in line:
            axis.text(column, y, word, color=color, fontsize=8, family="monospace", va="center", parse_math=False)
            column += len(word) + 1
    handles = [Patch(color=USED, label="used"), Patch(color=SKIPPED, label="skipped")]
    figure.legend(handles=handles, title=title, loc="upper center", ncols=2, frameon=False)
    return figure


def page(found: list[Text], title: str) -> str:
    """Texts as a page of HTML that needs nothing else."""
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>',
        "body{font:16px/1.6 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}",
        f".u{{color:{USED};font-weight:600}}.s{{color:{SKIPPED}}}",
        f'</style></head><body><h1>{escape(title)}</h1><p><span class="u">used</span> '
        '<span class="s">skipped</span></p>',
    ]
    for heading, pairs in found:
        words = " ".join(f'<span class="{"u" if on else "s"}">{escape(word)}</span>' for word, on in pairs)
        parts.append(f"<h2>{escape(heading)}</h2><p>{words}</p>")
    return "\n".join([*parts, "</body></html>\n"])


def samples(axis: Axes, signal: Tensor, used: Tensor) -> None:
    """Draw samples (T,) over time: a dot each or, where they are many, a line and under it a strip of what was used."""
    if len(signal) > DOTS:
        axis.plot(range(1, len(signal) + 1), signal, color=GROUND, linewidth=0.7)
        axis.margins(y=0.25)
        _strip(axis, used)
    else:
        step = torch.arange(1, len(signal) + 1)
        axis.plot(step[~used], signal[~used], ".", color=SKIPPED, markersize=4)
        axis.plot(step[used], signal[used], ".", color=USED, markersize=6)
        axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _strip(axis: Axes, used: Tensor) -> None:
    """Pieces of equal length: blue where no sample was used, and the redder the more were."""
    edges = np.linspace(0, len(used), DOTS + 1).round().astype(int)
    shares = np.array([used[a:b].float().mean().item() for a, b in pairwise(edges)])
    red = np.where(shares > 0, FAINTEST + (1 - FAINTEST) * shares, 0)[:, None]
    colors = red * to_rgb(USED) + (1 - red) * to_rgb(SKIPPED)
    pieces = [(start + 0.5, end - start) for start, end in pairwise(edges)]
    axis.broken_barh(pieces, (0, STRIP), facecolors=colors, linewidth=0, transform=axis.get_xaxis_transform())


def titles(axis: Axes, usage: Usage, index: int, length: int) -> None:
    """Above a panel: which sequence it is, what the model says of it, the truth, and how many samples were used."""
    axis.set_title(f"#{usage.rows[index]}: {usage.said[index]}", fontsize=TITLE, loc="left", pad=3, parse_math=False)
    used = int(usage.used[index, :length].sum())
    axis.set_title(f"{used} of {length} samples used", fontsize=TITLE, loc="right", pad=3)


def time_axis(axis: Axes, length: int) -> None:
    """Steps from 1 to ``length``, 1 being marked."""
    room = 0.5 + 0.01 * length
    axis.set_xlim(1 - room, length + room)
    found = MaxNLocator(7, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(1, length)
    spacing = found[1] - found[0]
    axis.set_xticks([1, *(t for t in found if 1 + spacing / 2 <= t <= length)])


def usage_handles(lengths: Sequence[int]) -> list[Any]:
    """What a legend says of ``samples``, of sequences of these lengths."""
    handles: list[Any] = []
    if min(lengths) <= DOTS:
        handles += [
            Line2D([], [], linestyle="", marker=".", color=USED, markersize=8, label="used"),
            Line2D([], [], linestyle="", marker=".", color=SKIPPED, markersize=6, label="skipped"),
        ]
    if max(lengths) > DOTS:
        handles += [Patch(color=USED, label="strip: used"), Patch(color=SKIPPED, label="strip: skipped")]
    return handles


def legend(figure: Figure, handles: list[Any], title: str) -> None:
    """A figure's legend, above it, seven entries a row."""
    columns = min(len(handles), 7)
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
