"""Feature files: what is read is what was written, from memory or from the file."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from pipelines import feature_file
from pipelines.checkpoints import load_checkpoint
from pipelines.errors import SkipRNNError
from pipelines.evaluation import evaluate_run, load_run
from pipelines.feature_file import Entry, read_features, write_features
from pipelines.prediction import Predictor
from pipelines.tasks import Ucf101, load_data
from pipelines.training import train

WIDTH, STEPS = 4, 6
COUNTS = [3, 6, 9, 1, 5, 6, 2, 4, 8, 7]


def entries_of(counts):
    splits = ["train", "train", "train", "val", "test"]
    return [
        Entry(f"v{n}.avi", splits[n % 5], n % 2, f"g{n}", "ok", count, 1, 2, "a", "b") for n, count in enumerate(counts)
    ]


def features_of(entry, rng=None):
    draws = np.random.default_rng(int(entry.name[1:-4]))
    return (draws.standard_normal((entry.frames, WIDTH)) + entry.label).astype(np.float16)


@pytest.fixture
def path(tmp_path):
    task = Ucf101(WIDTH, STEPS, json.dumps(["a", "b"]), 3.0, 2.0)
    attributes = {"task": task.name, **task.parameters()}
    return write_features(tmp_path / "f.h5", entries_of(COUNTS), features_of, attributes)


@pytest.fixture(params=["memory", "file"])
def way(request, monkeypatch):
    if request.param == "file":
        monkeypatch.setattr(feature_file, "SHARE", 0.0)
    return request.param


def test_sequences_are_padded_with_zeros_and_cropped(path, way):
    for split, numbers in (("train", [0, 1, 2, 5, 6, 7]), ("val", [3, 8]), ("test", [4, 9])):
        sequences = read_features(path).splits[split].to("cpu")
        assert sequences.streams == (way == "file")
        assert (len(sequences), sequences.steps) == (len(numbers), STEPS)
        batch = sequences.take(torch.arange(len(numbers)).flip(0))
        assert batch.x.dtype == torch.float16
        for x, length, number in zip(batch.x, batch.lengths.tolist(), reversed(numbers), strict=True):
            entry = entries_of(COUNTS)[number]
            assert length == min(entry.frames, STEPS)
            np.testing.assert_array_equal(x[:length].numpy(), features_of(entry)[:STEPS])
            assert (x[length:] == 0).all()
        assert sequences.padded().take(slice(0, 1)).lengths is None
        assert sequences.padded().lengths is None


def test_runs_on_a_file_too_large_for_memory_are_the_same(path, make_run, monkeypatch):
    options = {"task": "ucf101", "data": str(path), "num_layers": 2, "dropout": 0.5, "batch_size": 4, "steps": 5}
    in_memory = make_run("memory", **options)
    monkeypatch.setattr(feature_file, "SHARE", 0.0)
    streamed = make_run("streamed", **options)
    resumed = make_run("resumed", trained=False, **options)
    stops = iter([False, False, True])
    train(resumed, should_stop=lambda: next(stops))
    train(resumed)
    theirs = load_checkpoint(in_memory, "last").tensors
    for run in (streamed, resumed):
        ours = load_checkpoint(run, "last").tensors
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), run
    report = evaluate_run(streamed)
    assert report.metric == evaluate_run(in_memory).metric
    assert report.steps_per_sequence == STEPS


def test_true_lengths_end_videos_where_they_end(path, make_run):
    run = make_run(task="ucf101", data=str(path), true_lengths=True, steps=2)
    assert load_run(run).sequences.lengths.tolist() == [5, 6]
    assert evaluate_run(run).steps_per_sequence == 5.5


def test_the_cost_counts_the_network_that_looks_at_frames(path, make_run, tmp_path):
    task = Ucf101(WIDTH, STEPS, json.dumps(["a", "b"]), 3.0, 2.0, network="resnet50", frame_cost=3.8e9)
    dear = write_features(
        tmp_path / "dear.h5", entries_of(COUNTS), features_of, {"task": task.name, **task.parameters()}
    )
    report = evaluate_run(make_run(task="ucf101", data=str(dear), steps=2))
    assert report.cost == pytest.approx(report.used_mean * (3.8e9 + 4 * 6 * (WIDTH + 6)))


def test_predict_on_a_feature_file_is_forward(path, make_run):
    run = make_run(task="ucf101", data=str(path), lam=1e-2, steps=8)
    trained = load_run(run)
    with torch.no_grad():
        output, gate = trained.model(trained.sequences.take(slice(None)).x)
    said = list(Predictor(run).file(path))
    assert [p.used for p in said] == gate.sum(1).int().tolist()
    assert [p.given for p in said] == [STEPS, STEPS]
    for prediction, expected in zip(said, output.softmax(1).tolist(), strict=True):
        assert list(prediction.answer["probabilities"].values()) == pytest.approx(expected, abs=1e-5)


def test_the_digest_is_of_the_content(path, tmp_path):
    attributes = {"task": "ucf101", **load_data(path, "ucf101", ("train",))[0].parameters()}
    digest = read_features(path).attributes["digest"]
    touched = [replace(entry, source_mtime=77) for entry in entries_of(COUNTS)]
    other = write_features(tmp_path / "o.h5", touched, features_of, attributes)
    assert read_features(other).attributes["digest"] == digest
    relabelled = [replace(entry, label=0) for entry in touched]
    other = write_features(tmp_path / "p.h5", relabelled, features_of, attributes)
    assert read_features(other).attributes["digest"] != digest


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda entry: np.full((2, WIDTH), np.nan), "v0.avi: a feature is NaN"),
        (lambda entry: np.full((2, WIDTH), 1e6), "too large for float16"),
        (lambda entry: np.zeros((2, WIDTH + 1)), r"v0.avi: features of shape \(2, 5\)"),
        (lambda entry: np.zeros((0, WIDTH)), r"v0.avi: features of shape \(0, 4\)"),
    ],
)
def test_features_that_are_none_are_refused(path, tmp_path, features, message):
    attributes = {"task": "ucf101", **load_data(path, "ucf101", ("train",))[0].parameters()}
    with pytest.raises(SkipRNNError, match=message):
        write_features(tmp_path / "bad.h5", entries_of(COUNTS), features, attributes)
    assert not (tmp_path / "bad.h5").exists()


def test_a_damaged_file_is_refused(path, tmp_path):
    with h5py.File(path, "r+") as file:
        del file["offsets"]
        file["offsets"] = np.arange(11)
    with pytest.raises(SkipRNNError, match="do not fit"):
        load_data(path, "ucf101", ("train",))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SkipRNNError, match=r"not HDF5, truncated or damaged|is not a skiprnn data file"):
        load_data(path, "ucf101", ("train",))


def test_data_of_another_network_is_refused_by_a_run(path, make_run, tmp_path):
    run = make_run(task="ucf101", data=str(path), steps=2)
    task = Ucf101(WIDTH, STEPS, json.dumps(["a", "b"]), 3.0, 2.0, network="resnet50")
    other = write_features(
        tmp_path / "other.h5", entries_of(COUNTS), features_of, {"task": task.name, **task.parameters()}
    )
    with pytest.raises(SkipRNNError, match="has network resnet50, the run was trained on"):
        load_run(run, data=other)
