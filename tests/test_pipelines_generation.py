"""Data files: schema, seeds, and what happens to files that are not as they should be."""

import shutil

import h5py
import numpy as np
import pytest
import torch

from pipelines import storage
from pipelines.errors import SkipRNNError
from pipelines.generation import generate
from pipelines.storage import atomic_path, read_sequences, write_text
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
    monkeypatch.setattr("pipelines.generation.CHUNK", 16)
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
    with pytest.raises(SkipRNNError, match=r"damaged\.h5: not HDF5, truncated or damaged"):
        read_sequences(damaged)


def test_flipped_bit(damaged, adding_file):
    with h5py.File(adding_file) as file:
        offset = file["train/x"].id.get_chunk_info(0).byte_offset
    content = bytearray(damaged.read_bytes())
    content[offset + 5] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(SkipRNNError, match="truncated or damaged"):
        read_sequences(damaged)


def test_text_file_and_folder(tmp_path):
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(SkipRNNError, match="not HDF5"):
        read_sequences(tmp_path / "a.h5")
    with pytest.raises(SkipRNNError, match="not HDF5"):
        read_sequences(tmp_path)


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1.0]
    with pytest.raises(SkipRNNError, match="is not a skiprnn data file"):
        read_sequences(tmp_path / "a.h5")


def test_other_schema_version(damaged):
    with h5py.File(damaged, "a") as file:
        file.attrs["schema_version"] = 2
    with pytest.raises(SkipRNNError, match="has schema version 2, this skiprnn reads 1"):
        read_sequences(damaged)


def test_nan_is_named(damaged):
    with h5py.File(damaged, "a") as file:
        file["val/x"][3, 2, 0] = np.nan
    with pytest.raises(SkipRNNError, match="val/x of sequence 3 holds NaN"):
        read_sequences(damaged)
    assert len(read_sequences(damaged, ("train",)).splits["train"]) == 96


def test_missing_split_and_attribute(damaged):
    with h5py.File(damaged, "a") as file:
        del file["test"]
        del file.attrs["length"]
    with pytest.raises(SkipRNNError, match="damaged"):
        read_sequences(damaged)
    with pytest.raises(SkipRNNError, match="lacks the attribute 'length'"):
        task_of_file(damaged)


def test_wrong_task_and_wrong_shape(damaged):
    with pytest.raises(SkipRNNError, match=r"holds data for the task adding, not sine; pass --task adding"):
        load_data(damaged, "sine", ("train",))
    with h5py.File(damaged, "a") as file:
        file.attrs["task"] = "sine"
        file.attrs["sampling_period"], file.attrs["duration"] = 1.0, 12.0
    with pytest.raises(SkipRNNError, match="train/x has 2 features a step, sine has 1"):
        load_data(damaged, "sine", ("train",))
    with h5py.File(damaged, "a") as file:
        file.attrs["task"] = "juggling"
    with pytest.raises(SkipRNNError, match="unknown task juggling"):
        task_of_file(damaged)


def test_atomic_write_fails_whole(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
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
