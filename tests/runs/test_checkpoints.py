"""Checkpoints that are not as they should be, and the run directories around them."""

import hashlib
import json
import os
import pickle
from dataclasses import asdict, fields

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.runs import checkpoints
from pipelines.runs.checkpoints import Checkpoint, Progress, load_checkpoint, save_checkpoint
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import (
    append_metrics,
    create_run,
    load_config,
    load_outcome,
    load_task,
    load_words,
    newest_run,
    read_metrics,
    rewind_metrics,
)
from pipelines.runs.load import load_model
from pipelines.runs.training import train

PROGRESS = Progress(step=1, seconds=0.1)
RECORD = {"seconds": 0.5, "train": {"loss": 0.1}, "val": {"metric": 0.2, "used_mean": 3}}


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path, ("best", "last"), Checkpoint({"a": torch.arange(6.0)}, PROGRESS))
    return tmp_path


def rewrite(run, name="last", numbers=None, tensors=None):
    """A checkpoint changed by someone who knows its checksums."""
    path = run / "checkpoints" / f"{name}.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    content["numbers"] = content["numbers"] if numbers is None else numbers
    if tensors is not None:
        data = tensors if isinstance(tensors, bytes) else checkpoints.save(tensors)
        content |= {"tensors": f"{name}.safetensors", "tensors_sha256": hashlib.sha256(data).hexdigest()}
        (path.parent / content["tensors"]).write_bytes(data)
    path.write_text(json.dumps({**content, "sha256": checkpoints._digest(content)}))


def tensor_file(run):
    (path,) = (run / "checkpoints").glob("*.safetensors")
    return path


def test_round_trip(saved):
    checkpoint = load_checkpoint(saved, "last")
    assert torch.equal(checkpoint.tensors["a"], torch.arange(6.0))
    assert checkpoint.progress == PROGRESS


def test_best_is_kept_and_what_nothing_names_is_dropped(saved):
    for step in (2, 3):
        save_checkpoint(saved, ("last",), Checkpoint({"a": torch.zeros(2)}, Progress(step)))
    names = {path.name for path in (saved / "checkpoints").iterdir()}
    assert {name.rsplit("-", 1)[0] for name in names} == {"best.json", "last.json", "step-00000001", "step-00000003"}
    assert len(names) == 4
    assert load_checkpoint(saved, "best").progress.step == 1


def damages(content: bytes):
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"truncated": content[:-3], "empty": b"", "flipped": bytes(flipped), "pickle": pickle.dumps({"a": 1})}


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "pickle"])
@pytest.mark.parametrize("which", ["tensors", "json"])
def test_damage_is_named(saved, which, damage):
    path = tensor_file(saved) if which == "tensors" else saved / "checkpoints" / "last.json"
    path.write_bytes(damages(path.read_bytes())[damage])
    with pytest.raises(SkipRNNError, match=r"cannot read .*last\.json: truncated, damaged or not"):
        load_checkpoint(saved, "last")


def test_every_single_flipped_bit_of_the_numbers_is_caught(saved):
    path = saved / "checkpoints" / "last.json"
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        path.write_bytes(bytes(flipped))
        try:
            checkpoint = load_checkpoint(saved, "last")
        except SkipRNNError:
            continue
        assert checkpoint.progress == PROGRESS  # it fell on white space


def test_a_pickle_with_a_true_checksum_is_never_loaded(saved):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    rewrite(saved, tensors=pickle.dumps(Trap()))
    with pytest.raises(SkipRNNError, match="truncated, damaged or not a checkpoint"):
        load_checkpoint(saved, "last")


WRONG_NUMBERS = {
    "list": [1],
    "no step": {"seconds": 0.5},
    "text": {"step": "1"},
    "fraction": {"step": 1.0},
    "truth": {"step": True},
    "negative": {"step": -1},
    "unknown": {"step": 1, "loss": 0.1},
    "too few sums": {"step": 1, "sums": [0.0]},
    "texts": {"step": 1, "sums": ["0"] * 7},
    "nan": {"step": 1, "seconds": float("nan")},
    "infinite sum": {"step": 1, "sums": [float("inf")] * 7},
    "best to come": {"step": 1, "best_step": 2, "best_objective": 0.1},
    "best of none": {"step": 1, "best_step": 1},
    "nan objective": {"step": 1, "best_step": 1, "best_objective": float("nan")},
    "impatient": {"step": 1, "evaluations_since_best": 5},
    "digest": {"step": 1, "data_digest": 5},
    "config": {"step": 1, "config": "lstm"},
    "huge": {"step": 10**40},
}


