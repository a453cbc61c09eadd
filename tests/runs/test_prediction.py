"""Prediction on files and streams against the model's own forward pass; bad input; and what is never read."""

import io
import zipfile

import h5py
import numpy as np
import pytest
import torch

from pipelines.data.samples import csv_source, open_sources
from pipelines.data.sequences import SPLITS, Sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig
from pipelines.runs.load import load_run
from pipelines.runs.model import build_model, stream, with_gate
from pipelines.runs.prediction import Answer, Prediction, Predictor
from pipelines.runs.training import train
from pipelines.tasks import Sine


@pytest.fixture
def run(make_run):
    return make_run(lam=1.0, lr=0.1, steps=24, hidden_size=9)


@pytest.fixture
def expected(run):
    """What the model says of the test split: x (N, T, D), sums (N,), used samples (N,)."""
    trained = load_run(run)
    with torch.no_grad():
        output, gate = trained.model(trained.sequences.x)
    return trained.sequences.x.numpy(), output[:, 0].tolist(), gate.sum(1).int().tolist()


def written(tmp_path, ending, x):
    """One sequence (T, D), or several (N, T, D), in a file."""
    path = tmp_path / f"input{ending}"
    if ending == ".npy":
        np.save(path, x)
    elif ending == ".npz":
        np.savez(path, x)
    elif ending == ".h5":
        with h5py.File(path, "w") as file:
            file["group/values"] = x.astype(np.float64)
    else:
        header = "value,marker\n" if ending == ".csv" else ""
        separator = {".csv": ",", ".txt": " ", ".tsv": "\t", ".dat": ";"}[ending]
        path.write_text(header + "".join(separator.join(map(repr, row)) + "\n" for row in x.tolist()))
    return path


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".csv", ".txt", ".tsv", ".dat"])
def test_one_sequence_of_any_format(run, expected, tmp_path, ending):
    x, sums, used = expected
    (prediction,) = Predictor(run).file(written(tmp_path, ending, x[3]))
    assert prediction.answer["sum"] == pytest.approx(sums[3], abs=1e-5)
    assert (prediction.used, prediction.given) == (used[3], 12)
    assert prediction.seconds > 0


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5"])
def test_several_sequences(run, expected, tmp_path, ending):
    x, sums, used = expected
    path = written(tmp_path, ending, x)
    predictions = list(Predictor(run).file(path))
    assert [p.answer["sum"] for p in predictions] == pytest.approx(sums, abs=1e-5)
    assert [p.used for p in predictions] == used
    assert predictions[5].sequence.endswith("[5]")
    (single,) = Predictor(run).file(path, index=5)
    assert single.answer == predictions[5].answer
    with pytest.raises(SkipRNNError, match="holds 16 sequences, so --index goes up to 15"):
        list(Predictor(run).file(path, index=16))


def test_data_files_of_the_project(run, expected, adding_file):
    predictions = list(Predictor(run).file(adding_file))
    assert [p.answer["sum"] for p in predictions] == pytest.approx(expected[1], abs=1e-5)
    assert predictions[0].sequence == f"{adding_file}:test/x[0]"
    assert len(list(Predictor(run).file(adding_file, dataset="/train/x"))) == 96


def test_rows_are_answered_as_they_come(run, expected):
    x, sums, used = expected
    taken = []

    def lines():
        for t, row in enumerate(x[0].tolist()):
            taken.append(t)
            yield f"{row[0]!r},{row[1]!r}\n"

    answers = []
    for said in Predictor(run).rows(lines(), "rows"):
        if isinstance(said, Answer):
            assert taken[-1] == said.step  # not a row further
        answers.append(said)
    *steps, last = answers
    assert isinstance(last, Prediction)
    assert last.answer["sum"] == pytest.approx(sums[0], abs=1e-5)
    assert (len(steps), last.used, last.given) == (used[0], used[0], 12)
    assert steps[-1].answer == last.answer


def test_what_is_skipped_is_not_parsed(run, expected):
    x, _, used = expected
    trained = load_run(run)
    gate = trained.model(trained.sequences.x[:1]).update_gate[0].bool().tolist()
    assert used[0] < 12
    rows = [
        ",".join(map(repr, row)) if open_ else "never,looked,at" for row, open_ in zip(x[0].tolist(), gate, strict=True)
    ]
    *_, last = Predictor(run).rows(io.StringIO("\n".join(rows)), "rows")
    assert last.used == used[0]


