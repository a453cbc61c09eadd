"""What labels of one's own are taken for, and what is said of those that fit nothing."""

import re

import h5py
import numpy as np
import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.sources.own import write_own
from pipelines.tasks import OwnClasses, OwnLabels, OwnNumbers, OwnTags, load_data

DRAWS = np.random.default_rng(0)
X = DRAWS.normal(size=(20, 6, 2))
BITS = np.arange(20 * 6 * 3).reshape(20, 6, 3) % 7 % 2
FLOATS = DRAWS.normal(size=(20, 6, 3))
FORMS = (
    "does not go with x (20, 6, 2): y is (20,) or (20, K) for labels of sequences, (20, 6) or (20, 6, K) for labels of "
    "steps; the nearest is"
)
SEVERAL = "several labels at once are 0 or 1 each, several numbers are floats; a class a step is y (20, 6)"
EITHER = "of float64 holds floats that are all 0 or 1, and may be several things; pass"


def converted(tmp_path, name="a.npz", arrays=None, **options):
    if arrays is not None:
        np.savez(tmp_path / name, **arrays)
    return write_own(tmp_path / name, tmp_path / "a.h5", overwrite=True, **options)


@pytest.mark.parametrize(
    ("y", "kind", "each_step", "stored", "taken"),
    [
        (BITS[:, 0, 0], OwnClasses, False, (), "y (20,) of int64 for a class a sequence, one of 2"),
        (BITS[:, :, 0] + 3, OwnTags, True, (6,), "y (20, 6) of int64 for a class a step, one of 2"),
        (np.where(BITS[:, :, 0], "b", "a"), OwnTags, True, (6,), "y (20, 6) of texts for a class a step, one of 2"),
        (BITS[:, 0], OwnLabels, False, (3,), "y (20, 3) of int64 for 3 labels a sequence"),
        (BITS[:, 0] > 0, OwnLabels, False, (3,), "y (20, 3) of bool for 3 labels a sequence"),
        (BITS.astype(np.uint8), OwnLabels, True, (6, 3), "y (20, 6, 3) of uint8 for 3 labels a step"),
        (FLOATS[:, 0, 0], OwnNumbers, False, (), "y (20,) of float64 for a number a sequence"),
        (FLOATS[:, 0], OwnNumbers, False, (3,), "y (20, 3) of float64 for 3 numbers a sequence"),
        (FLOATS[:, :, 0], OwnNumbers, True, (6,), "y (20, 6) of float64 for a number a step"),
        (FLOATS, OwnNumbers, True, (6, 3), "y (20, 6, 3) of float64 for 3 numbers a step"),
        (FLOATS[..., :1], OwnNumbers, True, (6,), "y (20, 6, 1) of float64 for a number a step"),
    ],
)
def test_shape_and_type_say_what_labels_are(tmp_path, y, kind, each_step, stored, taken):
    written = converted(tmp_path, arrays={"x": X, "y": y})
    span = f", from {y.min():.6g} to {y.max():.6g}" if kind is OwnNumbers else ""
    assert written.taken == taken + span
    assert type(written.task) is kind
    assert written.task.each_step == each_step
    task, data = load_data(tmp_path / "a.h5", kind.name, ("train", "val", "test"), true_lengths=True)
    assert task == written.task
    assert all(split.y.shape[1:] == stored for split in data.splits.values())
    assert sum(len(split) for split in data.splits.values()) == 20


@pytest.mark.parametrize(
    ("y", "options", "kind", "stored"),
    [
        (BITS[:, :, 0], {"task": "own-labels"}, OwnLabels, (6, 1)),
        (BITS[:, :, 0], {"each_step": False}, OwnLabels, (6,)),
        (BITS[:, :, 0], {"task": "own-numbers", "each_step": False}, OwnNumbers, (6,)),
        (BITS[:, 0].astype(float), {"task": "own-labels"}, OwnLabels, (3,)),
        (BITS[:, 0].astype(float), {"task": "own-numbers"}, OwnNumbers, (3,)),
        (BITS[:, :, 0].astype(float), {"task": "own-tags"}, OwnTags, (6,)),
        (FLOATS[:, :, 0], {"each_step": False}, OwnNumbers, (6,)),
    ],
)
def test_options_settle_it(tmp_path, y, options, kind, stored):
    written = converted(tmp_path, arrays={"x": X, "y": y}, **options)
    assert type(written.task) is kind
    _, data = load_data(tmp_path / "a.h5", kind.name, ("train",), true_lengths=True)
    assert data.splits["train"].y.shape[1:] == stored
    assert written.notes == ()


