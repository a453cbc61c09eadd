"""Feature files: what is read is what was written, from memory or from the file."""

import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from pipelines.data import checked, memory
from pipelines.data import features as feature_file
from pipelines.data.features import read_features, write_features
from pipelines.data.stored_rows import StoredRows
from pipelines.errors import SkipRNNError
from pipelines.runs.checkpoints import load_checkpoint
from pipelines.runs.evaluation import evaluate_run
from pipelines.runs.load import load_run
from pipelines.runs.prediction import Predictor
from pipelines.runs.training import train
from pipelines.tasks import Ucf101, load_data
from tests.videos import COUNTS, STEPS, WIDTH, entries_of, features_of


@pytest.fixture
def path(tmp_path):
    task = Ucf101(WIDTH, STEPS, ("a", "b"), 3.0, 2.0)
    attributes = {"task": task.name, **task.parameters()}
    return write_features(tmp_path / "f.h5", entries_of(COUNTS), features_of, attributes)


def in_chunks(path):
    """Store the features as files of the first version do."""
    with h5py.File(path, "r+") as file:
        rows = file["features"][()]
        del file["features"]
        file.create_dataset("features", data=rows, maxshape=(None, WIDTH), chunks=(64, WIDTH), fletcher32=True)
    return path


@pytest.fixture(params=["mapped", "memory", "file"])
def way(request, monkeypatch, path):
    if request.param != "mapped":
        in_chunks(path)
    monkeypatch.setattr(feature_file, "SHARE", 1.0 if request.param == "memory" else 0.0)
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


def test_batches_are_the_same_however_they_are_read(path, tmp_path):
    ways = [read_features(path).splits["train"]]  # each read from the mapped file
    ways += [ways[0].to("cpu"), ways[0].to("cpu")]
    in_chunks(path)
    ways += [read_features(path).splits["train"]]
    ways += [ways[-1].to("cpu")]
    assert [split.streams for split in ways] == [True, False, False, True, False]
    for rows in (torch.tensor([5, 0, 0, 3]), slice(1, 4)):
        first, *others = [split.take(rows) for split in ways]
        for other in others:
            assert all(torch.equal(tensor, other.arrays()[name]) for name, tensor in first.arrays().items())


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("chunked", [False, True])
def test_runs_on_a_file_too_large_for_memory_are_the_same(path, make_run, monkeypatch, chunked):
    options = {
        "task": "ucf101",
        "data": str(path),
        "num_layers": 2,
        "dropout": 0.5,
        "batch_size": 4,
        "steps": 5,
        "lam": 1e-3,
    }
    in_memory = make_run("memory", **options)
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    monkeypatch.setattr(feature_file, "SHARE", 1e-5)
    if chunked:
        in_chunks(path)
    else:  # as where a GPU has too little
        monkeypatch.setattr(StoredRows, "mapped", None)
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


def test_features_in_chunks_are_loaded_if_they_fit_into_what_is_free(path, monkeypatch):
    train = read_features(in_chunks(path)).splits["train"]
    size = 30 * WIDTH * 2  # bytes, all of the split
    monkeypatch.setattr(memory, "available", lambda: 3 * size)
    assert not train.to("cpu").streams
    monkeypatch.setattr(memory, "available", lambda: 3 * size - 3)
    assert train.to("cpu").streams