def test_a_run_needs_no_data_to_predict(make_run, adding_file, tmp_path, expected):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(adding_file.read_bytes())
    run = make_run("moved", data=str(copy))
    copy.unlink()
    assert list(Predictor(run).file(adding_file, index=0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows holds no rows of numbers; give it one sample a row"),
        ("value,marker\n\n", "rows holds no rows of numbers"),
        ("1,2\n1,2,3\n", "rows, line 2: a row has 2 numbers, this has 3"),
        ("a,b\n1,2\n\n1,two\n", "rows, line 4: 'two' is not a number; mend the row$"),
        ("1,2\n1,two\n", "rows, line 2: 'two' is not a number; mend the row$"),
        ("1,two\n1,2\n", "rows, line 1: 'two' is not a number; mend the row, or pass --header if it is one$"),
        ("\ufffdPNG\n\x1a\n", "rows is no text, and so no CSV; give it one sample a row"),
        ("1,nan\n", "rows, line 1, column 2: NaN or infinity"),
        ("1,2\n-inf,2\n", "rows, line 2, column 1: NaN or infinity"),
    ],
)
def test_bad_rows(text, message):
    def read_all():
        source = csv_source(io.StringIO(text), 2, "rows")
        for t in range(5):
            source.read(t)

    with pytest.raises(SkipRNNError, match=message):
        read_all()


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("a.npy", np.zeros((5, 3)), r"has shape \(5, 3\); the model takes 2 numbers a step: \(T, 2\), or \(N, T, 2\)"),
        ("a.npy", np.zeros((0, 2)), "is empty"),
        ("a.npy", np.array([["a", "b"]]), "not numbers"),
        ("a.npy", np.full((5, 2), np.nan), "step 0, column 1: NaN or infinity"),
        ("missing.npy", None, "no file"),
        ("a.ts", "@data", "^only `skiprnn gen-data own` reads .*a.ts; predict on the data file that it makes$"),
        ("text.npy", "text", "cannot read .*text.npy: truncated, damaged or not a .npy file"),
        ("text.npz", "text", "cannot read .*text.npz: truncated, damaged or not a .npy file"),
        ("text.h5", "text", "cannot read .*text.h5: truncated, damaged or not HDF5"),
    ],
)
def test_bad_files(tmp_path, name, x, message):
    path = tmp_path / name
    if isinstance(x, str):
        path.write_text(x)
    elif x is not None:
        np.save(path, x)
    with pytest.raises(SkipRNNError, match=message), open_sources(path, 2) as sources:
        sources[0].read(0)


def test_files_that_are_not_what_their_names_say(tmp_path):
    np.savez(tmp_path / "whole.npz", a=np.arange(4000.0).reshape(-1, 2))
    np.save(tmp_path / "whole.npy", np.zeros((5, 2)))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
    (tmp_path / "renamed.npz").write_bytes((tmp_path / "whole.npy").read_bytes())
    (tmp_path / "renamed.npy").write_bytes(whole)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.txt", "text")
    with h5py.File(tmp_path / "null.h5", "w") as file:
        file["x"] = h5py.Empty("f4")
    with h5py.File(tmp_path / "none.h5", "w"):
        pass
    for name, message in (
        ("cut.npz", "cannot read"),
        ("flipped.npz", "cannot read"),
        ("text.npz", "truncated, damaged or not an .npz archive"),
        ("null.h5", "holds nothing"),
        ("none.h5", "holds no dataset"),
    ):
        with pytest.raises(SkipRNNError, match=message):
            open_sources(tmp_path / name, 2).__enter__()
    for name in ("renamed.npz", "renamed.npy"):
        with open_sources(tmp_path / name, 2) as sources:
            assert sources[0].read(0).shape == (2,)


def test_values_beyond_float32_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((5, 2), 1e39))
    beyond = r"1e\+39 is beyond float32, which ends at 3.4e38; scale the column down$"
    with (
        open_sources(tmp_path / "a.npy", 2) as (source,),
        pytest.raises(SkipRNNError, match=f"a.npy, step 0, column 1: {beyond}"),
    ):
        source.read(0)
    with pytest.raises(SkipRNNError, match=f"^rows, line 2, column b: {beyond}"):
        csv_source(["a,b", "1,1e39"], 2, "rows").read(0)


def test_the_task_of_a_run_is_checked(run, adding_file):
    task = run / "task.json"
    task.write_text('{"task": "sine", "sampling_period": 1.0, "duration": 9.0}')
    with pytest.raises(SkipRNNError, match=r"task.json holds data for the task sine, not adding"):
        Predictor(run)
    for text in ("[]", "{", ""):
        task.write_text(text)
        with pytest.raises(SkipRNNError, match=r"cannot read .*task.json: truncated, damaged or not"):
            Predictor(run)
    train(run)
    assert list(Predictor(run).file(adding_file, index=0))


def test_the_dataset_must_be_clear(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, a=np.zeros((5, 2)), b=np.ones((5, 2)))
    with pytest.raises(SkipRNNError, match=r"which dataset of .* shall be read\? Name one of a, b with --dataset"):
        open_sources(path, 2).__enter__()
    with pytest.raises(SkipRNNError, match="has no dataset c; it has a, b"):
        open_sources(path, 2, "c").__enter__()
    with open_sources(path, 2, "b") as sources:
        assert sources[0].read(4).tolist() == [1, 1]
        assert sources[0].read(5) is None
    with pytest.raises(SkipRNNError, match="is read as CSV, which has no datasets"):
        open_sources(written(tmp_path, ".csv", np.zeros((2, 2))), 2, "b").__enter__()


