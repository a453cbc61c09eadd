"""Figures of runs: which samples a model used, how it got there, and which classes it takes for which."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from pipelines.data.files import atomic_path, check_writable, write_text
from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.runs.classes import OfClass
from pipelines.runs.colors import shade_of
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import load_config, load_words, read_metrics
from pipelines.runs.load import TrainedRun, load_run
from pipelines.runs.model import autocast
from pipelines.seeds import derive_seed
from pipelines.tasks import TASKS, Task
from pipelines.tasks.base import FORMATS, PAGE, ClassificationTask, Usage

AT_ONCE = 256  # sequences
NUMBERED = 20  # classes whose confusions are written as numbers, too
FEW_EVALUATIONS = 10  # fewer than these are marked one by one
STYLES = ("-", "--", ":", "-.")  # of lines that have one colour
NO_FORMULAS: Any = {"text.parse_math": False}  # names are users' own, and may hold any "$"
OF_ONE_CURVE = ("seed", "device", "preset")  # runs that differ in nothing else are drawn as one curve


def plot_usage(
    run: Path,
    out: Path,
    *,
    examples: int | None = None,
    chosen: Sequence[int] = (),
    feature: str | None = None,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    videos: Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw sequences of a split, the first ones or of videos some from all over it, used samples red, others blue.

    Args:
        run: the run directory.
        out: a path ending in .png, .pdf or .svg; for IMDB also .html.
        examples: sequences to draw; by default 10, or 3 videos.
        chosen: the numbers of those to draw, counted from 0, instead.
        feature: the name or number of that which is drawn over time; by default the task's.
        videos: the folder of the videos, if they are no longer where their features were extracted.
        split, checkpoint, data, device: as for ``evaluation.evaluate_run``.
        overwrite: replace ``out`` if it exists.

    Returns:
        ``out``.

    Raises:
        SkipRNNError: the run cannot be read, or ``out`` cannot be written.
    """
    check_format(out)
    config = load_config(run)
    formats = TASKS[config.task].usage_formats
    if Path(out).suffix.lower() not in formats:
        raise SkipRNNError(f"cannot draw {out}: only words make an .html page; name a .png, .pdf or .svg file")
    trained = load_run(run, split=split, checkpoint=checkpoint, data=data, device=device)
    torch.manual_seed(derive_seed(config.seed, "evaluate"))
    task = trained.task
    if videos is not None and not task.shows_videos:
        raise SkipRNNError(f"{run} was not trained on videos; drop --videos")
    shown = len(chosen) or examples or task.usage_examples
    rows = _rows(task, len(trained.sequences), shown, chosen, split)
    signal, signal_name = _signal(task, feature)
    sequences = trained.sequences.take(rows.to(trained.sequences.device))
    used, outputs = _looked_at(trained, sequences)
    usage = Usage(
        _title(config), trained.sequences, rows.tolist(), sequences, used, outputs, shown,
        data=data or Path(config.data), split=split, words=lambda: load_words(run), videos=videos, signal=signal,
        signal_name=signal_name,
        said=[task.verdict(*each) for each in zip(outputs, sequences.y.cpu(), sequences.ends()[:shown], strict=False)],
    )  # fmt: skip
    if Path(out).suffix.lower() == PAGE:
        write_text(out, task.usage_page(usage), overwrite=overwrite)
        return Path(out)
    with rc_context(NO_FORMULAS):
        return save(task.draw_usage(usage), out, overwrite=overwrite)


def _rows(task: Task, count: int, shown: int, chosen: Sequence[int], split: str) -> Tensor:
    """Which sequences the figure is made of, those to be shown first."""
    if chosen and max(chosen) >= count:
        raise SkipRNNError(f"the split {split} has {count:,} sequences, so --sequences go up to {count - 1}")
    rows = task.usage_rows(count, shown)
    if not chosen:
        return rows
    others = [row for row in rows[shown:].tolist() if row not in chosen]
    return torch.tensor([*chosen, *others])


