"""Public data sets and users' own files to data files: counts, digests, splits, and every kind of bad source."""

import gzip
import json
import lzma
import os
import struct
import tarfile
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipelines.data.sequences import read_sequences
from pipelines.errors import SkipRNNError
from pipelines.sources import imdb, mnist
from pipelines.sources.download import download
from pipelines.sources.own import write_own
from pipelines.sources.word_vectors import read_vectors
from pipelines.tasks import Imdb, Mnist, OwnClasses, OwnNumbers, load_data
from skiprnn.words import tokenize

REAL = Path(os.environ.get("SKIPRNN_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_real = pytest.mark.skipif(not REAL.exists(), reason=f"there is no {REAL}; SKIPRNN_REAL_DATA may name another")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with four plain IDX files of random digits, of MNIST's sizes."""
    folder, draws = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        labels = draws.integers(0, 10, count, dtype=np.uint8)
        images = np.repeat(labels, 784).reshape(count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_mnist_from_plain_files(digits, tmp_path):
    path = tmp_path / "mnist.h5"
    done = mnist.write_mnist(Mnist(), path, source=digits, cache=tmp_path, seed=1)
    assert done.others == list(mnist.FILES)
    assert done.sizes == {"train": 55_000, "val": 5_000, "test": 10_000}
    task, data = load_data(path, "mnist", ("train", "val", "test"))
    assert (task.input_size, task.output_size) == (1, 10)
    train = data.splits["train"]
    assert train.x.shape == (55_000, 784, 1)
    assert train.x.dtype == torch.uint8
    assert torch.equal(train.x[:, 400, 0].long(), train.y)
    other = tmp_path / "other.h5"
    mnist.write_mnist(Mnist(), other, source=digits, cache=tmp_path, seed=2)
    assert read_sequences(other).attributes["digest"] != data.attributes["digest"]
    again = tmp_path / "again.h5"
    mnist.write_mnist(Mnist(), again, source=digits, cache=tmp_path, seed=1)
    assert read_sequences(again).attributes["digest"] == data.attributes["digest"]


def test_some_digits_of_mnist(digits, tmp_path):
    path = tmp_path / "some.h5"
    mnist.write_mnist(Mnist("56"), path, source=digits, cache=tmp_path)
    task, data = load_data(path, "mnist", ("test",))
    test = data.splits["test"]
    assert task.output_size == 2
    assert torch.equal(test.x[:, 0, 0].long(), test.y + 5)
    assert task.answer(torch.tensor([0.0, 1.0]))["class"] == "6"
    with pytest.raises(SkipRNNError, match="two different digits or more"):
        Mnist("55")


def test_bad_mnist_files(digits, tmp_path):
    def attempt(name, data, message):
        folder = tmp_path / name
        folder.mkdir()
        for path in digits.iterdir():
            if path.name not in (data or {}):
                (folder / path.name).symlink_to(path)
        for file, content in (data or {}).items():
            if content is not None:
                (folder / file).write_bytes(content)
        with pytest.raises(SkipRNNError, match=message):
            mnist.write_mnist(Mnist(), tmp_path / "out.h5", source=folder, cache=tmp_path)
        assert not (tmp_path / "out.h5").exists()

    labels = "t10k-labels-idx1-ubyte"
    whole = (digits / labels).read_bytes()
    attempt("missing", {labels: None}, f"no .*{labels}.gz, compressed or not; --source must hold the four")
    attempt(
        "truncated",
        {labels: whole[:-5]},
        f"{labels}: truncated, damaged or not the original file of MNIST .it has not the 10,008 bytes",
    )
    attempt("wrong", {labels: b"x" * len(whole)}, "its header is another")
    attempt(
        "zipped",
        {f"{labels}.gz": gzip.compress(whole)},
        f"{labels}.gz: truncated, damaged or not the original .*its MD5 is",
    )


@pytest.mark.parametrize("digits", ["0123456789", "17", "56"])
@pytest.mark.realdata
@needs_real
def test_the_real_mnist(digits, tmp_path):
    sizes, others = mnist.write_mnist(Mnist(digits), tmp_path / "m.h5", source=REAL / "mnist", cache=tmp_path)
    assert others == []
    expected = {"0123456789": (60_000, 10_000), "17": (13_007, 2_163), "56": (11_339, 1_850)}[digits]
    assert (sizes["train"] + sizes["val"], sizes["test"]) == expected


WORDS = ("good", "bad", "fine", "awful", "film", "isn't")


@pytest.fixture
def small_imdb(monkeypatch):
    """IMDB with 40 reviews a split."""
    monkeypatch.setattr(imdb, "REVIEWS", 40)


def review(number, label):
    return (
        f"{WORDS[2 * (number % 2) + 1 - label].title()} FILM,<br /><br />isn’t it? {'film ' * (number % 7)}rare{number}"
    )


def acl_folder(tmp_path):
    folder = tmp_path / "aclImdb"
    for split in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for number in range(20):
                (folder / split / name / f"{number}_{label * 9}.txt").write_text(
                    review(number, label), encoding="utf-8"
                )
    return folder


def test_the_tokeniser():
    text = "It's <br />a film's film: 'quoted', won’t—don't! Café n°3 under_score"
    assert tokenize(text) == [
        "it's", "a", "film's", "film", "quoted", "won't", "don't", "café", "n", "3", "under", "score",
    ]  # fmt: skip


def test_imdb_from_folder_archive_and_json_lines(small_imdb, tmp_path):
    folder = acl_folder(tmp_path)
    with tarfile.open(tmp_path / "acl.tar.gz", "w:gz") as archive:
        archive.add(folder, "aclImdb")
    lines = tmp_path / "lines"
    lines.mkdir()
    for split, opener in (("train", lzma.open), ("test", open)):
        name = f"imdb_{split}.jsonl" + (".xz" if opener is lzma.open else "")
        with opener(lines / name, "wt", encoding="utf-8") as file:
            for label, kind in enumerate(("neg", "pos")):
                for path in sorted((folder / split / kind).iterdir()):
                    file.write(json.dumps({"label": label, "text": path.read_text(encoding="utf-8")}) + "\n")
    digests = set()
    for number, source in enumerate((folder, tmp_path, tmp_path / "acl.tar.gz", lines)):
        path = tmp_path / f"{number}.h5"
        written = imdb.write_imdb(path, length=6, source=source, cache=tmp_path, dimensions=3, min_count=3)
        assert written.sizes == {"train": 34, "val": 6, "test": 40}
        task, data = load_data(path, "imdb", ("train", "val", "test"), true_lengths=True)
        digests.add(data.attributes["digest"])
    assert len(digests) == 1
    words = data.extra["words"].tolist()
    assert words[2] == "film"
    assert {"isn't", "it", "good", "bad"} <= set(words)
    assert not any(word.startswith("rare") for word in words)
    assert task == Imdb(
        length=6, dimensions=3, vocabulary=len(words), vocabulary_sha256=data.attributes["vocabulary_sha256"]
    )
    train = data.splits["train"]
    for x, y in zip(train.x, train.y, strict=True):
        first = [words[number] for number in x]
        assert first[1:4] == ["film", "isn't", "it"]
        assert first[0] in (("bad", "awful", ""), ("good", "fine", ""))[y]
    assert 0 < train.y[:17].sum() < 17
    assert data.splits["val"].y.sum() == 3
    assert train.lengths.min() == 5
    vectors = torch.from_numpy(data.extra["vectors"])
    assert vectors.shape == (len(words), 3)
    assert vectors[0].abs().sum() == 0
    assert 0 < vectors[1:].abs().max() <= 0.25


def test_padding_of_imdb_stands_in_front(small_imdb, tmp_path):
    path = tmp_path / "imdb.h5"
    imdb.write_imdb(path, length=9, source=acl_folder(tmp_path), cache=tmp_path, dimensions=3, min_count=1)
    _, ended = load_data(path, "imdb", ("test",), true_lengths=True)
    _, padded = load_data(path, "imdb", ("test",))
    for x, length, shown in zip(
        ended.splits["test"].x, ended.splits["test"].lengths, padded.splits["test"].x, strict=True
    ):
        assert torch.equal(shown[9 - length :], x[:length])
        assert shown[: 9 - length].sum() == 0
    assert padded.splits["test"].lengths is None


def test_word_vectors(small_imdb, tmp_path):
    table = {"film": [1.0, 2.0, 3.0], "awful": [-1.0, 0.5, 0.25], "unneeded": [9.0, 9.0, 9.0]}
    with (tmp_path / "v.bin").open("wb") as file:
        file.write(b"3 3\n")
        for word, vector in table.items():
            file.write(word.encode() + b" " + np.float32(vector).tobytes() + b"\n")
    (tmp_path / "v.txt").write_text("3 3\n" + "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in table.items()))
    np.savez(tmp_path / "v.npz", words=np.array(list(table)), vectors=np.array(list(table.values()), np.float16))
    for ending in ("bin", "txt", "npz"):
        found = read_vectors(tmp_path / f"v.{ending}", {"film", "awful", "other"})
        assert {word: vector.tolist() for word, vector in found.items()} == {w: table[w] for w in ("film", "awful")}
    written = imdb.write_imdb(
        tmp_path / "i.h5", source=acl_folder(tmp_path), cache=tmp_path, word2vec=tmp_path / "v.bin", min_count=3
    )
    data = read_sequences(tmp_path / "i.h5")
    words = data.extra["words"].tolist()
    assert data.extra["vectors"][words.index("film")].tolist() == table["film"]
    assert 0 < written.covered_words < 1
    assert written.covered_words < written.covered_tokens < 1
    truncated = tmp_path / "t.bin"
    truncated.write_bytes((tmp_path / "v.bin").read_bytes()[:-20])
    for path, message in (
        (truncated, "a word has no end"),
        (tmp_path / "missing.txt", "No such file"),
        (tmp_path / "v.pkl", "its name must end in .bin, .txt, .npz"),
    ):
        with pytest.raises(SkipRNNError, match=message):
            read_vectors(path, {"film", "unneeded"})
    (tmp_path / "nan.txt").write_text("film nan 1 2\n")
    with pytest.raises(SkipRNNError, match="the vector of 'film' holds NaN"):
        read_vectors(tmp_path / "nan.txt", {"film"})
    with pytest.raises(SkipRNNError, match="lower --min-count"):
        imdb.write_imdb(tmp_path / "j.h5", source=acl_folder(tmp_path / "again"), cache=tmp_path, min_count=10**6)
    with pytest.raises(SkipRNNError, match="a vector for none of the words"):
        read_vectors(tmp_path / "v.txt", {"other"})


def test_bad_imdb_sources(small_imdb, tmp_path):
    folder = acl_folder(tmp_path)
    (folder / "test" / "pos" / "3_9.txt").unlink()
    (tmp_path / "acl.tar.gz").write_bytes(b"no archive")
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "train.jsonl").write_text('{"label": 1}\n')
    for source, message in (
        (folder, "has 20 negative and 19 positive test reviews; IMDB has 20 of each"),
        (tmp_path / "acl.tar.gz", "cannot read .*acl.tar.gz: truncated, damaged or not IMDB"),
        (lines, "cannot read .*lines: truncated, damaged or not IMDB .'text'"),
        (tmp_path / "nowhere", "no .*nowhere; name the folder aclImdb or its archive"),
    ):
        with pytest.raises(SkipRNNError, match=message):
            imdb.write_imdb(tmp_path / "out.h5", source=source, cache=tmp_path)


@pytest.mark.slow(reason="reads all reviews of a data set")
@pytest.mark.realdata
@needs_real
def test_the_real_imdb(tmp_path):
    vectors = REAL / "word_vectors" / "word2vec_sg300_trained_on_imdb_train_f16.npz"
    written = imdb.write_imdb(tmp_path / "i.h5", source=REAL / "imdb", cache=tmp_path, word2vec=vectors)
    assert written.sizes == {"train": 21_250, "val": 3_750, "test": 25_000}
    assert written.covered_tokens > 0.97


def test_download_checks_what_it_gets(tmp_path):
    original = tmp_path / "original"
    original.write_bytes(b"contents")
    digest = "98bf7d8c15784f0a3d63204441e1e2aa"
    urls = [(tmp_path / "missing").as_uri(), original.as_uri()]
    seen = []
    assert download(urls, tmp_path / "copy", "md5", digest, seen.append).read_bytes() == b"contents"
    assert sum(seen) == 8
    with pytest.raises(SkipRNNError, match=r"cannot download wrong: .*its md5 is 98bf7d8c.*--source"):
        download(urls, tmp_path / "wrong", "md5", "0" * 32)
    with pytest.raises(SkipRNNError, match="No such file") as gone:
        download(urls[:1], tmp_path / "wrong", "md5", digest)
    assert "permissions" not in str(gone.value)  # of the folder that it would be written to
    assert not (tmp_path / "wrong").exists()


def test_own_arrays(tmp_path):
    draws = np.random.default_rng(0)
    x = draws.normal(5, 3, (40, 12, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.where(x.mean((1, 2)) > 5, "high", "low"))
    written = write_own(tmp_path / "a.npz", tmp_path / "a.h5", val=0.2, test=0.1)
    assert isinstance(written.task, OwnClasses)
    assert sum(written.sizes.values()) == 40
    task, data = load_data(tmp_path / "a.h5", "own-classes", ("train", "val", "test"), true_lengths=True)
    assert task == written.task
    assert (task.input_size, task.output_size, task.classes[0]) == (2, 2, "high")
    assert data.splits["train"].lengths is None
    embedded = task.embedding()(data.splits["train"].x)
    torch.testing.assert_close(embedded.mean((0, 1)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded.flatten(0, 1).std(0, correction=0), torch.ones(2))
    for split in data.splits.values():
        assert torch.equal(split.y == 0, split.x.mean((1, 2)) > 5)


def test_own_sequences_of_any_length(tmp_path):
    lengths = np.array([3, 1, 5, 2, 4, 5] * 4)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.arange(offsets[-1], dtype=np.float64)[:, None]
    padded = np.full((24, 5), np.nan)
    for row, (start, end) in enumerate(pairwise(offsets)):
        padded[row, : end - start] = flat[start:end, 0]
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file.update({"x": flat, "offsets": offsets, "y": lengths / 2})
    with h5py.File(tmp_path / "padded.h5", "w") as file:
        file.update({"x": padded, "lengths": lengths, "y": lengths / 2})
    digests = set()
    for name in ("flat", "padded"):
        written = write_own(tmp_path / f"{name}.h5", tmp_path / f"{name}-out.h5")
        assert isinstance(written.task, OwnNumbers)
        _, data = load_data(tmp_path / f"{name}-out.h5", "own-numbers", ("train",), true_lengths=True)
        digests.add(data.splits["train"].x.numpy().tobytes())
        assert torch.equal(data.splits["train"].lengths / 2, data.splits["train"].y)
    assert len(digests) == 1
    task = written.task
    output = torch.tensor([[0.5]])
    assert task.answer(output[0])["value"] == pytest.approx(0.5 * task.target_std[0] + task.target_mean[0])
    assert task.loss(output, torch.tensor(task.target_mean)).item() == pytest.approx(0.5**2 / 2)


def table(tmp_path, labels, header="file,label", rows="1.5,2\n3,4\n", count=8):
    for number in range(count):
        (tmp_path / f"{number}.csv").write_text("a,b\n" + rows * (1 + number % 2))
    lines = [f"{number}.csv,{label}" for number, label in zip(range(count), labels, strict=False)]
    (tmp_path / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    return tmp_path


def test_own_folder_of_csv(tmp_path):
    folder = table(tmp_path, ["walk,train", "run,train", "walk,val", "run,test"] * 2, "file,label,split")
    written = write_own(folder, tmp_path / "out.h5")
    assert written.sizes == {"train": 4, "val": 2, "test": 2}
    assert (written.steps, written.task.features, written.task.classes[1]) == (4, 2, "walk")
    numbers = write_own(table(tmp_path, [0.5, 1.25] * 4), tmp_path / "numbers.h5")
    assert isinstance(numbers.task, OwnNumbers)
    classes = write_own(table(tmp_path, [10, 9] * 4), tmp_path / "classes.h5")
    assert [classes.task.classes[k] for k in range(2)] == ["9", "10"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((9, 3))}, "has no array y; it needs x"),
        ({"x": np.zeros((9, 3)), "y": np.zeros(8, int)}, r"y \(8,\)"),
        ({"x": np.zeros((9, 3, 1)), "y": np.zeros(9, int)}, "all sequences are of the class '0'"),
        ({"x": np.full((9, 3), np.nan), "y": np.arange(9) % 2}, "sequence 0 holds NaN or infinity at step 0"),
        ({"x": np.zeros((9, 3)), "y": np.arange(9) % 2, "lengths": np.arange(9)}, "lengths .N,. from 1 to T"),
        ({"x": np.zeros((9, 3)), "y": np.arange(9) % 2, "lengths": np.arange(9) % 4}, "sequence 0 is empty"),
        ({"x": np.zeros((3, 3)), "y": np.arange(3) % 2, "split": np.array(["train"] * 3)}, "leave none for val"),
        ({"x": np.zeros((3, 3)), "y": np.arange(3) % 2, "split": np.array(["a"] * 3)}, "unknown split 'a'"),
        ({"x": np.zeros((9, 2)), "y": np.arange(2), "offsets": np.array([0, 4, 8])}, "rising from 0 to the 9 rows"),
        ({"x": np.array(["a"] * 9), "y": np.arange(9)}, "x must hold numbers"),
        ({"x": np.float32(1), "y": np.arange(9)}, "x must hold numbers"),
        ({"x": np.zeros((9, 3)), "y": np.arange(9) % 2, "lengths": np.full(9, -3)}, "lengths .N,. from 1 to T"),
        ({"x": np.zeros((9, 3)), "y": np.arange(9) % 2, "lengths": np.ones(9)}, "lengths must hold integers"),
        ({"x": np.zeros((9, 2)), "y": np.arange(2), "offsets": np.array([1, 4, 9])}, "rising from 0 to the 9 rows"),
        ({"x": np.zeros((3, 3)), "y": np.arange(3) % 2, "split": np.array(["val"] * 2)}, "2 splits for 3 sequences"),
    ],
)
def test_bad_own_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SkipRNNError, match=message):
        write_own(tmp_path / "a.npz", tmp_path / "a.h5")


def test_bad_own_files(tmp_path):
    (tmp_path / "a.npz").write_text("no archive")
    (tmp_path / "a.h5").write_text("no archive")
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    gone = tmp_path / "gone"
    gone.mkdir()
    table(gone, [0, 1] * 4)
    (gone / "3.csv").unlink()
    bad = tmp_path / "bad"
    bad.mkdir()
    table(bad, [0, 1] * 4)
    (bad / "5.csv").write_text("1,2\n3,x\n")
    short, latin = tmp_path / "short", tmp_path / "latin"
    for folder, text in ((short, b"file,label\n0.csv\n"), (latin, "file,label\nü.csv,1\n".encode("latin-1"))):
        folder.mkdir()
        (folder / "labels.csv").write_bytes(text)
    for source, message in (
        (tmp_path / "a.npz", "cannot read .*a.npz: truncated, damaged or not an .npz"),
        (tmp_path / "a.h5", "cannot read .*a.h5: truncated, damaged or not HDF5"),
        (tmp_path / "none.npz", "no .*none.npz; name an .npz or .h5 file"),
        (empty, "cannot read .*labels.csv: No such file.* with the columns file and label"),
        (table(wrong, [0, 1] * 4, "path,class"), "must have the columns file and label"),
        (gone, "labels.csv, line 5: there is no file .*3.csv"),
        (bad, "5.csv, line 2: 'x' is not a number"),
        (short, "labels.csv, line 2: the row is too short"),
        (latin, "cannot read .*labels.csv: truncated, damaged or not a table"),
    ):
        with pytest.raises(SkipRNNError, match=message):
            write_own(source, tmp_path / "out.h5")
