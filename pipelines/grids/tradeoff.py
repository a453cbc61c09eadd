"""``plot-tradeoff``: how good the models of sweeps are against the samples they use."""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import BboxBase

from pipelines.data.doors import reading
from pipelines.errors import SkipRNNError
from pipelines.grids.results import read_results
from pipelines.runs.colors import color_of
from pipelines.runs.config import TrainConfig
from pipelines.runs.figures import STYLES, check_format, no_formula, save
from pipelines.tasks import TASKS, Task
from pipelines.tasks.base import FORMATS

MARKERS = ("o", "s", "^", "D")  # of models of one colour, from several folders

CORNERS = ((4, 4), (-4, 4), (4, -4), (-4, -4))  # of a point, where its label may be, in points

Series = dict[str, dict[tuple[float, str], list[tuple[float, float]]]]
"""Used samples and metric of runs, by what a line joins, and by what tells a point from others of its line."""


def plot_tradeoff(folders: list[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Draw the test metric against used samples: a small dot a run, a large one the mean over the seeds of each λ.

    Where the task says when it counts as solved that is a dashed line, and where it is known how few samples suffice, a
    dotted one.

    Args:
        folders: what ``reproduce`` or ``sweep`` wrote, all of one task.
        out: a path ending in .png, .pdf or .svg.
        overwrite: replace ``out`` if it exists.

    Raises:
        SkipRNNError: a folder has no results, the tasks differ, or ``out`` cannot be written.
    """
    check_format(out, FORMATS)
    names = _names(folders)
    panels: dict[str, Series] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))  # by data file
    tasks: dict[str, Task] = {}
    colors: dict[str, str] = {}
    for folder, name in names.items():
        prefix = f"{name}: " if len(names) > 1 else ""
        for result in read_results(folder)["runs"]:
            config = result["config"]
            data = Path(config.data).stem
            with reading(folder / "results.json", "the results of a sweep", "run the sweep again"):
                try:
                    task = TASKS[config.task].from_attributes({k: v for k, v in result["task"].items() if k != "task"})
                except SkipRNNError as error:
                    raise ValueError(str(error)) from error
                used, metric = (float(result["evaluation"][name]) for name in ("used_mean", "metric"))
            if tasks.setdefault(data, task) != task:
                raise SkipRNNError(
                    f"{folder} has runs on {data} of {task}, others are of {tasks[data]}; plot each by itself"
                )
            line, place = _place(config)
            panels[data][prefix + line][place].append((used, metric))
            colors[prefix + line] = color_of(config)
    kinds = sorted({task.name for task in tasks.values()})
    if not kinds:
        raise SkipRNNError(f"there is no finished run in {', '.join(map(str, folders))}; run the sweep again")
    if len(kinds) > 1:
        raise SkipRNNError(f"the runs are of different tasks ({', '.join(kinds)}); plot each task by itself")
    figure = Figure(figsize=(6.4 * len(panels), 4.6), layout="constrained")
    labels = []
    for axis, (data, series) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        labels += _draw(axis, series, colors, tasks[data])
        if len(panels) > 1:
            axis.set_title(no_formula(data), fontsize=10)
    _part(figure, [label for label in labels if label.get_text()])
    return save(figure, out, overwrite=overwrite)


def _part(figure: Figure, labels: list[Annotation]) -> None:
    """Move each label to a corner of its point in its panel, clear of legends and other labels, if there is one."""
    figure.draw_without_rendering()
    placed: list[BboxBase] = []
    for axis in figure.axes:
        legend = axis.get_legend()
        assert legend is not None
        placed.append(box := legend.get_window_extent())
        legend.borderaxespad = 0
        legend.set_loc("lower left")  # where it is, since it would look for the best place again
        x, y = axis.transAxes.inverted().transform(box.min)
        legend.set_bbox_to_anchor((x, y), transform=axis.transAxes)
    for label in labels:
        for corner in CORNERS:
            label.set_position(corner)
            label.set(ha="right" if corner[0] < 0 else "left", va="top" if corner[1] < 0 else "bottom")
            box = label.get_window_extent()
            frame = label.axes.bbox if label.axes is not None else box
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and not any(box.overlaps(other) for other in placed):
                break
        else:
            label.set(position=CORNERS[0], ha="left", va="bottom")
        placed.append(label.get_window_extent())


def _names(folders: list[Path]) -> dict[Path, str]:
    """The folders, each once, and what to call them: as much of the end of each path as tells it from the others."""
    parts = {folder: folder.parts for folder in dict.fromkeys(folder.resolve() for folder in folders)}
    names = {}
    for folder, own in parts.items():
        others = [other for other in parts.values() if other != own]
        count = next(n for n in range(1, len(own) + 1) if n == len(own) or all(o[-n:] != own[-n:] for o in others))
        names[folder] = "/".join(own[-count:])
    return names


def _place(config: TrainConfig) -> tuple[str, tuple[float, str]]:
    """The line that a model stands on, and where: its order and its label."""
    if config.skip:
        return config.model_name, (config.lam, f"λ={config.lam:g}")
    if config.p_skip is None:
        return config.cell.upper(), (0, "")
    return f"{config.cell.upper()}, skipping at random", (config.p_skip, f"{config.p_skip:g}")


def _draw(axis: Axes, series: Series, colors: dict[str, str], task: Task) -> list[Annotation]:
    """Draw a panel and return the labels of its points."""
    labels = []
    for name, groups in series.items():
        same = [other for other in series if colors[other] == colors[name]].index(name)
        look: dict[str, Any] = {
            "color": colors[name],
            "linestyle": STYLES[same % len(STYLES)],
            "marker": MARKERS[same % len(MARKERS)],
            "markerfacecolor": "none",  # so that none hides another
            "clip_on": False,
        }
        ordered = sorted(groups.items())
        used, metric = ([mean(point[i] for point in group) for _, group in ordered] for i in (0, 1))
        (line,) = axis.plot(used, metric, label=no_formula(name), markersize=6, linewidth=1, **look)
        single = [point for _, group in ordered for point in group if len(group) > 1]
        axis.plot([x for x, _ in single], [y for _, y in single], ".", color=line.get_color(), alpha=0.4)
        for (_, label), x, y in zip((key for key, _ in ordered), used, metric, strict=True):
            labels.append(axis.annotate(label, (x, y), xytext=CORNERS[0], textcoords="offset points", fontsize=7))
    if task.solved_at is not None:
        axis.axhline(task.solved_at, color="0.4", linestyle="--", linewidth=1, label=f"solved: {task.solved_at:.3g}")
    if task.fewest_samples is not None:
        fewest = task.fewest_samples
        axis.axvline(fewest, color="0.4", linestyle=":", linewidth=1, label=f"fewest that suffice: {fewest:g}")
    axis.set_xlabel("used samples per sequence")
    axis.set_ylabel(f"test {task.metric_name}")
    axis.set_xlim(left=0)
    if not task.higher_is_better:
        axis.set_yscale("log")
    elif axis.get_ylim()[1] > 1:  # a share
        axis.set_ylim(top=1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, facecolor="white", edgecolor="none", framealpha=0.9)
    return labels