def _signal(task: Task, feature: str | None) -> tuple[Callable[[Tensor], Tensor], str]:
    """What is drawn over time, (T, D) -> (T,), and its name."""
    if task.drawn_feature is None:
        if feature is not None:
            raise SkipRNNError(f"the figure of {task.name} shows no single feature; drop --feature")
        return task.signal, task.signal_name
    names = _feature_names(task)
    if feature is None:
        index = task.drawn_feature
    elif feature in names:
        index = names.index(feature)
    elif feature.isdecimal() and int(feature) < len(names):
        index = int(feature)
    else:
        listed = ", ".join(names)
        raise SkipRNNError(f"there is no feature {feature}; name one of {listed:.300}, or its number from 0")
    return lambda x: x[:, index], names[index]


def _feature_names(task: Task) -> list[str]:
    """What the data calls the features; where it does not say, what the task does."""
    return [*task.columns] or [*task.feature_names] or [f"feature {number}" for number in range(task.stored_size)]


def _looked_at(trained: TrainedRun, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Which samples are used, (N, T), and what the model says, (N, output_size) or (N, T, output_size)."""
    found: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode(), autocast(trained.config, trained.device):
        for start in range(0, len(sequences), AT_ONCE):
            some = sequences.take(slice(start, start + AT_ONCE))
            prediction = trained.model(some.x, some.lengths)
            found.append((prediction.update_gate.bool().cpu(), prediction.output.cpu()))
    return torch.cat([used for used, _ in found]), torch.cat([outputs for _, outputs in found])


def plot_curves(runs: list[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Draw validation metric and used samples against training steps, or where all runs count them, epochs.

    Runs of one configuration, whatever their seeds, make one curve: mean line, shading from minimum to maximum.

    Args:
        runs: run directories, all of one task.
        out: a path ending in .png, .pdf or .svg.
        overwrite: replace ``out`` if it exists.

    Returns:
        ``out``.

    Raises:
        SkipRNNError: a run cannot be read or has no evaluation, the tasks differ, or ``out`` cannot be written.
    """
    check_format(out, FORMATS)
    runs = list(dict.fromkeys(runs))
    groups: dict[str, list[list[dict[str, Any]]]] = {}
    colors: dict[str, str] = {}
    labels, tasks = _labels(runs), set()
    for run in runs:
        records = read_metrics(run)
        if not records:
            raise SkipRNNError(f"{run} has no evaluation in its metrics.jsonl yet; train it further")
        groups.setdefault(labels[run], []).append(records)
        colors.setdefault(labels[run], shade_of(load_config(run)))
        tasks.add(load_config(run).task)
    if len(tasks) > 1:
        raise SkipRNNError(f"the runs are of different tasks ({', '.join(sorted(tasks))}); plot each task by itself")
    task = TASKS[tasks.pop()]

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    metric_axis, used_axis = figure.subplots(1, 2)
    of_time = (
        "epoch" if all("epoch" in record for group in groups.values() for run in group for record in run) else "step"
    )
    for label, group in groups.items():
        same = [other for other in colors if colors[other] == colors[label]].index(label)
        look: dict[str, Any] = {"color": colors[label], "linestyle": STYLES[same % len(STYLES)]}
        _draw_curve(metric_axis, group, of_time, "metric", no_formula(label), look)
        _draw_curve(used_axis, group, of_time, "used_mean", no_formula(label), look)
    metric_axis.set_ylabel(f"val {task.metric_name}")
    if not task.higher_is_better:
        metric_axis.set_yscale("log")
    used_axis.set_ylabel("used samples per sequence")
    used_axis.set_ylim(bottom=0)
    for axis in (metric_axis, used_axis):
        axis.set_xlabel({"epoch": "epoch", "step": "training step"}[of_time])
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3, which="both")
    figure.legend(*metric_axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return save(figure, out, overwrite=overwrite)


def check_confusion(run: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse, before a run is evaluated, what ``plot_confusion`` could not draw.

    Raises:
        SkipRNNError: the run's task has no classes, or ``out`` cannot be written.
    """
    check_format(out, FORMATS)
    check_writable(out, overwrite=overwrite)
    task = load_config(run).task
    if not issubclass(TASKS[task], ClassificationTask):
        raise SkipRNNError(f"{run} is of the task {task}, which has no single class to confuse; drop --confusion")


@rc_context(NO_FORMULAS)
def plot_confusion(found: list[OfClass], out: Path, title: str, *, overwrite: bool = False) -> Path:
    """Draw which classes are taken for which, a row a class and a column what was said, as shares of the row.

    Args:
        found: the results of each class.
        out: a path ending in .png, .pdf or .svg.
        title: of the figure.
        overwrite: replace ``out`` if it exists.

    Raises:
        SkipRNNError: ``out`` cannot be written.
    """
    names, count = [of.name for of in found], len(found)
    counts = torch.tensor([[of.said.get(name, 0) for name in names] for of in found], dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    inches = min(max(3.2, 0.55 * count), 15.0)  # of the matrix
    size = min(9.0, 72 * 0.8 * inches / count)  # points of names, which must not overlap
    figure = Figure(figsize=(inches + 2.4, inches + 1.8), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=1)
    if count <= NUMBERED:
        for row, column in counts.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{int(counts[row, column]):,}", ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(count), names, rotation=0 if count <= 3 else 90, fontsize=size)
    axis.set_yticks(range(count), names, fontsize=size)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of the true class")
    return save(figure, out, overwrite=overwrite)


def check_format(out: Path, formats: tuple[str, ...] = (*FORMATS, PAGE)) -> None:
    """Refuse a path whose ending names none of the formats.

    Raises:
        SkipRNNError: it does not.
    """
    if Path(out).suffix.lower() not in formats:
        raise SkipRNNError(f"cannot draw {out}: its name must end in {', '.join(formats)}")


def _draw_curve(
    axis: Axes, group: list[list[dict[str, Any]]], of_time: str, key: str, label: str, look: dict[str, Any]
) -> None:
    by_time = [{record[of_time]: record["val"][key] for record in records} for records in group]
    times = sorted(set.intersection(*map(set, by_time)))
    if not times:
        raise SkipRNNError(f"the runs of {label} were never evaluated at the same step; plot them one by one")
    values = torch.tensor([[run[time] for time in times] for run in by_time], dtype=torch.float64)
    name = f"{label} ({len(group)} runs)" if len(group) > 1 else label
    marker = "o" if len(times) < FEW_EVALUATIONS else ""
    (line,) = axis.plot(times, values.mean(0), label=name, marker=marker, markersize=4, **look)
    if len(group) > 1:
        axis.fill_between(times, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.25, linewidth=0)


def _labels(runs: list[Path]) -> dict[Path, str]:
    """A label a run: model and λ, and where runs with those differ in other options, the options too."""
    configs = {run: load_config(run) for run in runs}
    options = {run: {k: v for k, v in asdict(c).items() if k not in OF_ONE_CURVE} for run, c in configs.items()}
    labels = {}
    for run, config in configs.items():
        name = _title(config)
        same_name = [options[other] for other in runs if configs[other].model_name == config.model_name]
        differing = [k for k, v in options[run].items() if k != "lam" and any(other[k] != v for other in same_name)]
        labels[run] = ", ".join([name, *(f"{key}={options[run][key]}" for key in differing)])
    return labels


def _title(config: TrainConfig) -> str:
    return f"{config.model_name}, {config.budget_name}" if config.skip else config.model_name


def no_formula(name: str) -> str:
    """A user's name for a figure whose axes write 10⁻³ as formulas: a "$" in it is one."""
    return name.replace("$", r"\$")


def save(figure: Figure, out: Path, *, overwrite: bool) -> Path:
    """Write a figure in the format that its name ends in."""
    with atomic_path(out, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=Path(out).suffix[1:].lower(), dpi=200)
    return Path(out)