def test_integers_and_whole_floats_are_classes_or_numbers_as_one_says(tmp_path):
    numbers = converted(tmp_path, arrays={"x": X, "y": np.arange(20)}, classes=False)
    assert numbers.taken == "y (20,) of int64 for a number a sequence, from 0 to 19"
    whole = {"x": X, "y": 1.0 * BITS[:, 0, 0]}
    undecided = converted(tmp_path, arrays=whole)
    assert undecided.taken == "y (20,) of float64 for a number a sequence, from 0 to 1"
    assert undecided.notes == (
        "the labels are floats, and all of them whole: taken for numbers; if they are classes, pass --classes",
    )
    assert converted(tmp_path, arrays=whole, classes=False).notes == ()
    classes = converted(tmp_path, arrays=whole, classes=True)
    assert (classes.taken, classes.notes) == ("y (20,) of float64 for a class a sequence, one of 2", ())
    tags = converted(tmp_path, arrays={"x": X, "y": 1.0 * BITS[:, :, 0]}, classes=True)
    assert isinstance(tags.task, OwnTags)
    one_hot = converted(tmp_path, arrays={"x": X, "y": np.eye(3, dtype=int)[np.arange(20) % 3]})
    assert one_hot.notes == (
        "of the labels exactly one holds for every sequence; if they are classes, y.argmax(-1) says which",
    )


def test_a_shape_that_may_be_either_is_told(tmp_path):
    written = converted(tmp_path, arrays={"x": X, "y": BITS[:, :, 0]})
    assert written.notes == ("x has 6 steps; if y has 6 of each sequence, pass --per-sequence",)
    assert converted(tmp_path, arrays={"x": X, "y": BITS[:, :, 0] + 3}).notes == ()


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (BITS[:, :5, 0] + 1, {}, f"y (20, 5) of int64 holds integers other than 0 and 1: {SEVERAL}"),
        (BITS + 1, {}, f"y (20, 6, 3) of int64 holds integers other than 0 and 1: {SEVERAL}"),
        (BITS[:, 0].astype(str), {}, f"y (20, 3) of texts holds texts: {SEVERAL}"),
        (BITS[:, 0].astype(float), {}, f"y (20, 3) {EITHER} --task own-labels or own-numbers"),
        (BITS[:, :, 0].astype(float), {}, f"y (20, 6) {EITHER} --task own-tags, own-labels or own-numbers"),
        (BITS[:19, 0], {}, f"y (19, 3) {FORMS} (20, 3)"),
        (FLOATS[:, :5], {}, f"y (20, 5, 3) {FORMS} (20, 6, 3)"),
        (FLOATS[:, :5, 0], {"each_step": True}, f"y (20, 5) {FORMS} (20, 6)"),
        (np.float64(1), {}, f"y () {FORMS} (20,)"),
        (BITS[:, 0], {"task": "own-classes"},
         "y (20, 3) of int64 is not a class a sequence, which is what own-classes needs; a class a step is y (20, 6)"),
        (FLOATS[:, :, 0], {"task": "own-tags"}, "y (20, 6) of float64 must be whole numbers or texts, to be classes"),
        (FLOATS[:, 0], {"task": "own-labels"}, "y (20, 3) of float64 must be 0 or 1 everywhere, to be labels"),
        (np.where(BITS[:, 0, 0], "b", "a"), {"task": "own-numbers"},
         "y (20,) of texts may be classes; own-numbers needs numbers"),
        (np.zeros((20, 0)), {}, f"y (20, 0) {FORMS} (20, K)"),
        (np.full((20, 6), 1e300), {}, "sequence 0, step 0, has the label 1e+300, whose square is beyond float32; scale "
         "the labels down, to 1e+18 at most"),
        (np.arange(20) * 1e30, {}, "sequence 1 has the label 1e+30, whose square is beyond float32; scale the labels "
         "down, to 1e+18 at most"),
        (np.arange(20), {}, "y (20,) of int64 would be 20 classes of one sequence each: for numbers pass --numbers, "
         "for classes --classes"),
        (np.arange(20) % 16, {}, "y (20,) of int64 would be 16 classes in 20 sequences: for numbers pass --numbers, "
         "for classes --classes"),
        (np.arange(120).reshape(20, 6), {}, "y (20, 6) of int64 would be 120 classes of one step each: for numbers "
         "pass --numbers, for classes --classes"),
        (np.arange(20)[:, None] % 3, {}, "y (20, 1) of int64 holds integers other than 0 and 1: several labels at once "
         "are 0 or 1 each, several numbers are floats; a class a sequence is y[..., 0]"),
        (np.full((20, 6), 1e300), {"task": "own-tags"},
         "y (20, 6) of float64 must be whole numbers or texts, to be classes"),
        (np.zeros((20, 6), int), {}, "all steps are of the class '0'; there is nothing to learn"),
        (np.zeros((20, 3), int), {}, "all labels are the same everywhere; there is nothing to learn"),
        (np.where(np.arange(6) == 2, np.nan, FLOATS[:, :, 0]), {}, "sequence 0, step 2, has no finite label"),
    ],
)  # fmt: skip
def test_labels_that_fit_nothing(tmp_path, y, options, message):
    with pytest.raises(SkipRNNError) as refused:
        converted(tmp_path, arrays={"x": X, "y": y}, **options)
    assert str(refused.value) == f"{tmp_path / 'a.npz'}: {message}"
    assert not (tmp_path / "a.h5").exists()


