"""The paper's figures: which runs they show, and what is said where one is missing."""

import shutil
from dataclasses import replace

import pytest

from pipelines.errors import SkipRNNError
from pipelines.grids import paper_figures
from pipelines.grids.paper import FIGURES, PaperFigure, only_in_figures
from pipelines.grids.paper_figures import draw_figures
from pipelines.grids.results import write_results
from pipelines.grids.sweep import evaluate_all, grid_of_table, in_turn, plan, train_all
from skiprnn_cli.grids import Work


@pytest.fixture(scope="module")
def kept_sweep(tmp_path_factory):
    """A place for the sweep of all tests."""
    return tmp_path_factory.mktemp("sweep") / "swept"


@pytest.fixture
def swept(kept_sweep, config, tmp_path):
    """Skip GRU with λ=1e-5, two seeds, the plain GRU, one that skips at random, and another λ."""
    if not kept_sweep.exists():
        gates = [{"lam": 1e-5, "seed": 1}, {"lam": 1e-5}, {"skip": False, "lam": 0.0}, {"lam": 1e-3}]
        gates.append({"skip": False, "lam": 0.0, "p_skip": 0.5})
        runs = plan(kept_sweep, [replace(config, cell="gru", **gate) for gate in gates])
        assert not train_all(runs, in_turn)
        about = {"asked": {"task": "adding", "preset": "quick", "settings": {}}, "where": {}}
        write_results(kept_sweep, evaluate_all(runs, {}), {}, about)
    return shutil.copytree(kept_sweep, tmp_path / "swept")


def test_figures_show_the_paper_s_models(swept, monkeypatch):
    drawn = []
    for name in ("plot_usage", "plot_curves"):
        plot = getattr(paper_figures, name)

        def note(runs, path, plot=plot, **options):
            drawn.append((runs, options["overwrite"], options.get("examples")))
            return plot(runs, path, **options)

        monkeypatch.setattr(paper_figures, name, note)
    curves = PaperFigure("5.2", FIGURES["adding"][0].data, (("gru", None), ("gru", 1e-5)), None)
    monkeypatch.setitem(FIGURES, "adding", (*FIGURES["adding"], curves))
    counts = []
    written = draw_figures(swept, counts.append)
    assert [path.name for path in written] == [f"figure-{number}-adding.png" for number in ("5.1", "A.1", "5.2")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    run = swept / "runs/adding-skip-gru-lam1e-05-seed0"
    seeds = [run.with_name("adding-gru-seed0"), run, run.with_name("adding-skip-gru-lam1e-05-seed1")]
    assert drawn == [(run, True, 1), (run, True, 10), (seeds, True, None)]
    assert counts == [1, 1, 1]


def test_a_figure_says_which_run_it_lacks(swept, monkeypatch):
    monkeypatch.setitem(FIGURES, "adding", (replace(FIGURES["adding"][0], models=(("lstm", 1e-5),)),))
    with pytest.raises(SkipRNNError, match=r"figure 5\.1 shows Skip LSTM, λ=1e-05, on adding; .* has no finished run"):
        draw_figures(swept)


def test_digits_that_only_figures_show_are_trained_for_them(tmp_path):
    assert [(row.data.name, row.cell, row.lam) for row in only_in_figures("mnist")] == [
        ("mnist-17", "lstm", 1e-4),
        ("mnist-56", "lstm", 1e-4),
    ]
    assert not any(only_in_figures(task) for task in FIGURES if task != "mnist")
    without, with_them = (grid_of_table("mnist", "quick", tmp_path, [0], figures=which) for which in (False, True))
    assert with_them[: len(without)] == without
    assert [config.data for config in with_them[len(without) :]] == [
        str(tmp_path / f"mnist-{digits}.h5") for digits in (17, 56)
    ]


def test_reproduce_draws_the_figures_when_all_is_trained(skiprnn, monkeypatch):
    done = []
    monkeypatch.setattr("skiprnn_cli.gen_data.write_with_progress", lambda *arguments, **options: None)
    monkeypatch.setattr(
        "skiprnn_cli.reproduce.run_grid", lambda configs, *_, **how: done.append(configs[0].task) or Work()
    )
    monkeypatch.setattr(
        paper_figures, "draw_figures", lambda folder, advance: done.append(folder.name) or [folder / "a.png"]
    )
    result = skiprnn("reproduce", "sine", "--preset", "settled", "--runs", "1", "--figures")
    assert done == ["sine", "sine-settled"]
    assert "wrote reproduced/sine-settled/a.png" in result.output
    skiprnn("reproduce", "sine", "--preset", "settled", "--runs", "1", "--figures", "--dry-run")
    skiprnn("reproduce", "sine", "--preset", "settled", "--runs", "1")
    assert done == ["sine", "sine-settled", "sine", "sine"]
