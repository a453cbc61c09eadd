"""Evaluation against what can be computed by hand."""

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig
from pipelines.runs.evaluation import evaluate, evaluate_run
from pipelines.runs.load import load_run
from pipelines.runs.model import build_model, without_skipping
from pipelines.tasks import Adding, Sine
from tests.gpu import on_gpu


def test_an_evaluation_that_fails_leaves_training_mode_as_it_was(make_run, monkeypatch):
    trained = load_run(make_run())
    model, sequences = trained.model.train(), trained.sequences
    monkeypatch.setattr(type(trained.task), "scores", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, trained.task, sequences, trained.config)
    assert model.training
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_report(make_run):
    run = make_run()
    report = evaluate_run(run, split="val")
    trained = load_run(run, split="val")
    with torch.no_grad():
        output, gate = trained.model(trained.sequences.x)
    used = gate.sum(1)
    assert report.metric == pytest.approx((output[:, 0] - trained.sequences.y).square().mean().item())
    assert report.used_mean == pytest.approx(used.mean().item())
    assert report.used_std == pytest.approx(used.std(correction=0).item())
    assert report.used_percent == pytest.approx(100 * report.used_mean / 12)
    assert (report.sequences, report.steps_per_sequence, report.solved) == (16, 12, False)
    assert report.cost == pytest.approx(report.used_mean * 4 * 6 * (6 + 2))
    assert report.seconds_per_sequence > 0
    assert report.seconds_per_sequence_without_skipping > 0
    assert report.seconds_alone > 0
    assert report.seconds_alone_without_skipping > 0


@pytest.mark.parametrize(
    ("cell", "cost"), [("lstm", 2.46e6), ("gru", 1.85e6), ("rnn", 50 * 110 * 112), ("ln-lstm", 2.46e6)]
)
def test_cost_is_the_papers_count(cell, cost):
    model = build_model(TrainConfig(cell=cell, steps=1), Adding())
    assert 50 * model.cost_per_update() == pytest.approx(cost, rel=2e-3)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "ln-lstm"])
def test_without_skipping_keeps_the_function_of_an_open_gate(cell):
    model = build_model(TrainConfig(cell=cell, steps=1, hidden_size=6, num_layers=2), Sine())
    torch.nn.init.constant_(model.rnn.update_bias, 100.0)
    x = torch.randn(4, 9, 1)
    torch.testing.assert_close(without_skipping(model)(x), model(x))


def test_baselines_use_what_they_should(make_run):
    plain = evaluate_run(make_run("plain", skip=False, lam=0.0))
    assert (plain.model, plain.used_mean, plain.used_std) == ("LSTM", 12, 0)
    random = evaluate_run(make_run("random", skip=False, lam=0.0, p_skip=0.5))
    assert random.model == "LSTM p_skip=0.5"
    assert 4 < random.used_mean < 8
    assert plain.seconds_alone > 0
    assert random.seconds_alone is None
    assert random.used_mean == evaluate_run(make_run("again", skip=False, lam=0.0, p_skip=0.5)).used_mean


def test_other_data(make_run, sine_file, adding_file, tmp_path):
    run = make_run()
    assert evaluate_run(run, data=adding_file).metric == evaluate_run(run).metric
    with pytest.raises(SkipRNNError, match="holds data for the task sine, not adding"):
        evaluate_run(run, data=sine_file)
    with pytest.raises(SkipRNNError, match="no data file"):
        evaluate_run(run, data=tmp_path / "missing.h5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda(make_run):
    with pytest.raises(SkipRNNError, match="no CUDA device is available to torch; pass --device cpu"):
        evaluate_run(make_run(), device="cuda")


@on_gpu
def test_cuda_equals_cpu(make_run):
    run = make_run(steps=1)
    assert evaluate_run(run, device="cuda").metric == pytest.approx(evaluate_run(run).metric, rel=1e-4)
