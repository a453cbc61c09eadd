"""Figures: that they show what they should, and are files of the kind asked for."""

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipelines.errors import SkipRNNError
from pipelines.runs import figures
from pipelines.runs.figures import plot_curves, plot_usage
from pipelines.runs.load import load_run
from pipelines.tasks.drawing import SKIPPED, USED


def pixels_of(path, color):
    image = matplotlib.image.imread(path)[..., :3]
    return int((np.abs(image - to_rgb(color)).max(-1) < 0.02).sum())


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved last."""
    kept = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, *a, **k: (kept.append(figure), save(figure, *a, **k))[1])
    return lambda: kept[-1]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_usage_in_every_format(make_run, tmp_path, suffix):
    path = plot_usage(make_run(), tmp_path / f"usage.{suffix}", examples=3)
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(magic)


def test_dots_are_the_gate(make_run, tmp_path, drawn):
    run = make_run(lam=0.05, steps=40, lr=0.03)
    path = plot_usage(run, tmp_path / "usage.png", examples=5)
    trained = load_run(run)
    with torch.no_grad():
        gate = trained.model(trained.sequences.x[:5]).update_gate.bool()
    assert not gate.all()
    axes = [axis for axis in drawn().axes if axis.has_data()]
    assert len(axes) == 5
    for axis, used, x in zip(axes, gate, trained.sequences.x, strict=False):
        skipped_dots, used_dots = axis.lines[:2]
        assert used_dots.get_color() == USED
        assert used_dots.get_xdata().tolist() == [t + 1 for t in range(12) if used[t]]
        assert skipped_dots.get_xdata().tolist() == [t + 1 for t in range(12) if not used[t]]
        assert used_dots.get_ydata().tolist() == x[used, 1].tolist()
        assert f"{int(used.sum())} of 12" in axis.get_title(loc="right")
    assert pixels_of(path, USED) > 100
    assert pixels_of(path, SKIPPED) > 100


def test_sine_shows_the_amplitude(make_run, sine_file, tmp_path, drawn):
    run = make_run(task="sine", data=str(sine_file))
    plot_usage(run, tmp_path / "usage.png", examples=2)
    assert drawn().get_supylabel() == "amplitude"


def test_curves_join_seeds(make_run, tmp_path, drawn):
    runs = [make_run(f"{lam}-{seed}", lam=lam, seed=seed) for lam in (0.0, 0.1) for seed in (0, 1, 2)]
    plot_curves(runs, tmp_path / "curves.png")
    metric, used = drawn().axes
    assert [line.get_label() for line in metric.lines] == ["Skip LSTM, λ=0 (3 runs)", "Skip LSTM, λ=0.1 (3 runs)"]
    assert len(metric.collections) == 2
    values = [[r["val"]["used_mean"] for r in figures.read_metrics(run)] for run in runs[:3]]
    assert used.lines[0].get_ydata().tolist() == pytest.approx(np.mean(values, 0).tolist())
    assert metric.get_ylabel() == "val MSE"


def test_curves_tell_configurations_apart(make_run, tmp_path, drawn):
    runs = [make_run("a"), make_run("b", hidden_size=7), make_run("c", skip=False, lam=0.0)]
    plot_curves(runs, tmp_path / "curves.png")
    labels = [line.get_label() for line in drawn().axes[0].lines]
    assert labels == ["Skip LSTM, λ=0.001, hidden_size=6", "Skip LSTM, λ=0.001, hidden_size=7", "LSTM"]


def test_what_cannot_be_drawn(make_run, sine_file, tmp_path):
    run, untrained = make_run(), make_run("untrained", trained=False)
    other = make_run("sine", task="sine", data=str(sine_file))
    with pytest.raises(SkipRNNError, match=r"must end in \.png, \.pdf, \.svg"):
        plot_usage(run, tmp_path / "usage.gif")
    with pytest.raises(SkipRNNError, match="has no evaluation in its metrics"):
        plot_curves([untrained], tmp_path / "curves.png")
    with pytest.raises(SkipRNNError, match=r"different tasks \(adding, sine\)"):
        plot_curves([run, other], tmp_path / "curves.png")
    with pytest.raises(SkipRNNError, match="has no checkpoint 'best'"):
        plot_usage(untrained, tmp_path / "usage.png")


def test_an_existing_figure_is_kept_unless_told(make_run, tmp_path):
    run, path = make_run(), tmp_path / "usage.png"
    path.write_text("mine")
    with pytest.raises(SkipRNNError, match="exists already"):
        plot_usage(run, path)
    assert path.read_text() == "mine"
    plot_usage(run, path, overwrite=True)
    assert isinstance(matplotlib.image.imread(path), np.ndarray)


def test_no_global_matplotlib_state():
    assert figures.Figure is Figure
    assert not hasattr(figures, "plt")
