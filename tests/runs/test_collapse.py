"""A gate that shuts: noticed, told once, and either let be, an end, or gone back on, exactly."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.grids.sweep import is_finished, plan, train_one
from pipelines.runs import training
from pipelines.runs.checkpoints import Progress, _digest, load_checkpoint, save_checkpoint
from pipelines.runs.collapse import Watch, gives_up, may_rewind, remedy
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import load_outcome, read_metrics
from pipelines.runs.evaluation import Evaluation
from pipelines.runs.training import Report, change_run, train
from pipelines.tasks import Adding, OwnNumbers, Sine
from skiprnn_cli import grids
from skiprnn_cli.main import cli
from skiprnn_cli.progress import training_display
from tests.runs import assert_same_run, interrupted_after, tensors

STEPS = {"steps": 16, "eval_every": 2}


def test_chance_is_the_best_constant_s():
    y = torch.tensor([0, 1, 1, 1])
    assert Sine().chance(y) == 0.75
    y = torch.tensor([1.0, 2.0, 6.0])
    assert Adding().chance(y) == OwnNumbers().chance(y) == pytest.approx(np.var([1, 2, 6]))


@pytest.mark.parametrize(
    ("steps", "used", "shut"),
    [
        (50, 1.0, True), (50, 1.05, True), (50, 2.0, True), (50, 2.6, False),  # as seen on adding: 1 and 2 samples
        (12, 1.0, True), (12, 1.1, False), (784, 39.0, True), (784, 40.0, False),
        (1, 1.0, False), (1.5, 1.0, True), (0, 0.0, False), (20, 0.9, True),  # where some have no steps
    ],
)  # fmt: skip
def test_when_a_gate_counts_as_shut(steps, used, shut):
    assert Watch(Adding(), 0.1, steps).is_shut(used) is shut


def test_when_a_metric_counts_as_chance():
    adding, sine = Watch(Adding(), 0.2, 50), Watch(Sine(), 0.5, 100)
    assert [adding.is_at_chance(mse) for mse in (0.17, 0.181, 0.3)] == [False, True, True]
    assert [sine.is_at_chance(accuracy) for accuracy in (0.4, 0.52, 0.53)] == [True, True, False]


def test_a_metric_nearer_to_chance_than_to_its_best_is_lost():
    """As seen on adding at a rate of 5e-3: 2 samples of each sequence, and an MSE of 0.138 after one of 0.080."""
    watch, progress = Watch(Adding(), 0.1671, 50), Progress(step=0)
    for metric, used in ((0.1680, 45.7), (0.0797, 41.5), (0.1384, 2.0), (0.1372, 2.0)):
        progress.step += 100
        result = Evaluation(metric / 2, metric, used, 0.0, used)
        watch.note(result, progress)
        said = watch.warning(TrainConfig(steps=4000), progress, 4000, result)
    assert said.startswith(
        "the gate has shut: 2.0 of 50 samples used, and MSE 0.1372 is nearer to chance, 0.1671, than to its best, "
        "0.0797, since step 300; it will hardly open again: "
    )
    sine = Watch(Sine(), 0.5, 100)
    assert [sine.is_lost(accuracy, 0.99) for accuracy in (0.75, 0.74)] == [False, True]
    assert [sine.is_lost(accuracy, accuracy) for accuracy in (0.51, 0.6)] == [True, False]  # never learned; a little


def test_what_is_watched_is_the_validation_split():
    split = Sequences(torch.zeros(3, 9, 2), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3, 9, 0]))
    watch = Watch.over(Adding(length=12), split)
    assert (watch.chance, watch.steps) == (pytest.approx(2 / 3), 4)
    assert Watch.over(Adding(length=12), replace(split, lengths=None)).steps == 9


def test_two_evaluations_in_a_row_are_a_collapse():
    watch, progress, config = Watch(Adding(), 0.2, 50), Progress(step=0), TrainConfig(steps=9)
    shut, chance, open_ = (
        Evaluation(1.0, metric, used, 0.0, used) for metric, used in ((0.2, 1), (0.2, 40), (0.001, 1))
    )
    said = []
    for result in (shut, chance, shut, open_, shut, shut, shut, chance, shut, shut):
        progress.step += 1
        watch.note(result, progress)
        said.append(watch.warning(config, progress, 20, result))
    assert [step for step, warning in enumerate(said, start=1) if warning] == [6, 10]
    assert said[5] == (
        "the gate has shut: 1.0 of 50 samples used, and MSE 0.2 is at chance, since step 5; it will hardly open again: "
        "lower --lr, or bound the gate's gradient with --gate-clip 1; no checkpoint is from before that"
    )


def test_a_real_collapse_is_noticed(make_run):
    """A λ that asks for no samples at all, and a rate that is far too high."""
    run = make_run(trained=False, lam=1.0, lr=0.1, steps=200, eval_every=10, on_collapse="stop")
    reports = []
    outcome = train(run, on_progress=reports.append)
    assert outcome.reason == load_outcome(run)["reason"] == "collapsed"
    assert outcome.step == read_metrics(run)[-1]["step"] < 200
    assert [record.get("collapsed", False) for record in read_metrics(run)][-2:] == [False, True]
    (warning,) = [report.warning for report in reports if report.warning]
    assert "1.0 of 12 samples used" in warning
    assert "training stops: lower --lr" in warning
    assert outcome.remedy in warning
    assert train(run).step == outcome.step  # it stays stopped
    change_run(run, on_collapse="warn", steps=outcome.step + 3)
    assert train(run).reason == "finished"


@pytest.fixture
def shut(monkeypatch):
    """Make evaluations after certain steps find the gate shut and the metric at chance."""
    at = {"now": 0, "steps": ()}
    rate, evaluate = training.learning_rate, training.evaluate

    def learning_rate(config, step, total):
        at["now"] = step
        return rate(config, step, total)

    def found(*arguments):
        result = evaluate(*arguments)
        return replace(result, loss=5.0, metric=10.0, used_mean=1.0) if at["now"] in at["steps"] else result

    monkeypatch.setattr(training, "learning_rate", learning_rate)
    monkeypatch.setattr(training, "evaluate", found)
    return lambda *steps: at.update(steps=steps)


def marks(run):
    return {record["step"]: record.get("rewound_to", True) for record in read_metrics(run) if "collapsed" in record}


def test_a_warning_comes_once_and_training_goes_on(make_run, shut):
    shut(6, 8, 10)
    run, reports = make_run(trained=False, **STEPS), []
    outcome = train(run, on_progress=reports.append)
    assert (outcome.reason, outcome.remedy) == ("finished", None)
    assert marks(run) == {8: True, 10: True}
    (report,) = [report for report in reports if report.warning]
    assert (report.step, report.record["collapsed"]) == (8, True)
    assert "since step 6" in report.warning
    assert report.warning.endswith("the best checkpoint is of step 4, before that")
    other = make_run("other", trained=False, **STEPS)  # what is seen changes nothing
    shut()
    train(other)
    assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(run).items())


def test_a_plain_cell_has_no_gate_to_shut(make_run, shut):
    shut(6, 8)
    assert marks(make_run(skip=False, lam=0.0, **STEPS)) == {}


def test_going_back_to_the_best_checkpoint(make_run, shut, monkeypatch):
    shut(6, 8)
    run, rates = make_run(trained=False, on_collapse="rewind", **STEPS), []
    states = {}
    step = training._step

    def watched(model, optimizer, *others):
        rates.append(optimizer.param_groups[0]["lr"])
        states[len(rates)] = [parameter.clone() for parameter in model.parameters()]  # before it
        return step(model, optimizer, *others)

    monkeypatch.setattr(training, "_step", watched)
    reports = []
    outcome = train(run, on_progress=reports.append)
    assert outcome.reason == "finished"
    assert marks(run) == {8: 4}
    assert rates == [0.01] * 8 + [0.005] * 8
    assert all(map(torch.equal, states[5], states[9]))
    assert not all(map(torch.equal, states[5], states[8]))
    progress = load_checkpoint(run, "last").progress
    assert (progress.step, progress.rewinds, progress.lr_scale) == (16, 1, 0.5)
    (warning,) = [report.warning for report in reports if report.warning]
    assert "going back to the weights of step 4, with half the learning rate (rewind 1 of 3)" in warning


def test_a_run_goes_back_three_times_at_most(make_run, shut):
    shut(*range(6, 100, 2))
    run = make_run(trained=False, on_collapse="rewind", steps=100, eval_every=2)
    outcome = train(run)
    assert (outcome.reason, outcome.step, outcome.best_step) == ("collapsed", 20, 4)
    assert marks(run) == {8: 4, 12: 4, 16: 4, 20: True}
    assert load_checkpoint(run, "last").progress.lr_scale == 0.125
    assert "train with" not in outcome.remedy
    assert train(run).step == 20


def test_there_may_be_nothing_to_go_back_to(make_run, shut):
    shut(2, 4)
    run, reports = make_run(trained=False, on_collapse="rewind", **STEPS), []
    outcome = train(run, on_progress=reports.append)
    assert (outcome.reason, outcome.step) == ("collapsed", 4)
    assert marks(run) == {4: True}
    assert reports[-1].warning.endswith("no checkpoint is from before that")
    collapsed = Progress(step=6, best_step=4, best_objective=1.0, shut_evaluations=2, shut_since=4)
    rewind = TrainConfig(steps=9, on_collapse="rewind", lam=0.1)
    assert not may_rewind(rewind, collapsed, 9)
    before = replace(collapsed, shut_since=5)
    assert may_rewind(rewind, before, 9)
    assert not may_rewind(rewind, before, 6)  # no step is left
    assert gives_up(rewind, before, 6)
    assert "rewind" not in remedy(
        replace(rewind, on_collapse="warn"), collapsed
    )  # where there is nothing to go back to
    assert remedy(replace(rewind, on_collapse="warn"), before) == (
        "lower --lr, or bound the gate's gradient with --gate-clip 1, or lower --lam, if 0.1 a sample outweighs the "
        "task, or train with --on-collapse rewind; the best checkpoint is of step 4, before that"
    )


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "lr_schedule": "linear", "dropout": 0.5}])
def test_a_run_interrupted_around_a_rewind_ends_as_one_that_was_not(make_run, shut, options):
    shut(6, 8, 12, 14)
    options = {**STEPS, "on_collapse": "rewind", "grad_clip": 1e-3, **options}
    whole = make_run("whole", **options)
    assert list(marks(whole)) == [8, 14]
    parts = make_run("parts", trained=False, **options)
    should_stop = interrupted_after(5, 6, 7, 8, 9, 12, 13, 15)
    reasons = [train(parts, should_stop=should_stop).reason for _ in range(9)]
    assert reasons == ["interrupted"] * 8 + ["finished"]
    assert_same_run(parts, whole)


def test_patience_begins_anew_after_a_rewind(make_run, shut):
    shut(6, 8)
    run = make_run(trained=False, on_collapse="rewind", patience=3, lr=1e-12, lam=0.0, steps=100, eval_every=2)
    outcome = train(run)
    assert outcome.reason == "patience"
    assert outcome.step == max(outcome.best_step, 8) + 6


def test_another_answer_may_be_given_later(make_run, shut):
    shut(6, 8, 10)
    run = make_run(trained=False, **STEPS)
    train(run, should_stop=interrupted_after(9))
    change_run(run, on_collapse="rewind")
    assert train(run).reason == "finished"
    assert marks(run) == {8: True, 10: 4}


def test_another_best_checkpoint_is_not_gone_back_to(make_run, shut):
    shut(6, 8)
    run = make_run(trained=False, on_collapse="rewind", **STEPS)
    train(run, should_stop=interrupted_after(7))
    best = load_checkpoint(run, "best")
    save_checkpoint(run, ("best",), replace(best, progress=replace(best.progress, step=5)))
    with pytest.raises(SkipRNNError, match=r"'best' of .*run is of step 5, training's was of 4"):
        train(run)


def test_a_collapsed_run_of_a_grid_is_finished(config, tmp_path, shut):
    shut(6, 8)
    (run,) = plan(tmp_path, [replace(config, on_collapse="stop", **STEPS)])
    assert train_one(run) is None
    assert is_finished(run)
    assert load_outcome(run.path) == {"reason": "collapsed", "step": 8, "best_step": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"shut_evaluations": -1},
        {"shut_since": 9},
        {"rewinds": -1},
        {"lr_scale": 0.0},
        {"grad_norm_max": float("nan")},
        {"best_metric": float("inf")},
    ],
)
def test_impossible_numbers_of_a_checkpoint(change):
    with pytest.raises(ValueError, match="its "):
        Progress(step=3, **change)


def test_the_largest_norm_outlives_interruptions(make_run, monkeypatch):
    norms = []
    step = training._step

    def watched(*arguments):
        measured = step(*arguments)
        norms.append(measured[-2].item())
        return measured

    monkeypatch.setattr(training, "_step", watched)
    run = make_run(trained=False)
    should_stop = interrupted_after(2, 5)
    for _ in range(3):
        train(run, should_stop=should_stop)
    largest = [record["train"]["grad_norm_max"] for record in read_metrics(run)]
    assert largest == [max(norms[:3]), max(norms[3:6]), max(norms[6:])]


def test_checkpoints_of_before_are_loaded(make_run):
    """Without the numbers of a shut gate."""
    run = make_run()
    path = run / "checkpoints" / "last.json"
    content = json.loads(path.read_text())
    names = ("shut_evaluations", "shut_since", "best_metric", "rewinds", "lr_scale", "grad_norm_max")
    content["numbers"] = {name: value for name, value in content["numbers"].items() if name not in names}
    content.pop("sha256")
    path.write_text(json.dumps({**content, "sha256": _digest(content)}))
    change_run(run, steps=10)
    assert train(run).step == 10


@pytest.mark.parametrize("terminal", [False, True])
def test_a_warning_stands_above_the_display(monkeypatch, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160)
    monkeypatch.setattr("skiprnn_cli.progress.Console", lambda **options: console)
    val = {"loss": 1.0, "metric": 1.0, "used_mean": 1.0}
    record = {"train": {"task_loss": 1.0}, "val": val}
    with training_display() as show:
        show(Report(1, 4, 0.1))
        show(Report(2, 4, 0.2, record, "the gate has shut: [1.0] of 12 samples used, and so on, on more than a line"))
        show(Report(4, 4, 0.4, record))
    said = out.getvalue()
    assert said.count("Warning: the gate has shut: [1.0] of 12 samples used, and so on, on more than a line\n") == 1
    assert said.index("Warning") < said.rindex("used samples")


def test_a_grid_says_that_a_gate_is_shut(config, tmp_path, shut, monkeypatch, capsys):
    shut(6, 8)
    (run,) = plan(tmp_path, [replace(config, on_collapse="stop", **STEPS)])
    with grids._watching([run]) as on_finished:
        on_finished(run, train_one(run))
    assert ", val MSE 10.00000, 1.0 used, its gate shut and its metric lost" in capsys.readouterr().err


def command(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def test_the_command_says_what_happened(make_run, shut):
    shut(6, 8)
    run = make_run(trained=False, on_collapse="stop", gate_clip=1.0, **STEPS)
    done = command("train", "--resume", run)
    assert done.stderr.count("Warning: the gate has shut: 1.0 of 12 samples used, and MSE 10 is at chance") == 1
    first, second, third = done.stdout.splitlines()
    val = read_metrics(run)[1]["val"]
    assert first == (
        f"{run}: stopped, its gate having shut, at step 8 of 16, best at step 4 (MSE {val['metric']:.4g}, "
        f"{val['used_mean']:.1f} used), the last is worse: MSE 10, 1.0 used (by validation loss, budget included); "
        "evaluate takes the best unless told --checkpoint last"
    )
    assert second == (
        "the gate is shut and the metric lost: lower --lr, or lower --lam, if 0.001 a sample outweighs the task, "
        "or train with --on-collapse rewind; the best checkpoint is of step 4, before that"
    )
    assert third == f"next: skiprnn evaluate {run}"
    assert "checkpoint best of step 4\n" in command("evaluate", run).stdout
    done = command("train", "--resume", run, "--on-collapse", "warn")
    assert "finished at step 16 of 16" in done.stdout


def test_the_summary_of_a_run_whose_last_step_is_the_best(make_run):
    run = make_run(trained=False, steps=2, eval_every=2)
    assert command("train", "--resume", run).stdout.splitlines()[0] == f"{run}: finished at step 2 of 2, best at step 2"
