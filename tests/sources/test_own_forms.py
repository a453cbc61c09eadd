"""One's own sequences in folders, tables and .ts files: what is read of them, and what is said of others."""

import sys

import h5py
import numpy as np
import pytest

from pipelines.errors import SkipRNNError
from pipelines.sources.own import earlier, write_own
from pipelines.tasks import OwnClasses, OwnNumbers, OwnTags, load_data

X = np.random.default_rng(0).normal(size=(12, 4, 2))
Y = np.arange(12) % 2


def refused(source, message, **options):
    out = (source[0] if isinstance(source, list) else source).parent / "refused.h5"
    with pytest.raises(SkipRNNError) as error:
        write_own(source, out, **options)
    assert str(error.value) == message
    assert not out.exists()


def recordings(tmp_path, table="file,label\n", separator=",", header="a,b"):
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    for number in range(12):
        (folder / f"{number:02}.csv").write_text(f"{header}\n{number},0\n{number + 1},1\n")
        table += f"{number:02}.csv{separator}{'xy'[number % 2]}\n"
    (folder / "labels.csv").write_text(table)
    return folder


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_separators_of_the_table(tmp_path, separator):
    written = write_own(recordings(tmp_path, f"file{separator}label\n", separator), tmp_path / "a.h5")
    assert written.task.classes == ("x", "y")
    assert written.notes == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("03.csv,y", "03.csv,", "line 5: label is empty; fill it in, or take the row out"),
        ("03.csv,y", "03.csv, ", "line 5: label is empty; fill it in, or take the row out"),
        ("03.csv,y", "\n02.csv,y", "line 6: 02.csv is listed in line 4 already; drop one"),
        ("03.csv,y", "./02.csv,x", "line 5: ./02.csv is listed in line 4 already; drop one"),
        ("03.csv,y", "03.csv,0,5", "line 5: the row has more cells than the first line; quote what has commas"),
        ("03.csv,y", ",y", "line 5: file is empty; fill it in, or take the row out"),
    ],
)
def test_rows_of_the_table_that_are_wrong(tmp_path, old, new, message):
    folder = recordings(tmp_path)
    rewrite(folder / "labels.csv", old, new)
    refused(folder, f"{folder / 'labels.csv'}, {message}")


def test_files_that_are_not_listed(tmp_path):
    folder = recordings(tmp_path)
    (folder / "notes.md").write_text("no recording")
    for name in ("k.csv", "j.csv", "i.csv"):
        (folder / name).write_text("1,2\n")
    note = f"3 files are not listed in {folder / 'labels.csv'} and left out: i.csv, j.csv, k.csv"
    assert write_own(folder, tmp_path / "a.h5").notes == (note,)
    (folder / "l.csv").write_text("1,2\n")
    assert write_own(folder, tmp_path / "b.h5").notes == (note.replace("3 files", "4 files") + ", ...",)


def test_columns_of_a_folder_are_matched_by_their_names(tmp_path):
    folder = recordings(tmp_path)
    (folder / "05.csv").write_text("b,a\n0,5\n1,6\n")
    written = write_own(folder, tmp_path / "a.h5")
    assert written.notes == ("1 file is in another order of columns, matched by their names: 05.csv",)
    assert written.task.columns == ("a", "b")
    _, data = load_data(tmp_path / "a.h5", "own-classes", ("train", "val", "test"))
    found = sorted(row.tolist() for split in data.splits.values() for row in split.x)
    assert found == [[[number, 0], [number + 1, 1]] for number in range(12)]
    (folder / "05.csv").write_text("c,a\n0,5\n")
    refused(
        folder,
        f"{folder / '05.csv'} lacks b and has c: the columns must be a, b, in any order; rename, add or drop them",
    )
    recordings(tmp_path, header="a,a")
    refused(folder, f"{folder / '00.csv'}: several columns are called 'a'; give each a name of its own")
    recordings(tmp_path, header="# made by hand")  # a remark
    assert write_own(folder, tmp_path / "b.h5").task.columns == ()


