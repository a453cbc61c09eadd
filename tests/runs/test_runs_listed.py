"""The states that a run's files tell of."""

import json
import os
from pathlib import Path

from pipelines.runs import listing
from pipelines.runs.config import METRICS
from pipelines.runs.directory import is_held, lock_run, read_metrics
from pipelines.runs.listing import list_runs, summarise
from pipelines.runs.training import train
from pipelines.tasks import TASKS
from tests.runs import interrupted_after


def test_metrics_are_called_what_the_tasks_call_them():
    assert {name: task.metric_name for name, task in TASKS.items()} == METRICS


def test_states(make_run):
    run = make_run(trained=False)
    assert (summarise(run).state, summarise(run).metric) == ("untrained", None)
    train(run, should_stop=interrupted_after(5))
    assert (summarise(run).state, summarise(run).step, summarise(run).total_steps) == ("interrupted", 5, 8)
    with lock_run(run):
        assert is_held(run)
        assert summarise(run).state == "running"
    assert not is_held(run)
    outcome = train(run)
    said = summarise(run)
    (best,) = (record["val"] for record in read_metrics(run) if record["step"] == outcome.best_step)
    assert (said.state, said.step, said.best_step) == ("finished", 8, outcome.best_step)
    assert (said.metric_name, said.metric, said.used_samples) == ("MSE", best["metric"], best["used_mean"])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    shut = json.dumps({**json.loads(lines[-1]), "collapsed": True})
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], shut, '{"half']))
    assert summarise(run).state == "collapsed"
    infinite = '{"step": 1, "val": {"metric": 1e999, "used_mean": 1}}\n'
    for damage in ("[1]\n", '{"step": 1}\n', "no\n", '{"step": 1e999}\n', infinite):
        (run / "metrics.jsonl").write_text(damage)
        assert summarise(run).state == "damaged"


def test_runs_of_a_sweep_and_a_run_itself_are_found(make_run, tmp_path):
    one, other = make_run("sweep/runs/one", trained=False), make_run("sweep/runs/other", trained=False)
    (other / "config.json").write_text("{")
    assert {(run.run, run.state) for run in list_runs(tmp_path / "sweep")} == {
        (str(one), "untrained"), (str(other), "damaged"),
    }  # fmt: skip
    assert [run.run for run in list_runs(one)] == [str(one)]


def test_the_order_does_not_depend_on_how_long_it_takes_to_look(make_run, monkeypatch):
    runs = [make_run(f"runs/{name}", trained=False) for name in "abcd"]
    clock = iter(range(10**10, 2 * 10**10, 1000))
    monkeypatch.setattr(listing.time, "time", lambda: next(clock))
    for order in (runs, runs[::-1]):
        for age, run in enumerate(order):
            os.utime(run / "config.json", (10**9 - age, 10**9 - age))
        assert [Path(run.run) for run in list_runs(runs[0].parent)] == order
