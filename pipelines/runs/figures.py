"""``plot-usage`` and ``plot-curves``: which samples a model used, and how it got there."""

import math
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from pipelines.data.features import FlatSequences, read_entries
from pipelines.data.files import atomic_path, write_text
from pipelines.data.schema import read_attributes
from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import load_config, load_words, read_metrics
from pipelines.runs.evaluation import TrainedRun, load_run
from pipelines.runs.model import Prediction, autocast
from pipelines.seeds import derive_seed
from pipelines.tasks import TASKS, Imdb, Mnist, Videos, task_of_file
from pipelines.tasks.imdb import PADDING, UNKNOWN
from pipelines.tasks.mnist import SIDE

USED, SKIPPED = "#d62728", "#1f77b4"
INK, PAPER = (USED, SKIPPED), ("#fbd5d1", "#d6e6f4")  # of used and of skipped pixels
AVERAGED = 1_000  # digits over which the use of a pixel is averaged
LINE = 110  # characters
FORMATS = (".png", ".pdf", ".svg")
OF_ONE_CURVE = ("seed", "device", "preset")  # runs that differ in nothing else are drawn as one curve


def plot_usage(
    run: Path,
    out: Path,
    *,
    examples: int | None = None,
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
        videos: the folder of the videos, if they are no longer where their features were extracted.
        split, checkpoint, data, device: as for ``evaluation.evaluate_run``.
        overwrite: replace ``out`` if it exists.

    Raises:
        SkipRNNError: the run cannot be read, or ``out`` cannot be written.
    """
    check_format(out)
    config = load_config(run)
    if Path(out).suffix.lower() == ".html" and config.task != "imdb":
        raise SkipRNNError(f"cannot draw {out}: only words make an .html page; name a .png, .pdf or .svg file")
    trained = load_run(run, split=split, checkpoint=checkpoint, data=data, device=device)
    torch.manual_seed(derive_seed(config.seed, "evaluate"))
    if isinstance(trained.task, Videos):
        return save(_videos(trained, examples or 3, split, data, videos), out, overwrite=overwrite)
    if videos is not None:
        raise SkipRNNError(f"{run} was not trained on videos; drop --videos")
    examples = examples or 10
    if isinstance(trained.task, Mnist):
        return save(_digits(trained, examples), out, overwrite=overwrite)
    shown = trained.sequences.take(slice(examples))
    used = _gates(trained, shown)
    if isinstance(trained.task, Imdb):
        reviews = _reviews(shown, used, load_words(run))
        if Path(out).suffix.lower() == ".html":
            write_text(out, _page(reviews, _title(config)), overwrite=overwrite)
            return Path(out)
        return save(_texts(reviews, _title(config)), out, overwrite=overwrite)
    return save(_signals(trained, shown, used), out, overwrite=overwrite)


def _gates(trained: TrainedRun, sequences: Sequences) -> Tensor:
    """Which samples are used, (N, T)."""
    with torch.inference_mode(), autocast(trained.config, trained.device):
        prediction: Prediction = trained.model(sequences.x, sequences.lengths)
    return prediction.update_gate.bool().cpu()


def _signals(trained: TrainedRun, sequences: Sequences, used: Tensor) -> Figure:
    """A dot a sample over time."""
    count, steps = sequences.x.shape[:2]
    lengths = [steps] * count if sequences.lengths is None else sequences.lengths.tolist()
    columns = 1 if count <= 3 else 2
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 1.35 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, axis in enumerate(axes.flat):
        if index >= count:
            axis.set_axis_off()
            continue
        length = lengths[index]
        gate = used[index, :length]
        _draw_usage(axis, trained.task.signal(sequences.x[index, :length].cpu()), gate)
        axis.set_title(f"{int(gate.sum())} of {length} samples used", fontsize=8, loc="right", pad=3)
        if index + columns >= count:
            axis.set_xlabel("time step")
            axis.tick_params(labelbottom=True)
    figure.supylabel(trained.task.signal_name, fontsize=10)
    handles = [
        axes[0, 0].plot([], [], ".", color=USED, markersize=8, label="used")[0],
        axes[0, 0].plot([], [], ".", color=SKIPPED, markersize=6, label="skipped")[0],
    ]
    _legend(figure, handles, _title(trained.config))
    return figure


def _digits(trained: TrainedRun, examples: int) -> Figure:
    """Digits with their used pixels red and skipped ones blue, and how often each pixel is used."""
    sequences = trained.sequences.take(slice(max(examples, AVERAGED)))
    used = torch.cat([_gates(trained, sequences.take(slice(i, i + 256))) for i in range(0, len(sequences), 256)])
    count = min(examples, len(sequences))
    columns = min(count, 5)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(1.7 * columns + 3.4, max(1.9 * rows, 3.2) + 0.6), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 2)
    ink = sequences.x.cpu().float().reshape(-1, SIDE, SIDE, 1).numpy() / 255
    gates = used.reshape(-1, SIDE, SIDE, 1).numpy()
    light, dark = (np.where(gates, *(to_rgb(color) for color in pair)) for pair in (PAPER, INK))
    images = light * (1 - ink) + dark * ink
    for index in range(count):
        axis = figure.add_subplot(grid[divmod(index, columns)])
        axis.imshow(images[index], interpolation="nearest")
        axis.set_title(f"{int(used[index].sum())} of {SIDE * SIDE} used", fontsize=8, pad=3)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[:, columns:])
    share = axis.imshow(used.float().mean(0).reshape(SIDE, SIDE).numpy(), cmap="RdBu_r", vmin=0, vmax=1)
    axis.set_title(f"share of {len(sequences):,} digits\nthat use a pixel", fontsize=8)
    axis.set_axis_off()
    figure.colorbar(share, ax=axis, shrink=0.8)
    handles = [Patch(color=INK[0], label="used"), Patch(color=INK[1], label="skipped")]
    _legend(figure, handles, _title(trained.config))
    return figure


def _videos(trained: TrainedRun, examples: int, split: str, data: Path | None, videos: Path | None) -> Figure:
    """Videos frame by frame; without the videos, the change from frame to frame."""
    path = data or Path(trained.config.data)
    entries = [entry for entry in read_entries(path) if entry.split == split]
    rows = torch.linspace(0, len(entries) - 1, min(examples, len(entries))).round().long()
    shown = trained.sequences.take(rows.to(trained.sequences.device))
    task, attributes = task_of_file(path), read_attributes(path)
    assert isinstance(task, Videos)
    from pipelines.video.contact_sheet import Sheet, contact_sheets
    from pipelines.video.decode import Sampling
    from pipelines.video.network import FRAME_COST

    if task.network not in FRAME_COST and videos is None:  # features that were made elsewhere
        return _signals(trained, shown, _gates(trained, shown))
    root = videos or Path(attributes["source"])
    if not root.is_dir():
        raise SkipRNNError(f"the videos are no longer in {root}; name their folder with --videos")
    with torch.inference_mode(), autocast(trained.config, trained.device):
        prediction: Prediction = trained.model(shown.x, shown.lengths)
    assert isinstance(trained.sequences, FlatSequences)
    counts = trained.sequences.counts[rows.to(trained.sequences.counts.device)].tolist()
    sheets = []
    for index, row in enumerate(rows.tolist()):
        entry, used = entries[row], prediction.update_gate[index, : counts[index]].bool().tolist()
        said = task.answer(prediction.output[index].cpu())
        heading = f"{entry.name}: {said['class']} ({said['probability']:.0%}), {sum(used)} of {len(used)} frames used"
        sheets.append(Sheet(root / entry.name, heading, used))
    return contact_sheets(sheets, Sampling(task.fps, task.seconds), _title(trained.config), USED, SKIPPED)


Reviews = list[tuple[str, list[tuple[str, bool]]]]  # a heading, and each word with whether it was used


def _reviews(sequences: Sequences, used: Tensor, words: list[str]) -> Reviews:
    reviews: Reviews = []
    for x, y, gate in zip(sequences.x.tolist(), sequences.y.tolist(), used.tolist(), strict=True):
        pairs = [
            (words[number] if number != UNKNOWN else "⟨?⟩", on)
            for number, on in zip(x, gate, strict=True)
            if number != PADDING
        ]
        padding = [on for number, on in zip(x, gate, strict=True) if number == PADDING]
        heading = f"{('negative', 'positive')[y]} review: {sum(on for _, on in pairs)} of {len(pairs)} words used"
        if any(padding):
            heading += f", and {sum(padding)} of {len(padding)} of padding"
        reviews.append((heading, pairs))
    return reviews


def _texts(reviews: Reviews, title: str) -> Figure:
    """Reviews word by word."""
    lines: list[list[tuple[str, str]]] = []  # words and their colours
    for heading, pairs in reviews:
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


def _page(reviews: Reviews, title: str) -> str:
    """Reviews as a page that needs nothing else."""
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>',
        "body{font:16px/1.6 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}",
        f".u{{color:{USED};font-weight:600}}.s{{color:{SKIPPED}}}",
        f'</style></head><body><h1>{escape(title)}</h1><p><span class="u">used</span> '
        '<span class="s">skipped</span></p>',
    ]
    for heading, pairs in reviews:
        words = " ".join(f'<span class="{"u" if on else "s"}">{escape(word)}</span>' for word, on in pairs)
        parts.append(f"<h2>{escape(heading)}</h2><p>{words}</p>")
    return "\n".join([*parts, "</body></html>\n"])


def _legend(figure: Figure, handles: list[Any], title: str) -> None:
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2, frameon=False)


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
    check_format(out, FORMATS)
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
    return save(figure, out, overwrite=overwrite)


def check_format(out: Path, formats: tuple[str, ...] = (*FORMATS, ".html")) -> None:
    """Refuse a path whose ending names none of the formats.

    Raises:
        SkipRNNError: it does not.
    """
    if Path(out).suffix.lower() not in formats:
        raise SkipRNNError(f"cannot draw {out}: its name must end in {', '.join(formats)}")


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


def save(figure: Figure, out: Path, *, overwrite: bool) -> Path:
    """Write a figure in the format that its name ends in."""
    with atomic_path(out, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=Path(out).suffix[1:].lower(), dpi=200)
    return Path(out)
