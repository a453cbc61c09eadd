"""Data files: schema, seeds, and what happens to files that are not as they should be."""

import errno
import hashlib
import os
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch

from pipelines.data import files, memory, schema
from pipelines.data.files import atomic_path, write_text
from pipelines.data.sequences import SPLITS, Sequences, read_sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.sources.synthetic import generate
from pipelines.tasks import Adding, Sine, load_data, task_of_file

SIZES = {"train": 40, "val": 10, "test": 20}


def test_schema(tmp_path):
    path = generate(Sine(sampling_period=0.5, duration=20), tmp_path / "sine.h5", SIZES, seed=7)
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
        assert {name: file[name]["x"].shape for name in file} == {
            "train": (40, 40, 1), "val": (10, 40, 1), "test": (20, 40, 1),
        }  # fmt: skip
        assert all(file[name]["x"].dtype == np.float32 and file[name]["y"].dtype == np.int64 for name in file)
    assert len(attributes.pop("digest")) == 64
    assert attributes.pop("version")
    assert attributes == {
        "schema": "skiprnn-sequences", "schema_version": 1, "task": "sine", "sampling_period": 0.5, "duration": 20,
        "seed": 7,
    }  # fmt: skip
    assert task_of_file(path) == Sine(sampling_period=0.5, duration=20)


def test_same_seed_same_bytes(tmp_path):
    one, two, other = (
        generate(Adding(), tmp_path / f"{index}.h5", SIZES, seed=seed) for index, seed in enumerate((1, 1, 2))
    )
    assert one.read_bytes() == two.read_bytes()
    assert not torch.equal(read_sequences(one).splits["train"].x, read_sequences(other).splits["train"].x)


def test_splits_differ_and_do_not_depend_on_each_others_size(tmp_path):
    small = read_sequences(generate(Adding(), tmp_path / "small.h5", SIZES)).splits
    large = read_sequences(generate(Adding(), tmp_path / "large.h5", {**SIZES, "train": 400})).splits
    assert torch.equal(small["test"].x, large["test"].x)
    assert not torch.equal(small["test"].x[:10], small["val"].x)


def test_large_files_are_drawn_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sources.synthetic.CHUNK", 16 * 50)
    counts = []
    path = generate(Adding(), tmp_path / "a.h5", SIZES, on_progress=counts.append)
    assert counts == [16, 16, 8, 10, 16, 4]
    x = read_sequences(path).splits["train"].x
    assert len(x.unique(dim=0)) == 40


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = generate(Adding(), tmp_path / "a.h5", SIZES)
    before = path.read_bytes()
    with pytest.raises(SkipRNNError, match="exists already; pass --overwrite"):
        generate(Adding(), path, SIZES, seed=1)
    assert path.read_bytes() == before
    generate(Adding(), path, SIZES, seed=1, overwrite=True)
    assert path.read_bytes() != before


def test_a_failure_in_the_middle_leaves_nothing(tmp_path):
    path = generate(Adding(), tmp_path / "a.h5", SIZES)
    before = path.read_bytes()

    def fail(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(Adding(), path, SIZES, seed=1, overwrite=True, on_progress=fail)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def damaged(tmp_path, adding_file):
    return shutil.copy(adding_file, tmp_path / "damaged.h5")


def test_missing_file(tmp_path):
    with pytest.raises(SkipRNNError, match=r"no data file .*missing\.h5; make one with `skiprnn gen-data`"):
        read_sequences(tmp_path / "missing.h5")


def test_truncated_file(damaged):
    damaged.write_bytes(damaged.read_bytes()[:-2_000])
    with pytest.raises(SkipRNNError, match=r"damaged\.h5: truncated, damaged or not HDF5"):
        read_sequences(damaged)


def test_flipped_bit(damaged, adding_file):
    with h5py.File(adding_file) as file:
        offset = file["train/x"].id.get_chunk_info(0).byte_offset
    content = bytearray(damaged.read_bytes())
    content[offset + 5] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(SkipRNNError, match="truncated, damaged or not HDF5"):
        read_sequences(damaged)


def test_text_file_and_folder(tmp_path):
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(SkipRNNError, match="not HDF5"):
        read_sequences(tmp_path / "a.h5")
    with pytest.raises(SkipRNNError, match="it is a folder"):
        read_sequences(tmp_path)


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1.0]
    with pytest.raises(SkipRNNError, match="is not a skiprnn data file"):
        read_sequences(tmp_path / "a.h5")


def rewrite(path, change):
    """Change a data file behind the back of its digests, and put them right."""
    with h5py.File(path, "a") as file:
        change(file)
        for name in set(file) & {"train", "val", "test"}:
            arrays = [file[name][key][()] for key in ("x", "y")]
            file[name].attrs["digest"] = "".join(hashlib.sha256(a.tobytes()).hexdigest() for a in arrays)


def put(name, array):
    def change(file):
        del file[name]
        file[name] = array

    return change


def set_attribute(name, value):
    def change(file):
        file.attrs[name] = value

    return change


