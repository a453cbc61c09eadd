"""λ that is found while training."""

from dataclasses import replace

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.runs import budgets, checkpoints, training
from pipelines.runs.checkpoints import Progress
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import load_config, read_metrics
from pipelines.runs.evaluation import Evaluation, evaluate_run
from pipelines.runs.load import load_run
from pipelines.runs.prices import prices
from pipelines.runs.training import train
from pipelines.tasks import Adding, Sine

STEPS = 50


def result(metric, used, loss=0.5):
    return Evaluation(loss=loss, metric=metric, used_mean=used, used_std=0.0, price=used)


def test_lam_is_what_was_given_where_nothing_is_to_be_found():
    config, progress = TrainConfig(lam=0.25, steps=1), Progress(step=0)
    budget = budgets.Budget(config, progress)
    budget.note(budgets.holds(config, Adding(), 0.1))
    budget.save(progress)
    assert progress.lam is None
    assert budget.cost(torch.tensor(0.9)) == 0.25
    assert budgets.objective(config, Adding(), result(0.1, 10), STEPS) == 0.5 + 0.25 * 10


@pytest.mark.parametrize(("task", "good", "bad"), [(Adding(), 0.001, 0.002), (Sine(), 0.995, 0.98)])
def test_the_fewest_samples_that_keep_the_metric_are_best(task, good, bad):
    config = TrainConfig(keep=(good + bad) / 2, lam=1e-3, steps=1)
    few, many, lost = (
        budgets.objective(config, task, result(*of), STEPS) for of in ((good, 20), (good, 30), (bad, 10))
    )
    assert few < many < lost
    progress = Progress(step=0)
    for metric, lam in ((bad, 1e-3), (good, 1.15e-3), (good, 1.3225e-3), (bad, 1e-3)):
        budget = budgets.Budget(config, progress)  # as where training goes on
        budget.note(budgets.holds(config, task, metric))
        budget.save(progress)
        assert progress.lam == pytest.approx(lam)
        assert budgets.Budget(config, progress).cost(torch.tensor(0.9)) == progress.lam


def test_the_least_loss_near_the_wanted_usage_is_best():
    config = TrainConfig(target_usage=0.2, steps=1)
    near, lossy, far, further = (
        budgets.objective(config, Adding(), result(0.1, *of), STEPS)
        for of in ((10.9, 0.1), (9.1, 0.3), (12, 0.01), (20, 0.01))
    )
    assert near < lossy < far < further


