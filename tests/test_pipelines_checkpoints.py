"""Checkpoints that are not as they should be, and the run directories around them."""

import json
import pickle

import pytest
import torch

from pipelines.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from pipelines.errors import SkipRNNError
from pipelines.runs import append_metrics, create_run, load_config, newest_run, read_metrics, rewind_metrics


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path, ("best", "last"), Checkpoint({"a": torch.arange(6.0)}, {"step": 1, "loss": 0.1}))
    return tmp_path


def tensor_file(run):
    (path,) = (run / "checkpoints").glob("*.safetensors")
    return path


def test_round_trip(saved):
    checkpoint = load_checkpoint(saved, "last")
    assert torch.equal(checkpoint.tensors["a"], torch.arange(6.0))
    assert checkpoint.numbers == {"step": 1, "loss": 0.1}


def test_best_is_kept_and_what_nothing_names_is_dropped(saved):
    for step in (2, 3):
        save_checkpoint(saved, ("last",), Checkpoint({"a": torch.zeros(2)}, {"step": step}))
    names = {path.name for path in (saved / "checkpoints").iterdir()}
    assert {name.rsplit("-", 1)[0] for name in names} == {"best.json", "last.json", "step-00000001", "step-00000003"}
    assert len(names) == 4
    assert load_checkpoint(saved, "best").numbers["step"] == 1


def damages(content: bytes):
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"truncated": content[:-3], "empty": b"", "flipped": bytes(flipped), "pickle": pickle.dumps({"a": 1})}


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "pickle"])
@pytest.mark.parametrize("which", ["tensors", "json"])
def test_damage_is_named(saved, which, damage):
    path = tensor_file(saved) if which == "tensors" else saved / "checkpoints" / "last.json"
    path.write_bytes(damages(path.read_bytes())[damage])
    with pytest.raises(SkipRNNError, match=r"cannot load the checkpoint .*last\.json: truncated or damaged"):
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
        assert checkpoint.numbers == {"step": 1, "loss": 0.1}  # it fell on white space


def test_a_pickle_with_a_true_checksum_is_never_loaded(saved):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    import hashlib

    from pipelines import checkpoints

    content = pickle.dumps(Trap())
    tensor_file(saved).write_bytes(content)
    path = saved / "checkpoints" / "last.json"
    described = json.loads(path.read_text())
    del described["sha256"]
    described["tensors_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps({**described, "sha256": checkpoints._digest(described)}))
    with pytest.raises(SkipRNNError, match="truncated or damaged"):
        load_checkpoint(saved, "last")


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


def test_metrics_forget_what_a_killed_process_half_wrote(tmp_path):
    for step in (1, 2, 3):
        append_metrics(tmp_path, {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "val')  # no newline yet
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    rewind_metrics(tmp_path, 2)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("line", ["5", "{", "{}"])
def test_damaged_metrics_are_not_forgotten(tmp_path, line):
    content = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SkipRNNError, match="damaged"):
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