def test_columns_of_data_files_are_matched_by_their_names(tmp_path):
    files = {}
    for name, names in (("ab", ["a", "b"]), ("ba", ["b", "a"]), ("ac", ["a", "c"]), ("none", None)):
        arrays = {"x": X, "y": Y, "split": np.array(["train", "val", "test"] * 4)}
        arrays |= {"features" if name == "ba" else "columns": np.array(names)} if names else {}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        files[name] = write_own(tmp_path / f"{name}.npz", tmp_path / f"{name}.h5").task
    _, data = load_data(tmp_path / "ba.h5", files["ab"], ("test",))
    assert data.reordered
    np.testing.assert_array_equal(data.splits["test"].x, X[2::3, :, ::-1].astype(np.float32))
    for other in ("ab", "none"):
        _, data = load_data(tmp_path / f"{other}.h5", files["ab"], ("test",))
        assert not data.reordered
        np.testing.assert_array_equal(data.splits["test"].x, X[2::3].astype(np.float32))
    with pytest.raises(SkipRNNError, match=r"ac.h5 lacks b and has c: the columns must be a, b, in any order"):
        load_data(tmp_path / "ac.h5", files["ab"], ("test",))
    np.savez(tmp_path / "one.npz", x=X, y=Y, columns=np.array(["a"]))
    refused(
        tmp_path / "one.npz", f"{tmp_path / 'one.npz'}: columns must be 2 different texts, one for each feature of x"
    )
    with h5py.File(tmp_path / "ab.h5", "r+") as file:  # as files of before are
        del file.attrs["columns"]
    assert load_data(tmp_path / "ab.h5", files["ab"], ("test",))[0].columns == ()