@pytest.mark.parametrize("options", [{"keep": 9.0}, {"target_usage": 0.5}])
def test_an_interrupted_run_finds_the_same(make_run, options):
    options |= {"steps": 8, "eval_every": 2}
    whole, halted = make_run(**options), make_run("halted", trained=False, **options)
    stops = iter([False] * 4 + [True] + [False] * 9)
    assert train(halted, should_stop=lambda: next(stops)).reason == "interrupted"
    train(halted)
    found = [[record.get("lam") for record in read_metrics(run)] for run in (whole, halted)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    tensors = [checkpoints.load_checkpoint(run, "last").tensors for run in (whole, halted)]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_a_metric_that_is_lost_is_gone_back_to(make_run, monkeypatch):
    monkeypatch.setattr(budgets, "LOST", 2)
    kept = iter([True, False, True, *[False] * 5])  # the evaluations after steps 2, 4 and so on
    found = []

    def evaluate(*arguments):
        found.append(evaluated(*arguments))
        return replace(found[-1], metric=0.001 if next(kept) else 0.1, used_mean=10.0 - len(found))

    evaluated = training.evaluate
    monkeypatch.setattr(training, "evaluate", evaluate)
    run, reports = make_run(trained=False, keep=0.01, steps=16, eval_every=2, lr=0.01), []
    train(run, on_progress=reports.append)
    records = read_metrics(run)
    assert {r["step"]: r["rewound_to"] for r in records if "rewound_to" in r} == {10: 6, 14: 6}
    progress = checkpoints.load_checkpoint(run, "last").progress
    assert (progress.best_step, progress.rewinds, progress.lr_scale, progress.lost_evaluations) == (6, 2, 0.25, 1)
    warning, _ = (report.warning for report in reports if report.warning)
    assert warning == (
        "MSE was not kept at 0.01 for 2 evaluations; going back to the weights of step 6, with half the learning rate "
        "(rewind 1 of 3)"
    )


def test_a_target_is_reached(make_run):
    run = make_run(target_usage=0.5, steps=200, eval_every=10, lr=1e-2, lam=1e-3)
    used = [record["val"]["used_mean"] for record in read_metrics(run)][-8:]
    assert 0.4 * 12 < sum(used) / 8 < 0.6 * 12


def test_prices_are_of_time_and_of_features_that_were_measured():
    config, x = TrainConfig(steps=1, lam=1.0, cost_growth=0.5, feature_cost="1=2,0=0.25"), torch.zeros(2, 3, 2)
    assert prices(replace(config, feature_cost=""), x).tolist() == [1, 1.5, 2]
    x[0, 1, 1] = x[1, 2, 0] = x[1, 2, 1] = -3
    assert prices(config, x).tolist() == [[1, 3.5, 2], [1, 1.5, 4.25]]


def test_a_run_pays_the_prices(skiprnn, adding_file):
    options = ["--hidden", 6, "--batch-size", 32, "--steps", 2, "--eval-every", 1, "--device", "cpu", "--out", "run"]
    dear = ["--cost-growth", 0.5, "--feature-cost", "1=2", "--feature-cost", "0=0.25", "--lam", 0.01]
    done = skiprnn("train", "--data", adding_file, *options, *dear)
    assert done.exit_code == 0, done.output
    config = load_config("run")
    assert (config.cost_growth, config.feature_cost) == (0.5, "1=2,0=0.25")
    trained = load_run("run")
    x = trained.sequences.x
    with torch.no_grad():
        gate = trained.model(x).update_gate
    expected = (gate * (1 + 0.5 * torch.arange(12) + 2 * (x[..., 1] != 0) + 0.25 * (x[..., 0] != 0))).sum(1).mean()
    report = evaluate_run("run")
    assert report.price == pytest.approx(expected.item())
    assert f"price         {report.price:.2f} λ a sequence, growth and features included" in (
        skiprnn("evaluate", "run").stdout
    )
    record = read_metrics("run")[0]
    assert record["val"]["objective"] == pytest.approx(record["val"]["loss"] + 0.01 * record["val"]["price"])
    nearly_all = 0.01 * (12 * (1 + 0.5 * 5.5 + 0.25) + 2 * 2)
    assert record["train"]["budget_loss"] == pytest.approx(nearly_all, rel=0.05)


def test_prices_that_cannot_be(skiprnn, adding_file):
    done = skiprnn("train", "--data", adding_file, "--lam", 1, "--feature-cost", "2=1", "--out", "run")
    assert (done.exit_code, done.stderr) == (
        1, f"Error: there is no feature 2 to have a cost: {adding_file} has features 0 to 1\n",
    )  # fmt: skip
    done = skiprnn("train", "--feature-cost", "speed=1")
    assert done.exit_code == 2
    assert "a feature's cost is FEATURE=COST, such as 2=5, a number from 0 and one above, got 'speed=1'" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_growth": -1.0, "lam": 1.0}, "cost_growth must be zero or a positive number, got -1.0"),
        ({"cost_growth": 1.0}, "cost_growth and feature_cost are in units of lam, which is 0; give that too"),
        ({"feature_cost": "0=1", "lam": 1.0, "keep": 1.0}, "keep and target_usage count samples, whatever they cost"),
        ({"feature_cost": "0=1,0=2", "lam": 1.0}, "feature_cost names a feature twice: 0=1,0=2"),
        ({"feature_cost": "0=-1", "lam": 1.0}, "a feature's cost is FEATURE=COST, such as 2=5, .*, got '0=-1'"),
        ({"keep": 0.9, "target_usage": 0.5}, "give one of them"),
        ({"target_usage": 1.5}, "target_usage is a share of the samples, 1 at most, got 1.5"),
        ({"keep": 0.0}, "keep must be a positive number, got 0.0"),
        ({"keep": 0.9, "skip": False}, "lam, keep and target_usage have nothing to act on"),
    ],
)
def test_impossible_budgets(options, message):
    with pytest.raises(SkipRNNError, match=message):
        TrainConfig(steps=1, **options)


def test_budgets_have_names():
    config = TrainConfig(steps=1, lam=1e-4)
    named = [replace(config, **options).budget_name for options in ({}, {"keep": 0.99}, {"target_usage": 1 / 3})]
    assert named == ["λ=0.0001", "keeping 0.99", "towards 0.333 of the samples"]


def test_the_command_refuses_budgets_without_a_gate(skiprnn):
    for option in ("--keep", "--target-usage", "--max-skip", "--cost-growth"):
        refused = skiprnn("train", "--no-skip", option, 1)
        assert refused.exit_code == 2
        assert f"{option} has nothing to act on where the gate is not learned" in refused.stderr
