"""Logs besides metrics.jsonl; W&B and MLflow by stand-ins."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from pipelines.errors import SkipRNNError
from pipelines.runs.config import LOGS
from pipelines.runs.logs import KINDS, require
from pipelines.runs.training import train
from tests.runs import interrupted_after


@pytest.fixture
def calls(monkeypatch):
    """What was called of the stand-ins, in order: (name, positional arguments, named ones)."""
    made = []

    def noted(name, result=None):
        def call(*arguments, **options):
            made.append((name, arguments, options))
            return result

        return call

    def module(name, **contents):
        fake = ModuleType(name)
        fake.__spec__ = ModuleSpec(name, None)
        vars(fake).update(contents)
        monkeypatch.setitem(sys.modules, name, fake)

    run = SimpleNamespace(id="w1", log=noted("log"), finish=noted("finish"))
    module("wandb", init=noted("init", run))
    started = SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    names = ("set_experiment", "log_params", "log_metrics", "end_run")
    module("mlflow", start_run=noted("start_run", started), **{name: noted(name) for name in names})
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(variable, "1")
    return made


def test_the_logs_are_those_of_the_command():
    assert tuple(KINDS) == LOGS


def test_tensorboard(make_run):
    pytest.importorskip("tensorboard")
    run = make_run(trained=False)
    train(run, log=["tensorboard"])
    assert list((run / "tensorboard").glob("events*"))


def test_wandb_goes_on_with_the_run_it_began(make_run, calls):
    run = make_run(trained=False)
    train(run, log=["wandb"], should_stop=interrupted_after(5))
    train(run, log=["wandb"])
    began, again = (options for name, _, options in calls if name == "init")
    assert (began["project"], began["name"], began["dir"], began["resume"]) == ("skiprnn", "run", str(run), "allow")
    assert began["config"]["hidden_size"] == 6
    assert again["id"] == "w1"
    steps = [options["step"] for name, _, options in calls if name == "log"]
    assert steps == [3, 6, 8]
    (values,) = calls[1][1]
    assert {"train/grad_norm_max", "val/metric", "val/used_mean"} <= values.keys()
    assert [name for name, *_ in calls].count("finish") == 2


def test_mlflow_goes_on_with_the_run_it_began(make_run, calls):
    run = make_run(trained=False)
    train(run, log=["mlflow"], should_stop=interrupted_after(5))
    train(run, log=["mlflow"])
    assert [name for name, *_ in calls] == [
        "set_experiment", "start_run", "log_params", "log_metrics", "end_run",
        "set_experiment", "start_run", "log_metrics", "log_metrics", "end_run",
    ]  # fmt: skip
    assert calls[1][2] == {"run_id": None, "run_name": "run"}
    assert calls[6][2] == {"run_id": "m1", "run_name": None}
    assert [arguments for name, arguments, _ in calls if name == "end_run"] == [("KILLED",), ("FINISHED",)]


def test_an_error_that_ends_training_ends_the_logs(make_run, calls):
    def fail(report):
        raise RuntimeError("of whoever watches")

    with pytest.raises(RuntimeError, match="of whoever watches"):
        train(make_run(trained=False), log=["wandb", "mlflow"], on_progress=fail)
    assert [(name, *arguments, *options.values()) for name, arguments, options in calls[-2:]] == [
        ("finish", 1), ("end_run", "FAILED"),
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_network_that_fails_ends_the_log_and_not_the_training(make_run, calls, monkeypatch, where):
    def fail(*arguments, **options):
        raise ConnectionError("no  route\nto host")

    wandb = sys.modules["wandb"]
    monkeypatch.setattr(wandb if where == "init" else wandb.init.__closure__[-1].cell_contents, where, fail)
    run, warnings = make_run(trained=False), []
    outcome = train(run, log=["wandb", "mlflow"], on_progress=lambda report: warnings.append(report.warning))
    assert (outcome.reason, outcome.step) == ("finished", 8)
    assert [warning for warning in warnings if warning] == [
        "nothing more is logged to wandb, while training goes on and metrics.jsonl has all "
        "(ConnectionError: no route to host)"
    ]
    assert [name for name, *_ in calls].count("log_metrics") == 3


def test_a_package_that_is_missing_is_named_before_there_is_a_run(skiprnn, adding_file, monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.runs.logs.find_spec", lambda name: None)
    message = "mlflow is not installed; `pip install mlflow`, or skiprnn's extra [mlflow], or drop --log mlflow"
    with pytest.raises(SkipRNNError) as error:
        require(["mlflow"])
    assert str(error.value) == message
    done = skiprnn("train", "--data", adding_file, "--log", "mlflow")
    assert (done.exit_code, done.stderr) == (1, f"Error: {message}\n")
    assert not list(tmp_path.iterdir())
