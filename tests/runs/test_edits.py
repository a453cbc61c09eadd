"""Runs edited by hand: nothing of it passes in silence."""

import json
from dataclasses import asdict

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.runs import checkpoints, edits
from pipelines.runs.checkpoints import load_checkpoint
from pipelines.runs.directory import append_metrics, extend_run, load_config, read_metrics
from pipelines.runs.edits import accept_edits
from pipelines.runs.evaluation import evaluate_run
from pipelines.runs.load import load_model
from pipelines.runs.training import change_run, train

EDITS = {"lr": 0.5, "seed": 7, "lam": 0.25, "batch_size": 16, "eval_every": 2, "dropout": 0.5, "cell": "gru"}


def sessions(run):
    return json.loads((run / "environment.json").read_text())


def edit_log(run, text="0.5"):
    path = run / "metrics.jsonl"
    first, *others = path.read_text().splitlines()
    record = json.loads(first)
    record["val"]["metric"] = float(text)
    path.write_text("\n".join([json.dumps(record), *others]) + "\n")


@pytest.mark.parametrize(("name", "value"), EDITS.items())
def test_an_edited_configuration_is_refused_by_name(make_run, config, name, value):
    run = make_run()
    extend_run(run, **{name: value}, steps=10)  # steps may change
    message = f"{name} in config.json was {getattr(config, name)!r}, now {value!r}.*--accept-edits"
    for use in (train, load_model, evaluate_run, lambda run: change_run(run, steps=12)):
        with pytest.raises(SkipRNNError, match=message):
            use(run)
    assert load_config(run).steps == 10


def test_accepted_edits_are_recorded_and_the_run_can_be_used(make_run):
    run = make_run()
    extend_run(run, lr=0.5, steps=9)
    edit_log(run)
    with pytest.raises(SkipRNNError, match=r"lr in config.json was 0.01, now 0.5; metrics.jsonl has other lines"):
        train(run)
    change_run(run, accept=True, steps=10)
    assert train(run, accept=True).step == 10
    accepted = sessions(run)[-1]["accepted_edits"]
    assert accepted["lr"] == [0.01, 0.5]
    assert set(accepted) == {"lr", "metrics.jsonl"}
    assert read_metrics(run)[0]["val"]["metric"] == 0.5
    extend_run(run, steps=11)
    assert train(run).step == 11
    assert "accepted_edits" not in sessions(run)[-1]
    for checkpoint in ("best", "last"):
        assert load_checkpoint(run, checkpoint).progress.config["lr"] == 0.5
        load_model(run, checkpoint=checkpoint)


def test_an_acceptance_that_was_killed_is_taken_up_again(make_run, monkeypatch):
    run = make_run(steps=40, lr=0.2)
    assert load_checkpoint(run, "best").progress.step < 40
    extend_run(run, lr=0.1)
    monkeypatch.setattr(edits, "NAMES", ("last",))
    train(run, accept=True)
    monkeypatch.undo()
    with pytest.raises(SkipRNNError, match="was edited since"):
        load_model(run)
    train(run, accept=True)
    load_model(run)


def test_an_edited_log_is_refused(make_run):
    run = make_run()
    before = (run / "metrics.jsonl").read_text()
    lines = before.splitlines(keepends=True)
    without_one = ["".join(lines[:n] + lines[n + 1 :]) for n in range(3)]
    for text in ("", *without_one, before.replace('"seconds": ', '"seconds":')):
        (run / "metrics.jsonl").write_text(text)
        with pytest.raises(SkipRNNError, match=r"metrics.jsonl has other lines than training wrote.*--accept-edits"):
            train(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(SkipRNNError, match=r"metrics.jsonl has other lines than training wrote"):
        train(run)
    (run / "metrics.jsonl").write_text(before)
    train(run)
    assert (run / "metrics.jsonl").read_text() == before


def test_what_a_killed_process_logged_beyond_its_checkpoint_is_no_edit(make_run):
    whole, killed = make_run("whole", steps=12), make_run("killed")
    append_metrics(killed, {**read_metrics(whole)[-1], "step": 11})
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "sec')
    extend_run(killed, steps=12)
    train(killed)
    assert [record["step"] for record in read_metrics(killed)] == [3, 6, 8, 9, 12]
    ours, theirs = (load_checkpoint(run, "last").tensors for run in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_runs_from_before_edits_were_noticed(make_run):
    run = make_run()
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.json"
        content = json.loads(path.read_text())
        for key in ("config", "metrics_digest"):
            del content["numbers"][key]
        del content["sha256"]
        path.write_text(json.dumps({**content, "sha256": checkpoints._digest(content)}))
    extend_run(run, lr=0.5, steps=9)
    edit_log(run)
    load_model(run)
    train(run)
    assert load_checkpoint(run, "last").progress.config == asdict(load_config(run))
    extend_run(run, lr=0.1)
    with pytest.raises(SkipRNNError, match=r"lr in config.json was 0.5, now 0.1"):
        train(run)


def test_a_damaged_best_checkpoint_is_left_as_it_is(make_run, config):
    run = make_run()
    (run / "checkpoints" / "best.json").write_text("{")
    accept_edits(run, config)
    assert (run / "checkpoints" / "best.json").read_text() == "{"


def test_a_field_that_is_taken_out_is_an_edit(make_run):
    run = make_run()
    path = run / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "lam"}))
    for use in (train, load_model):
        with pytest.raises(SkipRNNError, match=r"lam in config.json was 0.001, now 0.0"):
            use(run)


def test_an_edited_task_is_refused_and_restored(make_run):
    run = make_run()
    path = run / "task.json"
    right = path.read_text()
    path.write_text(right.replace("12", "13"))
    with pytest.raises(SkipRNNError, match=r"task.json was edited since the run was trained"):
        load_model(run)
    train(run)
    assert path.read_text() == right
    load_model(run)