@pytest.mark.parametrize("columns", [(), ("a", "b")])
def test_an_array_called_features_is_names_where_it_holds_texts(tmp_path, columns):
    x, path = np.array([[1.0, 2.0]]), tmp_path / "a.npz"

    def first(dataset=None):
        with open_sources(path, 2, dataset, columns=columns) as sources:
            return sources[0].read(0).tolist()

    np.savez(path, features=x)
    assert first() == first("features") == [1, 2]
    np.savez(path, x=x, features=np.array(2))
    assert first("x") == [1, 2]
    np.savez(path, x=x, features=np.array(["b", "a"]))
    assert first() == ([2, 1] if columns else [1, 2])


def test_one_feature_may_be_left_out(tmp_path):
    for x, count in ((np.arange(6.0), 1), (np.arange(6.0)[:, None], 1), (np.arange(12.0).reshape(2, 6), 2)):
        with open_sources(written(tmp_path, ".npy", x), 1) as sources:
            assert len(sources) == count
            assert sources[0].read(4).tolist() == [4]
            assert sources[-1].count() == 6


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_plain_cells_stream_too(cell):
    model = build_model(TrainConfig(cell=cell, skip=False, steps=1, hidden_size=6, num_layers=2), Sine()).eval()
    x = torch.randn(30, 1)
    follower = stream(model)
    assert follower.feed(x) == 30
    torch.testing.assert_close(follower.prediction, model(x[None]).output[0].detach())


def test_a_model_that_skips_at_random_does_not_stream(make_run):
    run = make_run(skip=False, lam=0.0, p_skip=0.5)
    with pytest.raises(SkipRNNError, match="skips at random"):
        Predictor(run)
    assert with_gate(build_model(TrainConfig(steps=1), Sine())).rnn.hidden_size == 110


def test_classes_come_with_probabilities():
    answer = Sine().answer(torch.tensor([0.0, 2.0]))
    assert answer["class"] == 1
    assert answer["probability"] == answer["probabilities"][1] == pytest.approx(0.8808, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "header", "rows", "numeric"),
    [
        ("0,1\n5,6\n7,8\n", None, [[5, 6], [7, 8]], True),  # as pandas names columns that have no names
        ("0,1\n5,6\n", False, [[0, 1], [5, 6]], False),
        ("3,4\n5,6\n", True, [[5, 6]], False),
        ("3,4\n5,6\n", None, [[3, 4], [5, 6]], False),
        ("0.0,1.0\n5,6\n", None, [[0, 1], [5, 6]], False),
        ("a,b\n5,6\n", None, [[5, 6]], False),
    ],
)
def test_which_first_line_is_a_header(text, header, rows, numeric):
    source = csv_source(io.StringIO(text), 2, "rows", header)
    assert [source.read(t).tolist() for t in range(len(rows))] == rows
    assert source.read(len(rows)) is None
    assert source.numeric_header == numeric


def test_a_single_zero_is_a_sample():
    assert csv_source(io.StringIO("0\n5\n"), 1, "rows").read(0).tolist() == [0]


def test_rows_with_labels_are_as_wide_as_their_header():
    for row, cells in (("2", 1), ("2,up,3", 3)):
        source = csv_source(io.StringIO(f"a,phase\n1,up\n{row}\n"), 1, "rows", columns=("a",), labels=("phase",))
        assert (source.read(0).tolist(), source.left_out) == ([1], ("phase",))
        with pytest.raises(SkipRNNError, match=f"rows, line 3: a row has 2 cells, this has {cells}"):
            source.read(1)


def test_decimal_commas_are_named():
    said = "5,1 has a decimal comma; write numbers with points, 5.1"
    for text, width, line in (("5,1;0,2\n", 2, 1), ("a;b\n5,1;0,2\n", None, 2), ("a\tb\n5,1\t0,2\n", 2, 2)):
        with pytest.raises(SkipRNNError) as refused:
            csv_source(io.StringIO(text), width, "rows").read(0)
        assert str(refused.value) == f"rows, line {line}: {said}"


def test_what_is_no_table_is_not_quoted():
    for text, width in (("secret\nroot:x:0:0\n", None), ("1,2\nsecret,more\n", 2)):
        source = csv_source(io.StringIO(text), width, "rows")
        with pytest.raises(SkipRNNError) as caught:
            list(map(source.read, range(2)))
        assert "root" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_sequence_without_samples(skiprnn, make_run, tmp_path):
    """As a review of no word is, read at its true length."""
    run = make_run("run", true_lengths=True)
    data = tmp_path / "none.h5"
    with sequences_writer(data, overwrite=False) as writer:
        for split in SPLITS:
            x, y = torch.zeros(2, 12, 2), torch.zeros(2)
            writer.write_split(split, 2, iter([Sequences(x, y, torch.tensor([0, 12]))]))
        writer.finish({"task": "adding", "length": 12})
    done = skiprnn("predict", run, data)
    assert done.exit_code == 0
    assert "used 0 of 0 samples (there are none)" in done.stdout