def test_files_of_other_kinds(tmp_path):
    for name in ("a.npy", "a.mat", "a.csv"):
        np.save(tmp_path / "array.npy", X)
        (tmp_path / "array.npy").rename(tmp_path / name)
    where = tmp_path / "a.npy"
    refused(
        where,
        f"{where} holds one array, and labels are needed too: pass an .npz with x and y: "
        "np.savez('data.npz', x=x, y=y)",
    )
    where = tmp_path / "a.mat"
    refused(
        where,
        f"{where} is none of what is read; it takes an .npz or .h5 file with x and y, a folder of CSV files with "
        "labels.csv, one CSV or Parquet table with --id, or .ts files",
    )
    where = tmp_path / "a.csv"
    refused(
        where,
        f"{where} is one table: if it has a row for each sample of many sequences, `skiprnn gen-data own {where} --id "
        "COLUMN --label COLUMN` names the columns that say which sequence a row is of, and its label; a file for each "
        "sequence goes into a folder, with labels.csv",
    )
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    where = tmp_path / "a.npz"
    refused(where, f"{where} is no CSV or Parquet table, so it has no --id and no --time; drop them", id_column="a")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([np.zeros((3, 1)), np.zeros((2, 1))], dtype=object), "y": Y[:2]},
         "x holds Python objects, which are not loaded; sequences of different length lie end to end, x (rows, D), "
         "with offsets (N + 1,): np.savez('data.npz', x=np.concatenate(x), offsets=np.cumsum([0, *map(len, x)]), y=y)"),
        ({"x": X, "y": Y.astype(object)}, "y holds Python objects, which are not loaded; save texts as "
         "y=np.array(y, dtype=str), numbers as y=np.array(y, dtype=float)"),
        ({"x": X[0, :, 0], "y": Y}, "x must hold numbers, (N, T, D), got float64 (4,); one sequence of one feature is "
         "x.reshape(1, 4, 1)"),
        ({"x": np.zeros((12, 4, 3, 2)), "y": Y}, "x must be (N, T, D) or (N, T), and lengths (N,) from 1 to T, got x "
         "(12, 4, 3, 2) and lengths (12,); the nearest is x.reshape(12, 4, -1)"),
        ({"x": np.where(np.arange(2), 1e40, X), "y": Y},
         "sequence 0, step 0, feature 1: 1e+40 is beyond float32, which ends at 3.4e38; scale the column down"),
        ({"x": np.where(np.arange(2), 1e40, X), "y": Y, "columns": np.array(["a", "b"])},
         "sequence 0, step 0, column b: 1e+40 is beyond float32, which ends at 3.4e38; scale the column down"),
        ({"x": np.where(np.arange(2), np.inf, X), "y": Y},
         "sequence 0 holds NaN or infinity at step 0, feature 1; drop or fill it"),
    ],
)  # fmt: skip
def test_arrays_of_other_forms(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", f"{tmp_path / 'a.npz'}: {message}")


def test_a_recording_beyond_float32(tmp_path):
    folder = recordings(tmp_path)
    (folder / "05.csv").write_text("a,b\n0,5\n1,-1e39\n")
    place = f"{folder / '05.csv'}, line 3, column b"
    refused(folder, f"{place}: -1e+39 is beyond float32, which ends at 3.4e38; scale the column down")


def test_a_data_file_whose_targets_are_too_large(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(12) * 1e16)
    task = write_own(tmp_path / "a.npz", tmp_path / "a.h5").task
    _, data = load_data(tmp_path / "a.h5", task, ("train",))
    data.splits["train"].y[0] = 1e30
    with pytest.raises(SkipRNNError, match=r"^y holds numbers beyond 1e\+18, whose squares float32 does not hold$"):
        task.check(data.splits["train"])


HEADER = "who,when,p,q,label"
TABLE = [(f"n{n}", 3 - t, 10 * n + 3 - t, n, "xy"[n % 2]) for t in range(3) for n in range(12)]
HOW = {"id_column": "who", "time_column": "when", "label_columns": ("label",)}


def table_of(path, rows, separator=",", header=HEADER):
    lines = [header.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def parquet_of(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(HEADER.split(","), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("form", ["a.csv", "b.csv", "dates.csv", "a.parquet"])
def test_a_table(tmp_path, form):
    path = tmp_path / form
    if form == "a.parquet":
        parquet_of(path, TABLE)
    else:
        rows = [(who, f"2024-01-0{when}", *more) for who, when, *more in TABLE] if form == "dates.csv" else TABLE
        table_of(path, rows, ";" if form == "b.csv" else ",")
    written = write_own(path, tmp_path / "a.h5", **HOW)
    assert (type(written.task), written.task.classes, written.task.columns) == (OwnClasses, ("x", "y"), ("p", "q"))
    assert written.taken == "column label for a class a sequence, one of 2"
    _, data = load_data(tmp_path / "a.h5", written.task, ("train", "val", "test"), true_lengths=True)
    rows = sorted((x.tolist(), int(y)) for split in data.splits.values() for x, y in zip(split.x, split.y, strict=True))
    assert rows == [([[10 * n + t, n] for t in (1, 2, 3)], n % 2) for n in range(12)]  # by time


def test_a_table_with_labels_of_steps_and_splits(tmp_path):
    rows = [(*row[:4], "up" if row[1] > 1 else "down", ("train", "val", "test")[int(row[0][1:]) % 3]) for row in TABLE]
    path = table_of(tmp_path / "a.csv", rows, header=f"{HEADER},split")
    written = write_own(path, tmp_path / "a.h5", each_step=True, **HOW)
    assert isinstance(written.task, OwnTags)
    assert written.sizes == {"train": 4, "val": 4, "test": 4}
    _, data = load_data(tmp_path / "a.h5", written.task, ("val",), true_lengths=True)
    assert data.splits["val"].y.tolist() == [[0, 1, 1]] * 4


@pytest.mark.parametrize(
    ("old", "new", "how", "message"),
    [
        ("", "", {"id_column": "me"}, " has no column 'me'; it has who, when, p, q, label"),
        ("", "", {"label_columns": ()}, ": which column is the label? Pass --label with one of p, q, label"),
        ("", "", {"label_columns": ("who",)}, None),
        ("n3,2,32,3,y", "n3,2,32,3,x", {},
         ": label of who n3 changes from y to x in line 17; for a label of each step pass --per-step"),
        ("n3,2,", "n3,3,", {}, ": who n3 has when 3 twice, in line 5 and line 17; drop one"),
        ("n3,2,", "n3,,", {}, ", line 17, column when: the cell is empty; fill it in, or take the row out"),
        ("n3,2,", "n3,soon,", {},
         ", line 2, column when: '3' is neither a number nor a date such as 2024-01-31T12:00:00"),
        ("n3,2,32", "n3,2,", {}, ", line 17, column p: the cell is empty; fill it in, or take the row out"),
        ("n3,2,32", "n3,2,high", {}, ", line 17, column p: 'high' is not a number; mend it, or leave the column out"),
        ("n3,2,32", "n3,2,nan", {}, ", line 17, column p: NaN or infinity; fill it in, or take the row out"),
        ("n3,2,32", "n3,2,1e39", {},
         ", line 17, column p: 1e+39 is beyond float32, which ends at 3.4e38; scale the column down"),
        ("n3,2,32", "n3,2,32,5", {}, ", line 17: the first line names 5 columns, this has 6"),
        ("who,when,p", "who,when,q", {}, ": several columns are called 'q'; give each a name of its own"),
    ],
)  # fmt: skip
def test_tables_that_are_wrong(tmp_path, old, new, how, message):
    path = table_of(tmp_path / "a.csv", TABLE)
    rewrite(path, old or HEADER, new or HEADER)
    said = (
        f"{path}{message}"
        if message
        else ("--id, --time and --label: several columns are called 'who'; give each a name of its own")
    )
    refused(path, said, **{**HOW, **how})


def test_decimal_commas_of_a_table_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("id;a;label\n1;5,1;x\n")
    refused(
        tmp_path / "t.csv", f"{tmp_path}/t.csv, line 2, column a: 5,1 has a decimal comma; "
        "write numbers with points, 5.1",
        id_column="id", label_columns=["label"],
    )  # fmt: skip


def test_parquet_that_is_wrong(tmp_path, monkeypatch):
    path = parquet_of(tmp_path / "a.parquet", TABLE)
    how = {"id_column": "who", "label_columns": ("when",)}
    refused(path, f"{path}: the column label holds string, not numbers; leave it out, or convert it", **how)
    parquet_of(path, [(*row[:2], None, *row[3:]) if row[:2] == ("n3", 2) else row for row in TABLE])
    refused(path, f"{path}, row 15, column p: NaN or infinity; fill it in, or take the row out", **HOW)
    parquet_of(path, [(*row[:2], "text", *row[3:]) for row in TABLE])
    refused(path, f"{path}: the column p holds string, not numbers; leave it out, or convert it", **HOW)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SkipRNNError, match=r"^cannot read .*a.parquet: truncated, damaged or not Parquet \(.*\); mend"):
        write_own(path, tmp_path / "a.h5", **HOW)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    missing = "needs pyarrow to be read: `pip install 'skiprnn[parquet]'`, or save the table as CSV"
    refused(path, f"{path} {missing}", **HOW)


def ts_of(path, cases, *, labels="@classLabel true a b", more="@dimensions 2\n"):
    path.write_text(f"# a remark\n@problemName P\n@timeStamps false\n{more}{labels}\n@data\n" + "\n".join(cases) + "\n")
    return path


CASES = [f"{n},1.5,-2:0,0,{n}:{'ab'[n % 2]}" for n in range(12)]


def test_ts_files_keep_their_split(tmp_path):
    folder = tmp_path / "ts"
    folder.mkdir()
    ragged = [*CASES[:8], "1,2:3,4:a"]
    paths = [ts_of(folder / "P_TRAIN.ts", ragged), ts_of(folder / "P_TEST.ts", CASES[8:])]
    for source in (folder, paths, paths[::-1]):
        written = write_own(source, tmp_path / "a.h5", overwrite=True)
        assert written.sizes == {"train": 7, "val": 2, "test": 4}
        assert (written.task.classes, written.taken) == (("a", "b"), "@classLabel for a class a sequence, one of 2")
    _, data = load_data(tmp_path / "a.h5", "own-classes", ("test",), true_lengths=True)
    assert data.splits["test"].x[1, :3].tolist() == [[9, 0], [1.5, 0], [-2, 9]]
    alone = write_own(paths[0], tmp_path / "b.h5")
    assert sum(alone.sizes.values()) == 9
    assert alone.notes == (
        "P_TEST.ts lies beside P_TRAIN.ts and was left out; pass both files to keep the official split",
    )
    numbers = ts_of(tmp_path / "n.ts", [f"{n},1:{n / 2}" for n in range(9)], labels="@targetLabel true", more="")
    assert isinstance(write_own(numbers, tmp_path / "n.h5").task, OwnNumbers)
    ts_of(folder / "Q.ts", CASES)
    refused(
        folder,
        f"{folder} holds P_TRAIN.ts, P_TEST.ts, Q.ts: several files are read where they are NAME_TRAIN.ts and "
        "NAME_TEST.ts",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2,1.5,-2:0", "2,?,-2:0",
         ", line 9, dimension 1, number 2: the value is missing (?); fill it, or take the case out"),
        ("2,1.5,-2:0", "2,x,-2:0", ", line 9, dimension 1, number 2: 'x' is not a number; mend it, or name another"),
        ("2,1.5,-2:0", "2,1.5:0", ", line 9, dimension 2: 3 numbers, the first has 2; mend it, or name another"),
        ("2,1.5,-2:0", "0",
         ", line 9: 1 dimensions and a label, where there should be 2; mend it, or name another"),
        ("0,0,2:a", "0,0,2:c", ", line 9: the label 'c' is none of @classLabel's; mend it, or name another"),
        ("2,1.5,-2:0", "2,1e39,-2:0",
         ", line 9, step 1, feature 0: 1e+39 is beyond float32, which ends at 3.4e38; scale the column down"),
        ("@dimensions 2", "@seriesLength 4",
         ", line 7, dimension 1: 3 numbers, @seriesLength says 4; mend it, or name another"),
        ("@timeStamps false", "@timeStamps true",
         ", line 3: cases with a time stamp a step are not read; write the numbers alone"),
        ("@classLabel true a b", "@classLabel false",
         ", line 6: there is no @classLabel true and no @targetLabel true, so no labels to learn"),
        ("@data\n", "", ", line 6: a line of the header begins with @ or #, and cases follow @data; mend it, or name "
         "another"),
    ],
)  # fmt: skip
def test_ts_files_that_are_wrong(tmp_path, old, new, message):
    path = ts_of(tmp_path / "P.ts", CASES)
    rewrite(path, old, new)
    refused(path, f"{path}{message}")


def test_two_ts_files_have_the_same_dimensions(tmp_path):
    paths = [ts_of(tmp_path / "P_TRAIN.ts", CASES), ts_of(tmp_path / "P_TEST.ts", ["1,2:a", "3,4:b"])]
    rewrite(paths[1], "@dimensions 2", "@dimensions 1")
    refused(
        paths,
        f"{paths[1]}, line 7: 1 dimensions and a label, where there should be 2; mend it, or name another",
    )


def test_a_suffix_may_be_in_capitals(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    source = (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert write_own(source, tmp_path / "a.h5").sizes["train"] == 8


def test_what_was_converted_is_known_again(tmp_path):
    folder, out = recordings(tmp_path), tmp_path / "a.h5"

    def now(source=folder, task=None, classes=None):
        return earlier(source, out, task=task, classes=classes).found

    write_own(folder, out)
    assert now() == "same"
    (folder / "notes.csv").write_text("1,2\n")  # which is not read
    assert now() == "same"
    assert now(task="own-classes") == now(classes=True) == "changed"
    rewrite(folder / "03.csv", "4,1", "4,2")
    assert now() == "changed"
    rewrite(folder / "03.csv", "4,2", "4,1")
    assert now() == "same"
    (tmp_path / "moved").mkdir()
    moved = folder.rename(tmp_path / "moved" / "own")
    assert now(moved) == "same"
    rewrite(moved / "labels.csv", "03.csv,y", "03.csv,x")
    assert now(moved) == "other"
    write_own(moved, out, seed=1, overwrite=True)
    assert now(moved) == "other"  # made with options of its own
    write_own(moved, out, classes=True, overwrite=True)
    assert now(moved) == now(moved, classes=True) == "same"
    assert now(moved, task="own-classes") == "changed"
    rewrite(moved / "03.csv", "4,1", "4,2")
    before = earlier(moved, out, task=None, classes=None)
    assert (before.found, before.task, before.classes) == ("changed", None, True)
