"""Figures: that they show what they should, and are files of the kind asked for."""

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipelines.errors import SkipRNNError
from pipelines.runs import figures
from pipelines.runs.classes import OfClass
from pipelines.runs.colors import PLAIN
from pipelines.runs.figures import plot_curves, plot_usage
from pipelines.runs.load import load_run
from pipelines.tasks import Adding, Mnist, OwnClasses
from pipelines.tasks.drawing import SKIPPED, USED, samples, usage_handles


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
        assert axis.get_xlim()[0] > 0
        assert axis.get_xticks()[0] == 1
    assert pixels_of(path, USED) > 100
    assert pixels_of(path, SKIPPED) > 100


def test_sine_shows_the_amplitude(make_run, sine_file, tmp_path, drawn):
    run = make_run(task="sine", data=str(sine_file))
    plot_usage(run, tmp_path / "usage.png", examples=2)
    assert drawn().get_supylabel() == "amplitude"


def test_titles_say_the_prediction_and_the_truth(make_run, sine_file, tmp_path, drawn):
    for run, split in ((make_run("adding"), "val"), (make_run("sine", task="sine", data=str(sine_file)), "test")):
        plot_usage(run, tmp_path / "usage.png", examples=1, split=split, overwrite=True)
        trained = load_run(run, split=split)
        output, y = trained.model(trained.sequences.x[:1]).output[0].detach(), trained.sequences.y[0]
        p = output.softmax(0)
        said = (
            f"sum {output[0]:.3g}, true {y:.3g}"
            if len(output) == 1
            else f"{p.argmax()} ({100 * p.max():.0f} %), true {y}"
        )
        assert drawn().axes[0].get_title(loc="left") == f"#0: {said}"


def test_sequences_and_features_are_chosen(make_run, tmp_path, drawn, monkeypatch):
    run = make_run()
    plot_usage(run, tmp_path / "usage.png", chosen=[9, 3], feature="value")
    x = load_run(run).sequences.x
    axes = [axis for axis in drawn().axes if axis.has_data()]
    assert [axis.get_title(loc="left").split(":")[0] for axis in axes] == ["#9", "#3"]
    heights = np.concatenate([line.get_ydata() for line in axes[0].lines])
    assert sorted(heights.tolist()) == sorted(x[9, :, 0].tolist())
    assert drawn().get_supylabel() == "value"
    with pytest.raises(SkipRNNError, match="the split test has 16 sequences, so --sequences go up to 15"):
        plot_usage(run, tmp_path / "no.png", chosen=[3, 16])
    assert figures._signal(Adding(), "0")[1] == "value"
    for wrong in ("2", "speed"):
        with pytest.raises(
            SkipRNNError, match=f"there is no feature {wrong}; name one of value, marker, or its number"
        ):
            figures._signal(Adding(), wrong)


@pytest.mark.parametrize(
    ("columns", "names"), [(("speed", "turn"), ["speed", "turn"]), ((), ["feature 0", "feature 1"])]
)
def test_features_go_by_the_names_that_the_data_has(columns, names):
    task = OwnClasses(features=2, mean=(0.0, 0.0), std=(1.0, 1.0), columns=columns, classes=("a", "b"))
    assert figures._signal(task, None)[1] == names[0]
    signal, name = figures._signal(task, names[1])
    assert (name, signal(torch.tensor([[1.0, 2.0]])).tolist()) == (names[1], [2.0])


def test_what_shows_no_feature_lets_none_be_chosen():
    with pytest.raises(SkipRNNError, match="the figure of mnist shows no single feature; drop --feature"):
        figures._signal(Mnist(), "0")


def test_long_sequences_are_strips():
    used = torch.zeros(4000, dtype=torch.bool)
    used[:1000], used[2000] = True, True
    axis = Figure().subplots()
    samples(axis, torch.rand(4000), used)
    (line,), (strip,) = axis.lines, axis.collections
    assert len(line.get_xdata()) == 4000
    colors = strip.get_facecolors()[:, :3]
    assert len(colors) == 400
    assert np.allclose(colors[:100], to_rgb(USED))
    assert np.allclose(np.delete(colors[100:], 100, 0), to_rgb(SKIPPED))
    assert colors[200][0] > to_rgb(SKIPPED)[0] + 0.2  # a single used sample is seen
    assert [handle.get_label() for handle in usage_handles([4000])] == ["strip: used", "strip: skipped"]
    assert len(usage_handles([12, 4000])) == 4


def test_curves_join_seeds(make_run, tmp_path, drawn):
    runs = [make_run(f"{lam}-{seed}", lam=lam, seed=seed) for lam in (0.0, 0.1) for seed in (0, 1, 2)]
    plot_curves(runs, tmp_path / "curves.png")
    metric, used = drawn().axes
    assert [line.get_label() for line in metric.lines] == ["Skip LSTM, λ=0 (3 runs)", "Skip LSTM, λ=0.1 (3 runs)"]
    assert len(metric.collections) == 2
    values = [[r["val"]["used_mean"] for r in figures.read_metrics(run)] for run in runs[:3]]
    assert used.lines[0].get_ydata().tolist() == pytest.approx(np.mean(values, 0).tolist())
    assert metric.get_ylabel() == "val MSE"
    assert {line.get_marker() for line in (*metric.lines, *used.lines)} == {"o"}  # as they are few
    assert metric.get_xlim()[0] == used.get_xlim()[0] == used.get_ylim()[0] == 0


def test_curves_tell_configurations_apart(make_run, tmp_path, drawn):
    runs = [make_run("a"), make_run("b", hidden_size=7), make_run("c", skip=False, lam=0.0)]
    plot_curves(runs, tmp_path / "curves.png")
    lines = drawn().axes[0].lines
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color() == PLAIN["lstm"]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]
    labels = [line.get_label() for line in lines]
    assert labels == ["Skip LSTM, λ=0.001, hidden_size=6", "Skip LSTM, λ=0.001, hidden_size=7", "LSTM"]


def test_curves_of_many_evaluations_have_no_markers(make_run, tmp_path, drawn):
    plot_curves([make_run(steps=10, eval_every=1)], tmp_path / "curves.png")
    assert drawn().axes[0].lines[0].get_marker() == ""


def test_curves_are_drawn_over_epochs_where_all_runs_count_them(make_run, tmp_path, drawn):
    epochs = make_run("epochs", steps=None, epochs=2)  # of three batches
    plot_curves([epochs], tmp_path / "curves.png")
    assert drawn().axes[0].get_xlabel() == "epoch"
    assert drawn().axes[0].lines[0].get_xdata().tolist() == [1, 2]
    plot_curves([epochs, make_run("steps")], tmp_path / "both.png")
    assert drawn().axes[0].get_xlabel() == "training step"


def test_curves_of_the_run_trained_last(skiprnn, make_run):
    make_run("runs/first")
    make_run("runs/second")
    assert skiprnn("plot-curves").stdout == "wrote curves.png\n"
    assert skiprnn("plot-curves", "--overwrite").stderr == "run: runs/second\n"


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


def test_names_are_no_formulas(make_run, tmp_path, monkeypatch):
    name = r"$\frac{$ and a$_$"
    monkeypatch.setattr(Adding, "feature_names", ("value", name))
    assert plot_usage(make_run(), tmp_path / "usage.png").exists()
    found = [OfClass(each, 1.0, 1.0, 3, None, 50.0, {each: 3}) for each in (name, "b")]
    assert figures.plot_confusion(found, tmp_path / "confusion.png", "title").exists()


def test_no_global_matplotlib_state():
    assert figures.Figure is Figure
    assert not hasattr(figures, "plt")