def test_names_are_as_many_as_labels(tmp_path):
    names = np.array(["a", "b", "c"])
    assert converted(tmp_path, arrays={"x": X, "y": BITS, "names": names}).task.labels == ("a", "b", "c")
    assert converted(tmp_path, arrays={"x": X, "y": FLOATS[:, 0], "names": names}).task.names == ("a", "b", "c")
    assert converted(tmp_path, arrays={"x": X, "y": FLOATS[..., 0], "names": names[:1]}).task.names == ("a",)
    for wrong in (names[:2], names[[0, 0, 1]]):
        with pytest.raises(SkipRNNError, match="names must be 3 different texts"):
            converted(tmp_path, arrays={"x": X, "y": BITS, "names": wrong})


def test_steps_past_the_end_do_not_count(tmp_path):
    lengths = np.arange(20) % 5 + 1
    y = FLOATS.copy()
    y[np.arange(6) >= lengths[:, None]] = np.nan
    task = converted(
        tmp_path, arrays={"x": X, "y": y, "lengths": lengths, "split": np.array(["train", "val"] * 9 + ["test"] * 2)}
    ).task
    train = [FLOATS[row, : lengths[row]] for row in range(0, 18, 2)]
    assert task.target_mean == pytest.approx(np.concatenate(train).mean(0))
    assert task.target_std == pytest.approx(np.concatenate(train).std(0))
    _, data = load_data(tmp_path / "a.h5", task, ("train",), true_lengths=True)
    split = data.splits["train"]
    for row, (found, expected) in enumerate(zip(split.y, train, strict=True)):
        torch.testing.assert_close(found[: split.lengths[row]], torch.tensor(expected, dtype=torch.float32))
        assert not found[split.lengths[row] :].any()