@pytest.mark.parametrize("numbers", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_wrong_numbers_under_a_true_checksum(saved, numbers):
    rewrite(saved, numbers=numbers)
    with pytest.raises(SkipRNNError, match=r"cannot read .*last\.json: .*not a checkpoint \(.+\); evaluate with"):
        load_checkpoint(saved, "last")


def changed(tensors, name, value):
    return {**tensors, name: value(tensors[name])} if name in tensors else {**tensors, name: value(torch.zeros(2))}


WRONG_TENSORS = {
    "nan": ("model.head.bias", lambda t: t * torch.nan, "NaN or infinity in head.bias"),
    "infinity": ("model.rnn.weight_hh_l0", lambda t: t + torch.inf, "NaN or infinity in rnn.weight_hh_l0"),
    "integers": ("model.head.bias", lambda t: t.long(), "does not fit its config.json: head.bias is"),
    "half": ("model.head.bias", lambda t: t.half(), "does not fit its config.json: head.bias is"),
    "shape": ("model.head.bias", lambda t: t[None], "does not fit its config.json: head.bias is"),
    "unknown": ("model.tail", lambda t: t, "does not fit its config.json: it has the unknown tail"),
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_wrong_weights_under_a_true_checksum(make_run, wrong):
    name, value, message = wrong
    run = make_run(steps=1)
    for which in ("best", "last"):
        rewrite(run, which, tensors=changed(load_checkpoint(run, which).tensors, name, value))
        with pytest.raises(SkipRNNError, match=message):
            load_model(run, checkpoint=which)
    with pytest.raises(SkipRNNError, match=name):
        train(run)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.exp_avg.head.bias", lambda t: t * torch.nan, "NaN or infinity in optimizer.exp_avg.head.bias"),
        ("optimizer.exp_avg.head.bias", lambda t: t[None], "optimizer.exp_avg.head.bias is"),
        ("optimizer.step.head.bias", lambda t: t.long(), "optimizer.step.head.bias is"),
        ("optimizer.exp_avg.head.bias", None, "it lacks optimizer.exp_avg.head.bias"),
        ("optimizer.momentum.head.bias", lambda t: t, "unknown optimizer.momentum.head.bias"),
        ("model.head.bias", None, "it lacks model.head.bias"),
        ("extra", lambda t: t, "unknown extra"),
    ],
)
def test_wrong_tensors_are_not_trained_further(make_run, name, value, message):
    run = make_run(steps=1)
    tensors = load_checkpoint(run, "last").tensors
    if value is None:
        del tensors[name]
    else:
        tensors = changed(tensors, name, value)
    rewrite(run, tensors=tensors)
    with pytest.raises(SkipRNNError, match=message):
        train(run)


def test_another_schema(saved):
    path = saved / "checkpoints" / "last.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(SkipRNNError, match="has schema skiprnn-checkpoint 9, this skiprnn reads skiprnn-checkpoint 1"):
        load_checkpoint(saved, "last")


def test_missing_checkpoint(tmp_path):
    with pytest.raises(SkipRNNError, match="has no checkpoint 'best' yet"):
        load_checkpoint(tmp_path, "best")


def test_configuration_survives(make_run, config):
    assert load_config(make_run(trained=False)) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "unknown": 3}', "not json"])
def test_damaged_configuration(make_run, text):
    run = make_run(trained=False)
    (run / "config.json").write_text(text)
    with pytest.raises(SkipRNNError, match=r"cannot read .*config\.json"):
        load_config(run)


def test_configuration_of_another_schema_or_none(make_run, tmp_path):
    run = make_run(trained=False)
    (run / "config.json").write_text('{"schema": 5}')
    with pytest.raises(SkipRNNError, match="has schema 5, this skiprnn reads 1"):
        load_config(run)
    with pytest.raises(SkipRNNError, match="is not a run directory"):
        load_config(tmp_path)


WRONG_VALUES = [None, True, 0, -1, 1.5, 10**9, 10**40, float("nan"), "", "lstm", [], [1], {}, {"a": 1}]


def loaded_or_told(run):
    try:
        return load_config(run)
    except SkipRNNError as error:
        return str(error)


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_a_wrong_type_in_the_configuration(make_run, config, name):
    """What is refused is refused in one message; what is not is of the field's type."""
    run = make_run(trained=False)
    right = asdict(config)
    path = run / "config.json"
    counts = ("epochs", "patience", "steps", "max_skip", "memory")
    numbers = ("p_skip", "gate_clip", "keep", "target_usage")
    kinds = {type(right[name]), *({int, type(None)} if name in counts else ())}
    kinds |= {float, int} if float in kinds or name in numbers else set()
    kinds |= {type(None)} if name in numbers else set()
    for value in WRONG_VALUES:
        path.write_text(json.dumps({"schema": 1, **right, name: value}))
        said = loaded_or_told(run)
        if isinstance(said, TrainConfig):
            assert type(getattr(said, name)) in kinds, value
        else:
            assert said.startswith(f"cannot read {path}: "), value
    path.write_text(json.dumps({"schema": 1, **{key: value for key, value in right.items() if key != name}}))
    said = loaded_or_told(run)
    if isinstance(said, TrainConfig):
        assert getattr(said, name) == getattr(TrainConfig, name)
    else:
        assert said.startswith(f"cannot read {path}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 2**40}, "hidden_size must be at most 32,768, got 1,099,511,627,776"),
        ({"num_layers": 10**9}, "num_layers must be at most 256"),
        ({"batch_size": 10**9}, "batch_size must be at most 1,048,576"),
    ],
)
def test_sizes_that_cannot_be_meant(options, message):
    with pytest.raises(SkipRNNError, match=message):
        TrainConfig(steps=1, **options)


