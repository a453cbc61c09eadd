"""What changes from step to step: the learning rate, the share of λ, and the bound of the gate's gradient."""

import math
from dataclasses import replace

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.parallel.team import Team
from pipelines.runs import training
from pipelines.runs.checkpoints import load_checkpoint
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import read_metrics
from pipelines.runs.model import build_model
from pipelines.runs.schedules import learning_rate, share_of_lam
from pipelines.tasks import Adding
from skiprnn import budget_loss


def rates(steps, **options):
    config = TrainConfig(steps=steps, lr=0.8, **options)
    return [learning_rate(config, step, steps) for step in range(1, steps + 1)]


def test_a_constant_rate_stays():
    assert rates(5) == rates(5, decay_from=0.5) == [0.8] * 5


def test_cosine_is_half_a_cosine():
    assert rates(7, lr_schedule="cosine") == [0.8 * (1 + math.cos(math.pi * (k - 1) / 7)) / 2 for k in range(1, 8)]


def test_linear_falls_in_a_straight_line():
    assert rates(4, lr_schedule="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_fall_may_begin_later(schedule):
    later = rates(10, lr_schedule=schedule, decay_from=0.6)
    assert later[:6] == [0.8] * 6
    assert later[6:] == pytest.approx(rates(4, lr_schedule=schedule))


def test_the_rate_rises_while_it_warms_up():
    assert rates(6, warmup=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    falling = rates(6, lr_schedule="linear")
    assert rates(6, lr_schedule="linear", warmup=2) == pytest.approx([falling[0] / 2, *falling[1:]])
    assert rates(2, warmup=100) == pytest.approx([0.008, 0.016])


def test_lambda_rises_from_0():
    config = TrainConfig(steps=9, lam=1e-3, lam_warmup=4)
    assert [share_of_lam(config, step) for step in range(1, 7)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert share_of_lam(TrainConfig(steps=9, lam=1e-3), 1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay_from": 1.0}, "decay_from must lie in 0..1, 1 excluded"),
        ({"decay_from": float("nan")}, "decay_from must lie in 0..1, 1 excluded"),
        ({"warmup": -1}, "warmup must lie in 0..1,000,000,000,000 steps, got -1"),
        ({"lam_warmup": -1}, "lam_warmup must lie in"),
        ({"gate_clip": 0.0}, "gate_clip must be a positive number"),
        ({"gate_clip": float("inf")}, "gate_clip must be a positive number"),
        ({"lr_schedule": "step"}, "choose constant or cosine or linear"),
    ],
)
def test_impossible_schedules(options, message):
    with pytest.raises(SkipRNNError, match=message):
        TrainConfig(steps=9, **options)


def stepped(config, monkeypatch, rows=8, lam_share=1.0, team=None):
    """A step of training: what was measured, the loss that was differentiated, and the bound of the gate's gradient."""
    task, seen = Adding(length=12), {}
    torch.manual_seed(0)
    model = build_model(config, task)
    batch = task.sample(rows, torch.Generator().manual_seed(0))
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (seen.update(loss=loss.item()), original(loss))[1])
    options = () if team is None else (team,)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    measured = training._step(model, optimizer, task, batch, config, lambda usage: config.lam, lam_share, *options)
    monkeypatch.undo()
    return dict(zip(training.MEASURED, measured.tolist(), strict=False)), seen["loss"], model.rnn


def test_what_is_measured_has_the_whole_lambda(monkeypatch):
    config = TrainConfig(steps=9, lam=0.1, hidden_size=6)
    whole, loss, _ = stepped(config, monkeypatch)
    half, half_loss, _ = stepped(config, monkeypatch, lam_share=0.5)
    assert loss == pytest.approx(whole["loss"])
    assert half_loss == pytest.approx(whole["loss"] - whole["budget_loss"] / 2)
    assert {**whole, "grad_norm": 0} == {**half, "grad_norm": 0}


def test_training_warms_lambda_up(make_run, monkeypatch):
    shares = []

    def step(*arguments):
        shares.append(arguments[6])
        return original(*arguments)

    original = training._step
    monkeypatch.setattr(training, "_step", step)
    (*_, record) = read_metrics(make_run(lam=0.5, lam_warmup=4))
    assert shares == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert record["val"]["objective"] == pytest.approx(record["val"]["loss"] + 0.5 * record["val"]["used_mean"])


@pytest.mark.parametrize(("lam", "steps"), [(0.5, 16), (0.5, 8), (0.0, 16)])
def test_a_lambda_that_training_is_too_short_for_is_told(make_run, lam, steps):
    reports = []
    training.train(make_run(trained=False, lam=lam, lam_warmup=steps), on_progress=reports.append)
    said = [report.warning for report in reports if report.warning]
    expected = "λ rises over 16 steps and training ends after 8, at 44% of it; lower --lam-warmup, or train longer"
    assert said == ([expected] if lam and steps > 8 else [])


class Stranger(Team):
    """A team whose other process has 24 sequences of the joint batch."""

    def sum(self, tensor):
        return tensor + 24 if tensor.dim() == 0 else tensor

    def sum_gradients(self, parameters):
        return


def test_the_gate_s_bound_is_of_one_sequence_s_loss(monkeypatch):
    """The loss is a mean over the batch, a smaller last one too, and over the joint batch of a team."""
    config = TrainConfig(steps=9, hidden_size=6, gate_clip=2.0)
    for rows in (8, 5):
        assert stepped(config, monkeypatch, rows)[2].gate_grad_clip == 2 / rows
    assert stepped(config, monkeypatch, 8, team=Stranger(0, 2))[2].gate_grad_clip == pytest.approx(2 / 32)
    assert stepped(replace(config, gate_clip=None), monkeypatch)[2].gate_grad_clip is None
    assert not hasattr(stepped(replace(config, skip=False), monkeypatch)[2], "gate_grad_clip")


def test_each_batch_of_a_run_has_its_bound(make_run, monkeypatch):
    bounds = []

    def budget(update_gate, *arguments, **options):
        bounds.append((len(update_gate), model.rnn.gate_grad_clip))
        return budget_loss(update_gate, *arguments, **options)

    def build(*arguments):
        nonlocal model
        model = build_model(*arguments)
        return model

    model = None
    monkeypatch.setattr(training, "budget_loss", budget)
    monkeypatch.setattr(training, "build_model", build)
    make_run(batch_size=40, steps=3, gate_clip=1.0)  # of 96 sequences
    assert bounds == [(40, 1 / 40), (40, 1 / 40), (16, 1 / 16)]


def test_a_bound_that_is_reached_trains_otherwise(make_run):
    far, none, near = (
        load_checkpoint(make_run(name, gate_clip=clip), "last").tensors
        for name, clip in (("far", 1e9), ("none", None), ("near", 1e-9))
    )
    assert all(torch.equal(far[name], tensor) for name, tensor in none.items())
    assert not torch.equal(near["model.rnn.update_weight"], none["model.rnn.update_weight"])