def test_features_in_one_piece_take_no_memory(tmp_path):
    """A file of more than the machine has, as an empty file may claim to be."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = 2 * machine // 2**20 + 1
    with h5py.File(tmp_path / "f.h5", "w") as file:
        features = file.create_dataset("features", (rows, 2**20), np.uint8)
        features[-1, :5] = 7
        file.attrs["digest"] = "d"
    there = StoredRows(tmp_path / "f.h5", "d")
    assert there.mapped.shape == (rows, 2**20)
    assert there[rows - 1 : rows].sum() == 35


def count_hashes(monkeypatch):
    counts = []
    sha256 = feature_file.sha256
    monkeypatch.setattr(feature_file, "sha256", lambda blocks: counts.append(1) or sha256(blocks))
    return counts


def test_each_video_is_checked_once(path, monkeypatch):
    hashes = count_hashes(monkeypatch)
    monkeypatch.setattr(checked, "SETTLED", 1e9)  # however slow the machine
    read_features(path, ("val",))
    read_features(path, ("val",))
    assert len(hashes) == 4  # written just now: a change in the same tick would not show
    monkeypatch.setattr(checked, "SETTLED", -1.0)
    for splits, count in ((("val",), 2), (("val",), 0), (("train", "val"), 6), (("train", "val", "test"), 2)):
        hashes.clear()
        read_features(path, splits)
        assert len(hashes) == count
    beside = path.with_name(".f.h5.checked")
    noted = json.loads(beside.read_text())
    assert (noted["size"], noted["inode"]) == (path.stat().st_size, path.stat().st_ino)
    for damage in (b"", b"[" * 10**5, b"{}", b"\xff", json.dumps({**noted, "parts": 3}).encode()):
        beside.write_bytes(damage)
        hashes.clear()
        read_features(path, ("val",))
        assert len(hashes) == 2
    os.utime(path, (1, 1))
    hashes.clear()
    read_features(path, ("val",))
    assert len(hashes) == 2


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_features_that_were_changed_are_refused(path, make_run, monkeypatch, chunked, before):
    if chunked:
        in_chunks(path)
    monkeypatch.setattr(checked, "SETTLED", -1.0)
    run = make_run(task="ucf101", data=str(path), steps=2)
    if before:
        evaluate_run(run)
        time.sleep(0.05)
    with h5py.File(path, "r+") as file:
        file["features"][-7:, :1] = 0  # of v9, the last of the test split
    with pytest.raises(SkipRNNError, match=r"f.h5: the features of v9.avi were changed after they were made; extract"):
        evaluate_run(run)
    assert evaluate_run(run, split="val").sequences == 2


def test_where_nothing_can_be_noted_the_check_is_made_again(path, monkeypatch):
    hashes = count_hashes(monkeypatch)
    monkeypatch.setattr(checked, "SETTLED", -1.0)

    def write_text(*arguments):
        raise SkipRNNError("cannot write")

    monkeypatch.setattr(checked, "write_text", write_text)
    for _ in range(2):
        hashes.clear()
        read_features(path, ("val",))
        assert len(hashes) == 2


def test_a_file_made_anew_meanwhile_is_not_taken_for_the_old_one(path):
    attributes = {"task": "ucf101", **load_data(path, "ucf101", ("train",))[0].parameters()}
    train = read_features(path).splits["train"]
    again = pickle.loads(pickle.dumps(train))
    others = [replace(entry, label=0) for entry in entries_of(COUNTS[::-1])]
    write_features(path, others, features_of, attributes, overwrite=True)
    assert torch.equal(train.take(slice(0, 1)).x[0, :3], torch.from_numpy(features_of(entries_of(COUNTS)[0])))
    with pytest.raises(SkipRNNError, match=r"f.h5 was made anew while it was in use; run the same command again"):
        again.take(slice(0, 1))


def test_true_lengths_end_videos_where_they_end(path, make_run):
    run = make_run(task="ucf101", data=str(path), true_lengths=True, steps=2)
    assert load_run(run).sequences.lengths.tolist() == [5, 6]
    assert evaluate_run(run).steps_per_sequence == 5.5


def test_the_cost_counts_the_network_that_looks_at_frames(path, make_run, tmp_path):
    task = Ucf101(WIDTH, STEPS, ("a", "b"), 3.0, 2.0, network="resnet50", frame_cost=3.8e9)
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


def exchange(name, data, **how):
    def change(file):
        del file[name]
        file.create_dataset(name, data=data, **how)

    return change


def elsewhere(name):
    """What stands in another file, which is there."""

    def change(file):
        rows = file[name][()]
        with h5py.File("other.h5", "w") as other:
            other["x"] = rows
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", "x")

    return change


def outside(file):
    rows = file["features"][()]
    rows.tofile("other.bin")
    del file["features"]
    file.create_dataset("features", rows.shape, rows.dtype, external=[("other.bin", 0, rows.nbytes)])


def virtual(file):
    rows = file["features"][()]
    with h5py.File("other.h5", "w") as other:
        other["x"] = rows
    layout = h5py.VirtualLayout(rows.shape, rows.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "x", rows.shape)
    del file["features"]
    file.create_virtual_dataset("features", layout)


def huge(file):
    del file["features"], file["offsets"]
    file["offsets"] = np.append(np.arange(10), 2**40)
    file.create_dataset("features", (2**40, WIDTH), np.float16, chunks=(64, WIDTH))


def relabelled(file):
    file["videos/label"][3] ^= 1


DAMAGES = {
    "label": (relabelled, "its table of videos was changed after it was made"),
    "split": (exchange("videos/split", ["train"] * 5 + ["val"] * 3 + ["test"] * 2), "its table of videos was changed"),
    "name": (exchange("videos/name", [f"w{n}.avi" for n in range(10)]), "its table of videos was changed"),
    "hash": (exchange("videos/features_sha256", ["0" * 64] * 10), "its table of videos was changed"),
    "fewer": (exchange("videos/name", ["v0.avi"]), "the columns of its table are of different lengths"),
    "numbers": (exchange("videos/name", np.arange(10)), "the column videos/name is int64"),
    "texts": (exchange("videos/label", ["1"] * 10), "the column videos/label is object"),
    "square": (exchange("videos/label", np.zeros((10, 2), int)), "the column videos/label is int64"),
    "bytes": (exchange("videos/name", [b"\xff"] * 10), "truncated, damaged or not HDF5 .*codec"),
    "null": (exchange("videos/name", h5py.Empty("f4")), "videos/name holds nothing"),
    "gone": (lambda file: file.__delitem__("videos/group"), "has no videos/group"),
    "group": (lambda file: file.move("videos", "features2"), "has no videos/name"),
    "no digest": (lambda file: file.attrs.__delitem__("digest"), "does not say its digest"),
    "no steps": (
        lambda file: file.attrs.__setitem__("steps", "6"),
        "has 4 features a frame and says otherwise, or",
    ),
    "offsets": (exchange("offsets", np.arange(11)), "11 offsets do not fit"),
    "falling": (exchange("offsets", [0, 9, 3, *range(20, 27), 51]), "11 offsets do not fit"),
    "start": (exchange("offsets", [1, *range(2, 11), 51]), "11 offsets do not fit"),
    "floats": (exchange("offsets", np.linspace(0, 51, 11)), "11 offsets do not fit"),
    "few": (exchange("offsets", [0, 51]), "2 offsets do not fit"),
    "null offsets": (exchange("offsets", h5py.Empty("i8")), "offsets holds nothing"),
    "integers": (exchange("features", np.zeros((51, WIDTH), np.int16)), "int16 and 11 offsets do not fit"),
    "big-endian": (exchange("features", np.zeros((51, WIDTH), ">f2")), ">f2 and 11 offsets do not fit"),
    "flat": (exchange("features", np.zeros(51, np.float16)), r"features \(51,\) float16 and 11 offsets do not fit"),
    "null features": (exchange("features", h5py.Empty("f2")), "features holds nothing"),
    "linked": (elsewhere("features"), "features is a link to another place"),
    "linked table": (elsewhere("videos/label"), "videos/label is a link to another place"),
    "outside": (outside, "the values of features stand in other files"),
    "virtual": (virtual, "the values of features stand in other files"),
    "huge": (huge, "features in .* claims 8.8 TB, of which 0 bytes are stored"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(path, damage, monkeypatch, tmp_path):
    change, message = DAMAGES[damage]
    monkeypatch.chdir(tmp_path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SkipRNNError, match=message) as refused:
        read_features(path)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_half_a_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SkipRNNError, match=r"truncated, damaged or not HDF5|is not a skiprnn data"):
        load_data(path, "ucf101", ("train",))


def test_a_full_disk_says_so(path, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    script = f"""
import resource
from pathlib import Path
from pipelines.data.features import write_features
import pytest
from pipelines.errors import SkipRNNError
from pipelines.tasks import Ucf101
from tests.videos import STEPS, WIDTH, entries_of, features_of
task = Ucf101(WIDTH, STEPS, ("a", "b"), 3.0, 2.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write = lambda: write_features(
    Path({str(tmp_path / "full.h5")!r}), entries_of([300] * 10), features_of, {{"task": task.name, **task.parameters()}}
)
with pytest.raises(SkipRNNError, match="cannot write .*full.h5: File too large; check"):
    write()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*full*"))


def test_data_of_another_network_is_refused_by_a_run(path, make_run, tmp_path):
    run = make_run(task="ucf101", data=str(path), steps=2)
    task = Ucf101(WIDTH, STEPS, ("a", "b"), 3.0, 2.0, network="resnet50")
    other = write_features(
        tmp_path / "other.h5", entries_of(COUNTS), features_of, {"task": task.name, **task.parameters()}
    )
    with pytest.raises(SkipRNNError, match="has network resnet50, the run was trained on"):
        load_run(run, data=other)