def test_a_network_too_large_for_memory_is_not_built(make_run, monkeypatch):
    run = make_run(trained=False, hidden_size=2**15, num_layers=2**8)
    with pytest.raises(SkipRNNError, match=r"hidden_size 32768 and num_layers 256 takes .* of memory"):
        train(run)


READERS = {
    "config.json": load_config,
    "task.json": load_task,
    "words.txt": load_words,
    "outcome.json": load_outcome,
    "metrics.jsonl": read_metrics,
    "checkpoints/last.json": lambda run: load_checkpoint(run, "last"),
}
FOUND = {
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "nested": lambda path: path.write_text("[" * 100_000 + "]" * 100_000 + "\n"),
    "nested objects": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000 + "\n"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00" * 99),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "number": lambda path: path.write_text("5\n"),
    "digits": lambda path: path.write_text("9" * 10_000 + "\n"),
}


@pytest.mark.parametrize("found", FOUND)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_of_a_run(make_run, name, found):
    run = make_run()
    (run / name).unlink(missing_ok=True)
    FOUND[found](run / name)
    if name == "words.txt" and found not in ("pipe", "folder", "binary"):
        assert load_words(run)  # a text is a text
        return
    with pytest.raises(SkipRNNError, match=f"cannot read .*{name}: "):
        READERS[name](run)


@pytest.mark.parametrize("outcome", [{}, {"reason": 5, "step": 8, "best_step": 6}, {"reason": "finished", "step": "8"}])
def test_an_outcome_of_wrong_types(make_run, outcome):
    run = make_run()
    (run / "outcome.json").write_text(json.dumps(outcome))
    with pytest.raises(SkipRNNError, match=r"cannot read .*outcome.json: .*not the end of a training"):
        load_outcome(run)
    train(run)
    assert load_outcome(run)["step"] == 8


@pytest.mark.parametrize("task", [{"task": 5}, {"task": "adding"}, {"task": "adding", "length": "a"}, {"task": []}])
def test_a_task_of_wrong_types(make_run, task):
    run = make_run()
    (run / "task.json").write_text(json.dumps(task))
    with pytest.raises(SkipRNNError, match=r"task\.json"):
        load_model(run)


@pytest.mark.parametrize("found", FOUND)
def test_a_damaged_environment_is_kept_beside_the_new_one(make_run, found):
    run = make_run()
    path = run / "environment.json"
    path.unlink()
    FOUND[found](path)
    train(run)
    sessions = json.loads(path.read_text())
    if found == "list":
        assert sessions[:2] == [1, 2]
    else:
        assert [session["from_step"] for session in sessions] == [8]
        assert os.path.lexists(run / "environment.json.damaged")


def test_a_pipe_for_tensors_is_not_waited_for(saved):
    path = tensor_file(saved)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SkipRNNError, match=r"safetensors: it is a pipe or a device"):
        load_checkpoint(saved, "last")


def test_metrics_forget_what_a_killed_process_half_wrote(tmp_path):
    for step in (1, 2, 3):
        append_metrics(tmp_path, {"step": step, **RECORD})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "val')  # no newline yet
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    rewind_metrics(tmp_path, 2)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "5", "{", "{}", "[]", "", '"a"', *(json.dumps({"step": step, **RECORD}) for step in ("2", 2.0, None, True)),
        json.dumps({"step": 2, **RECORD, "val": 5}), json.dumps({"step": 2, **RECORD, "val": {"metric": "a"}}),
        json.dumps({"step": 2, **RECORD, "val": {"metric": 0.1}}),
    ],
)  # fmt: skip
def test_damaged_metrics_are_not_forgotten(tmp_path, line):
    whole = json.dumps({"step": 1, **RECORD})
    content = f"{whole}\n{line}\n{whole}\n"
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SkipRNNError, match=r"damaged or not a log of evaluations, in line 2"):
        rewind_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == content


def test_newest_run(make_run, config, tmp_path):
    with pytest.raises(SkipRNNError, match="no run with a checkpoint in"):
        newest_run(tmp_path)
    first, second = make_run("b"), make_run("a")
    create_run(tmp_path / "c", config)  # never trained
    assert newest_run(tmp_path) == second
    save_checkpoint(first, ("last",), load_checkpoint(first, "last"))
    assert newest_run(tmp_path) == first
