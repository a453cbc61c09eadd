"""The figure of quality against cost: its points are the runs', its lines the task's."""

import json
import shutil
from itertools import combinations

import pytest
from matplotlib.figure import Figure

from pipelines.errors import SkipRNNError
from pipelines.grids import tradeoff
from pipelines.grids.results import write_results
from pipelines.grids.sweep import evaluate_all, in_turn, plan, train_all
from pipelines.grids.tradeoff import plot_tradeoff
from pipelines.runs.colors import PLAIN, SKIPPING
from pipelines.runs.config import configure
from pipelines.tasks import Sine


@pytest.fixture(scope="module")
def kept_sweep(adding_file, tmp_path_factory):
    """A sweep of two λ, two seeds each, the plain cell and one that skips at random."""
    gates = [{"lam": 0.0}, {"lam": 1e-3}, {"skip": False}, {"skip": False, "p_skip": 0.5}]
    configs = [
        configure("adding", "quick", data=str(adding_file), hidden_size=6, batch_size=32, steps=4, eval_every=4,
                  seed=seed, device="cpu", **gate)
        for gate in gates for seed in (0, 1)
    ]  # fmt: skip
    out = tmp_path_factory.mktemp("sweep") / "swept"
    runs = plan(out, configs)
    train_all(runs, in_turn)
    about = {"asked": {"task": "adding", "preset": "quick", "settings": {}}, "where": {}}
    write_results(out, evaluate_all(runs, {}), {}, about)
    return out


@pytest.fixture
def swept(kept_sweep, tmp_path):
    return shutil.copytree(kept_sweep, tmp_path / "swept")


@pytest.fixture
def drawn(monkeypatch):
    kept: list[Figure] = []
    save = tradeoff.save
    monkeypatch.setattr(tradeoff, "save", lambda figure, *a, **k: (kept.append(figure), save(figure, *a, **k))[1])
    return lambda: kept[-1]


def test_points_are_the_runs_and_lines_the_tasks(swept, tmp_path, drawn):
    path = plot_tradeoff([swept], tmp_path / "tradeoff.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axis,) = drawn().axes
    lines = {line.get_label(): line for line in axis.lines}
    runs = json.loads((swept / "results.json").read_text())["runs"]
    said = [run["evaluation"] for run in runs]
    skip = lines["Skip LSTM"]
    assert skip.get_xdata() == pytest.approx([(said[i]["used_mean"] + said[i + 1]["used_mean"]) / 2 for i in (0, 2)])
    assert skip.get_ydata() == pytest.approx([(said[i]["metric"] + said[i + 1]["metric"]) / 2 for i in (0, 2)])
    singles = next(line for line in axis.lines if len(line.get_xdata()) == 4)
    assert sorted(singles.get_ydata()) == pytest.approx(sorted(run["metric"] for run in said[:4]))
    assert {text.get_text() for text in axis.texts} == {"λ=0", "λ=0.001", "0.5", ""}
    assert {"LSTM", "LSTM, skipping at random", "solved: 0.00167", "fewest that suffice: 4.5"} <= lines.keys()
    assert lines["fewest that suffice: 4.5"].get_xdata() == [4.5, 4.5]  # of 12 steps: 1, and 3.5 of the last 6
    assert axis.get_yscale() == "log"
    assert {lines[name].get_color() for name in ("Skip LSTM", "LSTM")} == {SKIPPING["lstm"], PLAIN["lstm"]}
    assert axis.get_xlim()[0] == 0


def test_a_share_ends_at_1_and_no_marker_hides_another():
    axis = Figure().subplots()
    tradeoff._draw(
        axis, {"Skip LSTM": {(1e-3, "λ"): [(3.0, 1.0)], (0, "λ"): [(5.0, 0.5)]}}, {"Skip LSTM": "C0"}, Sine()
    )
    assert axis.get_ylim()[1] == 1
    assert axis.lines[0].get_markerfacecolor() == "none"


def test_several_folders_are_told_apart(swept, tmp_path, drawn):
    other = tmp_path / r"$\frac{$" / "swept"  # no formula
    other.mkdir(parents=True)
    (other / "results.json").write_bytes((swept / "results.json").read_bytes())
    plot_tradeoff([swept, other, other.parent / ".." / "swept"], tmp_path / "tradeoff.svg")
    both = [line for line in drawn().axes[0].lines if line.get_label().endswith(": Skip LSTM")]
    assert [(line.get_color(), line.get_marker()) for line in both] == [(SKIPPING["lstm"], m) for m in "os"]
    labels = {line.get_label() for line in drawn().axes[0].lines}
    assert {f"{tmp_path.name}/swept: Skip LSTM", r"\$\frac{\$/swept: Skip LSTM"} <= labels
    content = json.loads((other / "results.json").read_text())
    content["runs"][0]["task"]["length"] = 30
    (other / "results.json").write_text(json.dumps(content))
    with pytest.raises(SkipRNNError, match=r"on adding of Adding\(length=30\), others are of Adding\(length=12\)"):
        plot_tradeoff([swept, other], tmp_path / "tradeoff.png")


def test_what_cannot_be_drawn_is_said(swept, tmp_path):
    with pytest.raises(SkipRNNError, match=r"must end in \.png, \.pdf, \.svg"):
        plot_tradeoff([swept], tmp_path / "tradeoff.html")
    with pytest.raises(SkipRNNError, match=r"`skiprnn reproduce` and `skiprnn sweep` write it"):
        plot_tradeoff([tmp_path], tmp_path / "tradeoff.png")
    content = json.loads((swept / "results.json").read_text())
    (swept / "results.json").write_text(json.dumps({**content, "runs": [{**content["runs"][0], "task": {}}]}))
    with pytest.raises(SkipRNNError, match=r"results.json: .* \(it lacks length\); run the sweep again"):
        plot_tradeoff([swept], tmp_path / "tradeoff.png")
    task = {"task": "adding", "length": -3}
    (swept / "results.json").write_text(json.dumps({**content, "runs": [{**content["runs"][0], "task": task}]}))
    with pytest.raises(SkipRNNError, match=r"results.json: .* got -3\); run the sweep again"):
        plot_tradeoff([swept], tmp_path / "tradeoff.png")
    (swept / "results.json").write_text(json.dumps({**content, "runs": []}))
    with pytest.raises(SkipRNNError, match=r"there is no finished run in .*swept"):
        plot_tradeoff([swept], tmp_path / "tradeoff.png")


def test_labels_lie_in_their_panel_and_on_nothing_else(swept, tmp_path, drawn):
    results = json.loads((swept / "results.json").read_text())
    for run, used, lam in zip(results["runs"][:4], (50, 50, 49.5, 49.5), (0.0, 0.0, 1e-5, 1e-5), strict=True):
        run["evaluation"] |= {"used_mean": used, "metric": 0.1}
        run["config"]["lam"] = lam
    (swept / "results.json").write_text(json.dumps(results))
    plot_tradeoff([swept], tmp_path / "tradeoff.png")
    figure = drawn()
    (axis,) = figure.axes
    figure.draw_without_rendering()
    texts = [text for text in axis.texts if text.get_text()]
    assert {text.get_text() for text in texts} >= {"λ=0", "λ=1e-05"}
    boxes = [text.get_window_extent() for text in texts]
    assert all(axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 for box in boxes)
    boxes.append(axis.get_legend().get_window_extent())
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