def test_labels_of_steps_that_lie_end_to_end(tmp_path):
    lengths = np.arange(20) % 5 + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    there = np.arange(6) < lengths[:, None]
    padded = {"x": X, "y": BITS, "lengths": lengths}
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file.update({"x": X[there], "y": BITS[there], "offsets": offsets})
    digests = []
    for name, arrays in (("a.npz", padded), ("flat.hdf5", None)):
        assert isinstance(converted(tmp_path, name, arrays).task, OwnLabels)
        _, data = load_data(tmp_path / "a.h5", "own-labels", ("train", "val", "test"), true_lengths=True)
        digests.append([(split.x[:, :5], split.y[:, :5], split.lengths) for split in data.splits.values()])
    for ours, theirs in zip(*digests, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    of_sequences = {"x": X[there], "y": FLOATS[:, 0], "offsets": offsets}
    assert converted(tmp_path, arrays=of_sequences).taken.startswith("y (20, 3) of float64 for 3 numbers a sequence,")
    with pytest.raises(SkipRNNError, match=re.escape(
        "y (55,) does not go with x (60, 2) and offsets (21,): y is (20,) or (20, K) for labels of sequences, (60,) or "
        "(60, K) for labels of steps; the nearest is (60,)"
    )):  # fmt: skip
        converted(tmp_path, arrays={"x": X[there], "y": np.zeros(55), "offsets": offsets})


def recordings(folder, columns, rows, table=None, count=10):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        lines = [",".join(str(cell(number, t)) for cell in rows) for t in range(3 + number % 3)]
        (folder / f"{number}.csv").write_text("\n".join([columns, *lines]) + "\n")
    if table:
        (folder / "labels.csv").write_text("\n".join([table[0], *(f"{n}.csv,{table[1](n)}" for n in range(count))]))
    return folder


def test_a_label_column_of_recordings(tmp_path):
    cells = (lambda n, t: n + t / 10, lambda n, t: "on" if t % 2 else "off", lambda n, t: -t)
    folder = recordings(tmp_path / "own", "a,state,b", cells)
    written = write_own(folder, tmp_path / "a.h5", label_columns=("state",))
    assert written.taken == "column state for a class a step, one of 2"
    assert (written.task.classes, written.task.features, written.steps) == (("off", "on"), 2, 5)
    _, data = load_data(tmp_path / "a.h5", "own-tags", ("train",), true_lengths=True)
    assert data.splits["train"].y[0].tolist()[:3] == [0, 1, 0]
    with_table = recordings(folder, "a,state,b", cells, ("file,split", lambda n: ["train", "val", "test"][n % 3]))
    assert write_own(with_table, tmp_path / "b.h5", label_columns=("state",)).sizes == {"train": 4, "val": 3, "test": 3}


def test_several_label_columns(tmp_path):
    cells = (lambda n, t: n + t, lambda n, t: t % 2, lambda n, t: n % 2)
    folder = recordings(tmp_path / "own", "a;b;c".replace(";", ","), cells)
    written = write_own(folder, tmp_path / "a.h5", label_columns=("c", "b"))
    assert written.taken == "columns c, b for 2 labels a step"
    assert written.task.labels == ("c", "b")
    numbers = write_own(folder, tmp_path / "b.h5", label_columns=("c", "a"), task="own-numbers")
    assert numbers.task.names == ("c", "a")


def test_several_columns_of_the_table(tmp_path):
    cells = (lambda n, t: n + t, lambda n, t: t)
    folder = recordings(tmp_path / "own", "a,b", cells, ("file,wet,cold", lambda n: f"{n % 2},{n % 3 % 2}"))
    written = write_own(folder, tmp_path / "a.h5")
    assert written.taken == "columns wet, cold of labels.csv for 2 labels a sequence"
    assert written.task.labels == ("wet", "cold")
    recordings(folder, "a,b", cells, ("file,speed,angle", lambda n: f"{n / 2},{n}"))
    assert write_own(folder, tmp_path / "b.h5").task.names == ("speed", "angle")
    recordings(folder, "a,b", cells, ("file,speed", lambda n: n / 2))
    assert write_own(folder, tmp_path / "c.h5").task.names == ("speed",)
    recordings(folder, "a,b", cells, ("file,label,note", lambda n: f"{n % 2},whatever"))
    assert write_own(folder, tmp_path / "d.h5").task.classes == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("a,b", {"label_columns": ("c",)}, "0.csv has no column c; its first line names a, b"),
        ("a,b", {"label_columns": ("a", "b")}, "0.csv has no columns but those of labels; it needs samples too"),
        ("a,b", {"label_columns": ("a", "a")}, "a --label-column is named twice"),
        ("a,b", {"label_columns": ("a",), "header": False}, "by the files' header; drop --no-header"),
        ("a,b,c", {"label_columns": ("a",)}, "0.csv, line 2: a row has 3 cells, this has 2"),
        ("a,b", {"each_step": True}, "labels of steps are columns of the CSV files, which --label-column names"),
        ("a,b", {}, "labels.csv, line 2: the row is too short"),
        ("a,b", {"allow_outside": True, "table": "file,b,c"}, "'x' in the column c is not a number; several columns"),
    ],
)
def test_bad_columns(tmp_path, columns, options, message):
    header = options.pop("table", "file,b,c,d")
    cells = (lambda n, t: n + t, lambda n, t: t)
    table = None if "label_columns" in options else (header, lambda n: "1,x")
    folder = recordings(tmp_path / "own", columns, cells, table)
    with pytest.raises(SkipRNNError, match=re.escape(message)):
        write_own(folder, tmp_path / "a.h5", **options)


def test_arrays_have_no_label_columns(tmp_path):
    with pytest.raises(SkipRNNError, match="is no folder of CSV files, so it has no --label-column; its labels are y"):
        converted(tmp_path, arrays={"x": X, "y": BITS}, label_columns=("a",))