def set_nan(file):
    file["val/x"][3, 2, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("schema_version", 2), "has schema version 2, this skiprnn reads 1"),
        (set_attribute("task", "juggling"), "holds data for the task juggling, not adding"),
        (set_attribute("length", "long"), "length must be int"),
        (set_attribute("length", [1, 2]), "it lacks length"),
        (lambda file: file.attrs.pop("length"), "it lacks length"),
        (lambda file: file.attrs.pop("digest"), "does not say its digest"),
        (lambda file: file.pop("val"), "split val has no x nor y"),
        (set_nan, "val/x of sequence 3 holds NaN"),
        (put("val/x", np.zeros((16, 12), np.float32)), r"must have x \(N, T, D\) float32"),
        (put("val/x", np.zeros((16, 12, 2))), r"got x \(16, 12, 2\) float64"),
        (put("val/x", np.zeros((15, 12, 2), np.float32)), r"got x \(15, 12, 2\)"),
        (put("val/x", np.zeros((16, 0, 2), np.float32)), "split val is empty"),
        (put("val/x", np.zeros((16, 12, 3), np.float32)), "x has 3 features a step, adding has 2"),
        (put("val/y", np.zeros((16, 1), np.float32)), r"y must be \(16,\), got \(16, 1\)"),
        (put("val/y", np.zeros(16, np.int64)), "y must hold floats"),
    ],
)
def test_files_that_no_generator_made(damaged, change, message):
    rewrite(damaged, change)
    with pytest.raises(SkipRNNError, match=message):
        load_data(damaged, "adding", ("train", "val"))


def test_labels_must_be_classes(tmp_path, sine_file):
    path = shutil.copy(sine_file, tmp_path / "sine.h5")
    rewrite(path, put("val/y", np.full(16, 2)))
    with pytest.raises(SkipRNNError, match="y must hold classes from 0 to 1"):
        load_data(path, "sine", ("val",))


def test_changed_arrays_are_noticed(damaged):
    with h5py.File(damaged, "a") as file:
        file["val/y"][0] += 1
    with pytest.raises(SkipRNNError, match="split val was changed after it was made"):
        read_sequences(damaged)
    assert len(read_sequences(damaged, ("train",)).splits["train"]) == 96


def test_wrong_task(damaged):
    with pytest.raises(SkipRNNError, match=r"holds data for the task adding, not sine; pass --task adding"):
        load_data(damaged, "sine", ("train",))
    rewrite(damaged, set_attribute("task", "juggling"))
    with pytest.raises(SkipRNNError, match="unknown task juggling"):
        task_of_file(damaged)


def test_atomic_write_fails_whole(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SkipRNNError, match=r"cannot write .*a\.txt: No space left on device"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_write_keeps_the_umask(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("")
    (tmp_path / "b.txt").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SkipRNNError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_ctrl_c_in_the_midst_of_hdf5_is_not_lost(tmp_path, monkeypatch):
    original, once = schema.PatientFile.write, []

    def write(self, data):
        if not once and len(data) > 2000:  # an array
            once.append(True)
            signal.raise_signal(signal.SIGINT)
        return original(self, data)

    monkeypatch.setattr(schema.PatientFile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        generate(Adding(length=12), tmp_path / "adding.h5", {"train": 5000, "val": 16, "test": 16}, seed=3)
    assert once
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    out = tmp_path / "a.txt"
    with atomic_path(out) as held:  # of a writer that lives
        left = tmp_path / ".a.txt.abcd1234.txt"
        others = [tmp_path / name for name in (".a.txt.notes.txt", ".b.txt.abcd1234.txt", "a.txt.abcd1234.txt")]
        for path in (left, *others):
            path.write_text("left")
        write_text(out, "new")
        assert not left.exists()
        assert held.exists()
        assert all(path.exists() for path in others)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no_links"])
def test_of_writers_that_may_not_overwrite_one_wins(tmp_path, monkeypatch, links):
    if not links:  # as on some file systems

        def refuse(*names):
            raise OSError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "a.txt"

    def be_late():
        with atomic_path(out, overwrite=False) as late:
            late.write_text("late")
            write_text(out, "early", overwrite=False)

    with pytest.raises(SkipRNNError, match=r"a.txt exists already; pass --overwrite"):
        be_late()
    assert out.read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_one_sequence_is_read_without_the_others(tmp_path, monkeypatch):
    path = generate(Adding(length=12), tmp_path / "a.h5", {"train": 1, "val": 1, "test": 3000})
    whole = read_sequences(path).splits["test"]
    monkeypatch.setattr(memory, "available", lambda: 150_000)  # bytes: a chunk is 98,304, all is three times as much
    _, data = load_data(path, "adding", ("test",), rows=slice(2000, 2001))
    assert torch.equal(data.splits["test"].x, whole.x[2000:2001])
    with pytest.raises(SkipRNNError, match=r"test/x in .*a.h5 takes 288 KB of memory, and 150 KB are free"):
        load_data(path, "adding", ("test",))
    with pytest.raises(SkipRNNError, match=r"has 3,000 sequences in test, so --index goes up to 2999"):
        load_data(path, "adding", ("test",), rows=slice(3000, 3001))


def test_words_and_vectors_have_digests(tmp_path):
    path = tmp_path / "a.h5"
    with sequences_writer(path, overwrite=False) as writer:
        for split in SPLITS:
            writer.write_split(split, 2, iter([Sequences(torch.zeros(2, 3, 1), torch.zeros(2))]))
        writer.write_extra("words", np.array(["a", "é"], dtype=object))
        writer.finish({"task": "imdb"})
    assert read_sequences(path).extra["words"].tolist() == ["a", "é"]
    with h5py.File(path, "r+") as file:
        file["extra/words"][0] = "b"
    with pytest.raises(SkipRNNError, match="words was changed after it was made"):
        read_sequences(path)
