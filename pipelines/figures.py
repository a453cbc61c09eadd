"""``plot-usage`` and ``plot-curves``: which samples a model used, and how it got there."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.errors import SkipRNNError
from pipelines.evaluation import load_run
from pipelines.model import autocast
from pipelines.presets import TrainConfig
from pipelines.randomness import derive_seed
from pipelines.runs import load_config, read_metrics
from pipelines.storage import atomic_path
from pipelines.tasks import TASKS

USED, SKIPPED = "#d62728", "#1f77b4"
FORMATS = (".png", ".pdf", ".svg")
OF_ONE_CURVE = ("seed", "device", "preset")  # runs that differ in nothing else are drawn as one curve


def plot_usage(
    run: Path,
    out: Path,
    *,
    examples: int = 10,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw the first sequences of a split, used samples red and skipped ones blue.

    Args:
        run: the run directory.
        out: a path ending in .png, .pdf or .svg.
        examples: sequences to draw.
        split, checkpoint, data, device: as for ``evaluation.evaluate_run``.
        overwrite: replace ``out`` if it exists.

    Raises:
        SkipRNNError: the run cannot be read, or ``out`` cannot be written.
    """
    check_format(out)
    trained = load_run(run, split=split, checkpoint=checkpoint, data=data, device=device)
    x = trained.sequences.x[:examples]
    torch.manual_seed(derive_seed(trained.config.seed, "evaluate"))
    with torch.inference_mode(), autocast(trained.config, trained.device):
        update_gate = trained.model(x).update_gate.bool().cpu()

    columns = 1 if len(x) <= 3 else 2
    rows = math.ceil(len(x) / columns)
    figure = Figure(figsize=(5.2 * columns, 1.35 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, axis in enumerate(axes.flat):
        if index >= len(x):
            axis.set_axis_off()
            continue
        _draw_usage(axis, trained.task.signal(x[index].cpu()), update_gate[index])
        axis.set_title(f"{int(update_gate[index].sum())} of {x.shape[1]} samples used", fontsize=8, loc="right", pad=3)
        if index + columns >= len(x):
            axis.set_xlabel("time step")
            axis.tick_params(labelbottom=True)
    figure.supylabel(trained.task.signal_name, fontsize=10)
    handles = [
        axes[0, 0].plot([], [], ".", color=USED, markersize=8, label="used")[0],
        axes[0, 0].plot([], [], ".", color=SKIPPED, markersize=6, label="skipped")[0],
    ]
    title = _title(trained.config)
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2, frameon=False)
    return _save(figure, out, overwrite=overwrite)


def plot_curves(runs: list[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Draw validation metric and used samples against training steps.

    Runs of one configuration, whatever their seeds, make one curve: mean line, shading from minimum to maximum.

    Args:
        runs: run directories, all of one task.
        out: a path ending in .png, .pdf or .svg.
        overwrite: replace ``out`` if it exists.

    Raises:
        SkipRNNError: a run cannot be read or has no evaluation, the tasks differ, or ``out`` cannot be written.
    """
    check_format(out)
    runs = list(dict.fromkeys(runs))
    groups: dict[str, list[list[dict[str, Any]]]] = {}
    labels, tasks = _labels(runs), set()
    for run in runs:
        records = read_metrics(run)
        if not records:
            raise SkipRNNError(f"{run} has no evaluation in its metrics.jsonl yet; train it further")
        groups.setdefault(labels[run], []).append(records)
        tasks.add(load_config(run).task)
    if len(tasks) > 1:
        raise SkipRNNError(f"the runs are of different tasks ({', '.join(sorted(tasks))}); plot each task by itself")
    task = TASKS[tasks.pop()]

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    metric_axis, used_axis = figure.subplots(1, 2)
    for label, group in groups.items():
        _draw_curve(metric_axis, group, "metric", label)
        _draw_curve(used_axis, group, "used_mean", label)
    metric_axis.set_ylabel(f"validation {task.metric_name}")
    if not task.higher_is_better:
        metric_axis.set_yscale("log")
    used_axis.set_ylabel("used samples per sequence")
    used_axis.set_ylim(bottom=0)
    for axis in (metric_axis, used_axis):
        axis.set_xlabel("training step")
        axis.grid(alpha=0.3)
    figure.legend(*metric_axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return _save(figure, out, overwrite=overwrite)


def check_format(out: Path) -> None:
    """Refuse a path whose ending names no figure format.

    Raises:
        SkipRNNError: the ending is none of .png, .pdf and .svg.
    """
    if Path(out).suffix.lower() not in FORMATS:
        raise SkipRNNError(f"cannot draw {out}: its name must end in {', '.join(FORMATS)}")


def _draw_usage(axis: Axes, signal: Tensor, used: Tensor) -> None:
    step = torch.arange(1, len(signal) + 1)
    axis.plot(step[~used], signal[~used], ".", color=SKIPPED, markersize=4)
    axis.plot(step[used], signal[used], ".", color=USED, markersize=6)
    axis.margins(x=0.02, y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _draw_curve(axis: Axes, group: list[list[dict[str, Any]]], key: str, label: str) -> None:
    by_step = [{record["step"]: record["val"][key] for record in records} for records in group]
    steps = sorted(set.intersection(*map(set, by_step)))
    if not steps:
        raise SkipRNNError(f"the runs of {label} were never evaluated at the same step; plot them one by one")
    values = torch.tensor([[run[step] for step in steps] for run in by_step], dtype=torch.float64)
    (line,) = axis.plot(steps, values.mean(0), label=f"{label} ({len(group)} runs)" if len(group) > 1 else label)
    if len(group) > 1:
        axis.fill_between(steps, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.25, linewidth=0)


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
    return f"{config.model_name}, λ={config.lam:g}" if config.skip else config.model_name


def _save(figure: Figure, out: Path, *, overwrite: bool) -> Path:
    with atomic_path(out, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=Path(out).suffix[1:].lower(), dpi=200)
    return Path(out)
