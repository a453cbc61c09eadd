"""Draw docs/figures/speed.svg and streaming.svg from benchmarks/results/: time against the share of samples used.

python benchmarks/figures.py
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
OURS, TORCH = "#d62728", "#555555"
TICKS = (3, 5, 10, 25, 50, 100)  # per cent


def speed() -> Figure:
    """A training step of an LSTM on two CPU cores, at three of the paper's shapes."""
    results = json.loads((ROOT / "benchmarks/results/cpu-2-cores.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    shapes = {"adding": "adding, 50 steps", "mnist": "MNIST, 784 steps", "imdb": "IMDB, 400 steps, 300 features"}
    for axis, (shape, title) in zip(figure.subplots(1, 3), shapes.items(), strict=True):
        times = {
            row["what"]: row["training_ms"] for row in results["rows"] if (row["shape"], row["cell"]) == (shape, "lstm")
        }
        ours = {int(what[:-1]): time for what, time in times.items() if what[:-1].isdigit()}
        _draw(axis, {"SkipLSTM": ours}, times["nn.LSTM"], title)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("ms a training step" if shape == "adding" else "")
    return figure


def streaming() -> Figure:
    """One sequence on one CPU core, as a whole and sample by sample."""
    results = json.loads((ROOT / "benchmarks/results/streaming-cpu.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    for axis, units in zip(figure.subplots(1, 2), (110, 512), strict=True):
        rows = {
            int(row["usage"][:-1]): row["us_per_step"]
            for row in results["rows"]
            if (row["cell"], row["units"]) == ("lstm", units)
        }
        names = {"forward": "SkipLSTM, forward", "feed": "Stream.feed", "read": "Stream.run"}
        ours = {label: {usage: row[name] for usage, row in rows.items()} for name, label in names.items()}
        _draw(axis, ours, max(row["whole"] for row in rows.values()), f"LSTM, {units} units")
        axis.set_yscale("log")
        axis.set_ylim((0.08, 12) if units == 110 else (0.9, 100))
        axis.minorticks_off()
        axis.set_ylabel("µs an input step" if units == 110 else "")
    return figure


def _draw(axis: Axes, ours: dict[str, dict[int, float]], torch: float, title: str) -> None:
    """Time by per cent of the samples used, beside torch's, which uses all."""
    axis.axhline(torch, color=TORCH, linestyle="--", label="nn.LSTM")
    for (name, times), style in zip(ours.items(), ("o-", "s:", "^-."), strict=False):
        axis.plot(*zip(*sorted(times.items()), strict=True), style, color=OURS, markersize=4, label=name)
    axis.set_xscale("log")
    axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axis.minorticks_off()
    axis.set_xlabel("samples used, %")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    mpl.rcParams.update({"svg.hashsalt": "skiprnn", "svg.fonttype": "path"})
    for name, draw in {"speed": speed, "streaming": streaming}.items():
        path = ROOT / f"docs/figures/{name}.svg"
        draw().savefig(path, metadata={"Date": None})
        print(f"wrote {path.relative_to(ROOT)}")
