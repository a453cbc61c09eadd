"""Runs with an answer to each step: training, evaluation, figures and export, each held against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.grids.results import cells, write_results
from pipelines.grids.sweep import evaluate_all, in_turn, plan, train_all
from pipelines.runs import figures
from pipelines.runs.checkpoints import load_checkpoint, save_checkpoint
from pipelines.runs.collapse import Watch
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import create_run, load_config, load_task, read_metrics, record_task
from pipelines.runs.evaluation import evaluate, evaluate_run
from pipelines.runs.export import export_run
from pipelines.runs.figures import plot_usage
from pipelines.runs.load import load_run
from pipelines.runs.model import build_model
from pipelines.runs.training import train
from pipelines.sources.own import write_own
from pipelines.tasks import OwnTags, load_data
from tests.runs import assert_same_run, interrupted_after

DRAWS = np.random.default_rng(0)
HIGH = np.repeat(DRAWS.integers(0, 2, (60, 4)), 3, axis=1)
X = (HIGH + DRAWS.normal(0, 0.2, HIGH.shape))[..., None]
LENGTHS = DRAWS.integers(4, 13, 60)
KINDS = {"own-tags": HIGH, "own-labels": np.stack([HIGH, 1 - HIGH], -1), "own-numbers": HIGH + 0.5}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for task, y in KINDS.items():
        np.savez(folder / f"{task}.npz", x=X, y=y, lengths=LENGTHS)
        write_own(folder / f"{task}.npz", folder / f"{task}.h5", val=0.3)
    return folder


@pytest.fixture
def own_run(files, tmp_path):
    """Create, and train unless told not to, a run of a task with some options changed."""

    def make(task, name="run", trained=True, **options):
        config = TrainConfig(
            task=task, data=str(files / f"{task}.h5"), true_lengths=True, hidden_size=6, batch_size=8, lr=1e-2,
            lam=1e-2, steps=12, eval_every=5, device="cpu",
        )  # fmt: skip
        run = create_run(tmp_path / name, replace(config, **options))
        if trained:
            train(run)
        return run

    return make


def test_the_output_stands_through_skipped_steps():
    config = TrainConfig(steps=1, hidden_size=6, task="own-tags", true_lengths=True)
    model = build_model(config, OwnTags()).eval()
    torch.nn.init.constant_(model.rnn.update_bias, -1.0)
    with torch.no_grad():
        output, gate = model(torch.randn(5, 30, 1), torch.tensor([30, 20, 1, 7, 30]))
    assert output.shape == (5, 30, 2)
    assert 0 < gate[:, 1:].sum() < gate[:, 1:].numel() / 2
    stands = gate[:, 1:] == 0
    assert torch.equal(output[:, 1:][stands], output[:, :-1][stands])


@pytest.mark.parametrize("task", KINDS)
def test_an_evaluation_in_batches_is_that_of_the_whole(own_run, task):
    run = own_run(task)
    trained = load_run(run, split="val")
    split = trained.sequences
    with torch.no_grad():
        output, _ = trained.model(split.x, split.lengths)
    result = evaluate(trained.model, trained.task, split, replace(trained.config, batch_size=1))
    assert result.loss == pytest.approx(trained.task.loss(output, split.y, split.lengths).item(), rel=1e-5)
    there = torch.arange(12) < split.lengths[:, None]
    if task == "own-tags":
        expected = (output.argmax(2) == split.y)[there].float().mean()
    elif task == "own-numbers":
        mean, std = trained.task.target_mean[0], trained.task.target_std[0]
        expected = (output[..., 0] * std + mean - split.y)[there].square().mean()
    else:
        said, true = (output > 0)[there], split.y[there].bool()
        expected = (2 * (said & true).sum(0) / (said.sum(0) + true.sum(0))).mean()
    assert result.metric == pytest.approx(expected.item(), rel=1e-5)
    assert evaluate_run(run, split="val").metric == pytest.approx(result.metric, rel=1e-5)


@pytest.mark.parametrize("task", KINDS)
def test_a_resumed_run_ends_as_one_that_was_not(own_run, task):
    whole, parts = (own_run(task, name, trained=False, dropout=0.2) for name in ("whole", "parts"))
    train(whole)
    stop = interrupted_after(3, 8)
    outcomes = [train(parts, should_stop=stop).reason for _ in range(3)]
    assert outcomes == ["interrupted", "interrupted", "finished"]
    assert_same_run(whole, parts)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_tags_are_learned(own_run, cell):
    run = own_run("own-tags", steps=150, cell=cell, hidden_size=8, lam=0.0, lr=2e-2, eval_every=50)
    watched = Watch.over(load_run(run).task, load_run(run, split="val").sequences)
    assert 0.5 <= watched.chance < 0.7
    assert not watched.is_at_chance(read_metrics(run)[-1]["val"]["metric"])
    assert read_metrics(run)[-1]["val"]["metric"] > 0.9


@pytest.mark.parametrize("task", KINDS)
def test_figures_show_labels_and_predictions_over_time(own_run, tmp_path, monkeypatch, task):
    run, kept = own_run(task), []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, *a, **k: (kept.append(figure), save(figure, *a, **k))[1])
    plot_usage(run, tmp_path / "usage.png", examples=2)
    trained = load_run(run)
    split = trained.sequences.take(slice(2))
    with torch.no_grad():
        output, gate = trained.model(split.x, split.lengths)
    for row, (above, below) in enumerate(zip(kept[0].axes[::2], kept[0].axes[1::2], strict=True)):
        end = int(split.lengths[row])
        used = gate[row, :end].bool()
        assert above.lines[1].get_xdata().tolist() == [t + 1 for t in range(end) if used[t]]
        assert above.get_title(loc="right") == f"{int(used.sum())} of {end} samples used"
        y, said = split.y[row, :end], output[row, :end]
        if task == "own-tags":
            verdict = f"{int((said.argmax(1) == y).sum())} of {end} steps right"
        elif task == "own-labels":
            verdict = f"{int(((said > 0) == y.bool()).sum())} of {2 * end} labels right"
        else:
            verdict = f"MSE {trained.task._errors(said, y).mean():.3g}"
        assert above.get_title(loc="left") == f"#{row}: {verdict}"
        if task == "own-tags":
            bands = below.images[0].get_array()
            assert bands.tolist() == [split.y[row, :end].tolist(), output[row, :end].argmax(1).tolist()]
        elif task == "own-labels":
            shown = [sum(path.get_extents().width for path in bars.get_paths()) for bars in below.collections]
            expected = [v for k in range(2) for v in (split.y[row, :end, k].sum(), (output[row, :end, k] > 0).sum())]
            assert shown == pytest.approx([float(v) for v in expected])
        else:
            true, said = below.lines[:2]
            assert true.get_ydata().tolist() == split.y[row, :end].tolist()
            assert said.get_drawstyle() == "steps-post"
            task_ = trained.task
            values = output[row, :end, 0] * task_.target_std[0] + task_.target_mean[0]
            assert np.allclose(said.get_ydata(), values)


@pytest.mark.slow(reason="ten seconds of tracing")
@pytest.mark.filterwarnings("default")  # torch's and onnxscript's own
def test_the_exported_step_gives_the_steps_output(own_run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    report = export_run(own_run("own-labels", lam=0.1, lr=0.05), tmp_path / "model.onnx")
    assert report.gates_equal == report.gates
    assert report.output_difference < 1e-5
    assert report.metric == pytest.approx(report.metric_exported, abs=1e-5)


def test_a_sweep_reports_them(own_run, tmp_path):
    runs = plan(tmp_path / "grid", [load_config(own_run("own-labels", trained=False))])
    assert train_all(runs, in_turn, lambda run, reason: None) == {}
    (result,) = evaluate_all(runs, {})
    (line,) = write_results(tmp_path / "grid", [result], {}, {})
    assert cells(line)[4].startswith("macro F1 0.")
    assert result["evaluation"]["metric_name"] == "macro F1"
    assert "mean average precision" in result["evaluation"]["other_metrics"]


def test_other_labels_are_refused(own_run, files, tmp_path):
    run = own_run("own-labels")
    write_own(files / "own-tags.npz", tmp_path / "tags.h5")
    with pytest.raises(SkipRNNError, match="holds data for the task own-tags, not own-labels"):
        load_run(run, data=tmp_path / "tags.h5")
    np.savez(tmp_path / "other.npz", x=X, y=KINDS["own-labels"], lengths=LENGTHS, names=np.array(["a", "b"]))
    write_own(tmp_path / "other.npz", tmp_path / "other.h5")
    with pytest.raises(SkipRNNError, match=r"has labels \('a', 'b'\), the run was trained on \('label 0', 'label 1'\)"):
        load_run(run, data=tmp_path / "other.h5")


def test_y_of_another_shape_is_refused(files, tmp_path):
    import h5py

    path = tmp_path / "own.h5"
    path.write_bytes((files / "own-tags.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["task"] = "own-classes"
    with pytest.raises(SkipRNNError, match=r"split val: y must be \(18,\), got \(18, 12\); generate it again"):
        load_data(path, "own-classes", ("val",), true_lengths=True)


def test_a_run_of_before_goes_on(own_run, tmp_path):
    """Whose own-numbers knew one number a sequence only, and said so in fewer words."""
    np.savez(tmp_path / "own.npz", x=X, y=X.mean((1, 2)), lengths=LENGTHS)
    task = write_own(tmp_path / "own.npz", tmp_path / "own.h5").task
    run = own_run("own-numbers", trained=False, data=str(tmp_path / "own.h5"))
    train(run, should_stop=interrupted_after(6))
    before = {**load_task(run), "target_mean": task.target_mean[0], "target_std": task.target_std[0]}
    del before["names"], before["each_step"]
    saved = load_checkpoint(run, "last")
    save_checkpoint(run, ("last",), replace(saved, progress=replace(saved.progress, task=before)))
    record_task(run, before)
    assert train(run).reason == "finished"
    assert load_run(run).task == task
