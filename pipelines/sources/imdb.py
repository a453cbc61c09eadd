"""The Large Movie Review Dataset: the aclImdb folder or archive, or JSON lines, to a data file."""

import lzma
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipelines.data import doors
from pipelines.data.doors import check_file, file_digest, lines_of, parse_json, reading
from pipelines.data.memory import check_fits, in_words
from pipelines.data.sequences import Sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.seeds import derive_seed
from pipelines.sources.download import download
from pipelines.sources.word_vectors import read_vectors
from pipelines.tasks.imdb import Imdb
from skiprnn.words import PADDING, UNKNOWN, digest_of_words, tokenize

ARCHIVE = "aclImdb_v1.tar.gz"
MIRRORS = (f"https://ai.stanford.edu/~amaas/data/sentiment/{ARCHIVE}",)
ARCHIVE_MD5 = "7c2ac02c03563afcf9b574c7e56c153a"
BYTES = 84_125_825  # to download
REVIEWS = 25_000  # in each of train and test
CLASSES = ("neg", "pos")
REVIEW, MEMBER = 2**20, 2**28  # bytes of a review, and of any file of the archive, at most
VALIDATION = 0.15  # of each class of the training reviews
RANGE = 0.25  # words without a vector: U(-RANGE, RANGE)


@dataclass(frozen=True)
class Review:
    text: str
    label: int  # 0 negative, 1 positive


@dataclass(frozen=True)
class WrittenReviews:
    """What ``write_imdb`` wrote."""

    sizes: dict[str, int]
    vocabulary: int  # words
    covered_words: float  # share of the vocabulary that has a vector in the file
    covered_tokens: float  # share of the words of the training text


def write_imdb(
    path: Path,
    *,
    length: int = 200,
    source: Path | None = None,
    cache: Path,
    word2vec: Path | None = None,
    dimensions: int = 300,
    min_count: int = 5,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda size: None,
) -> WrittenReviews:
    """Write IMDB as sequences of words.

    Args:
        path: the HDF5 file to write.
        length: words of a review; longer ones are cropped.
        source: the folder aclImdb, its archive, or a folder with ``*train*.jsonl`` and ``*test*.jsonl``, compressed by
            xz or not; None downloads the archive into ``cache``.
        cache: folder for downloads.
        word2vec: initial vectors, see ``word_vectors.read_vectors``; words it lacks, or all without it, are drawn from
            U(-0.25, 0.25).
        dimensions: of the vectors, where no file says so.
        min_count: rarer words of the training text are one unknown word.
        seed: of the validation split and the draws.
        overwrite: replace a file that exists.
        on_progress: called with the number of bytes just downloaded.

    Raises:
        SkipRNNError: a source is missing, incomplete or damaged; or ``path`` cannot be written.
    """
    if word2vec is not None:
        check_file(word2vec, "name a file of word vectors with --word2vec")
    where = Path(source) if source is not None else _fetch(cache, on_progress)
    reviews = {split: _reviews(where, split) for split in ("train", "test")}
    train, val = _split(reviews["train"], seed)
    splits = {"train": train, "val": val, "test": reviews["test"]}
    for name, part in splits.items():  # so that the first ones are of both classes
        order = np.random.default_rng(derive_seed(seed, "imdb", "order", name)).permutation(len(part))
        splits[name] = [part[row] for row in order]
    tokens = {name: [tokenize(review.text) for review in part] for name, part in splits.items()}

    counts = Counter(word for review in tokens["train"] for word in review)
    words = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not words:
        raise SkipRNNError(f"no word of the training text occurs {min_count} times; lower --min-count")
    vocabulary = ["", "", *words]  # by their numbers
    numbers = {word: number for number, word in enumerate(words, start=UNKNOWN + 1)}
    known = read_vectors(word2vec, set(words)) if word2vec is not None else {}
    if known:
        dimensions = len(next(iter(known.values())))
    check_fits(8 * len(vocabulary) * dimensions, f"{len(words):,} vectors of {dimensions:,} numbers")
    for name, part in splits.items():
        check_fits(4 * length * len(part), f"{name}, {len(part):,} reviews of {length:,} words each,")
    draws = np.random.default_rng(derive_seed(seed, "imdb", "vectors"))
    vectors = draws.uniform(-RANGE, RANGE, (len(vocabulary), dimensions)).astype(np.float32)
    vectors[PADDING] = 0
    for word, vector in known.items():
        vectors[numbers[word]] = vector

    task = Imdb(length, dimensions, len(vocabulary), digest_of_words(vocabulary))
    with sequences_writer(path, overwrite=overwrite) as writer:
        for name, part in splits.items():
            writer.write_split(name, len(part), [_sequences(part, tokens[name], numbers, length)])
        writer.write_extra("words", np.array(vocabulary, dtype=object))
        writer.write_extra("vectors", vectors)
        origin = {"word2vec": Path(word2vec).name, "word2vec_sha256": file_digest(word2vec)} if word2vec else {}
        writer.finish({"task": task.name, **task.parameters(), "seed": seed, "min_count": min_count, **origin})
    return WrittenReviews(
        sizes={name: len(part) for name, part in splits.items()},
        vocabulary=len(words),
        covered_words=len(known) / len(words),
        covered_tokens=sum(counts[word] for word in known) / counts.total(),
    )


def _sequences(reviews: list[Review], tokens: list[list[str]], numbers: dict[str, int], length: int) -> Sequences:
    x = np.full((len(reviews), length), PADDING, dtype=np.int32)
    lengths = np.zeros(len(reviews), dtype=np.int64)
    for row, words in enumerate(tokens):
        lengths[row] = n = min(len(words), length)
        x[row, :n] = [numbers.get(word, UNKNOWN) for word in words[:n]]
    y = torch.tensor([review.label for review in reviews])
    return Sequences(torch.from_numpy(x), y, torch.from_numpy(lengths))


def _split(reviews: list[Review], seed: int) -> tuple[list[Review], list[Review]]:
    """Training and validation reviews, the classes in the same proportion."""
    draws = np.random.default_rng(derive_seed(seed, "imdb", "split"))
    held_out: set[int] = set()
    for label in range(len(CLASSES)):
        rows = [row for row, review in enumerate(reviews) if review.label == label]
        held_out |= {rows[i] for i in draws.permutation(len(rows))[: round(VALIDATION * len(rows))]}
    return (
        [review for row, review in enumerate(reviews) if row not in held_out],
        [review for row, review in enumerate(reviews) if row in held_out],
    )


def _fetch(cache: Path, on_progress: Callable[[int], None]) -> Path:
    path = cache / ARCHIVE
    return path if path.exists() else download(MIRRORS, path, "md5", ARCHIVE_MD5, on_progress)


def _reviews(where: Path, split: str) -> list[Review]:
    """The labelled reviews of a split, in the order of their names."""
    with reading(where, "IMDB", "fetch it again"):
        if where.is_file():
            found = _from_archive(where, split)
        elif (where / split).is_dir() or (where / "aclImdb" / split).is_dir():
            found = _from_folder(where if (where / split).is_dir() else where / "aclImdb", split)
        elif where.is_dir():
            found = _from_json_lines(where, split)
        else:
            raise SkipRNNError(f"no {where}; name the folder aclImdb or its archive with --source")
        reviews = list(islice(found, REVIEWS + 1))  # one too many are enough to tell that it is something else
    counts = Counter(review.label for review in reviews)
    if [counts[0], counts[1]] != [REVIEWS // 2, REVIEWS // 2]:
        raise SkipRNNError(
            f"{where} has {counts[0]:,} negative and {counts[1]:,} positive {split} reviews; IMDB has {REVIEWS // 2:,} "
            "of each. Fetch it again"
        )
    return reviews


def _from_archive(path: Path, split: str) -> Iterator[Review]:
    texts: dict[str, Review] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.size > MEMBER:
                raise ValueError(f"it has a file of {in_words(member.size)}, which IMDB has not")
            wanted = member.isfile() and len(parts) >= 3 and parts[-3] == split and parts[-2] in CLASSES
            if wanted and (file := archive.extractfile(member)) is not None:
                if member.size > REVIEW or len(texts) > REVIEWS:
                    raise ValueError("it has more or longer reviews than IMDB")
                texts["/".join(parts[-2:])] = Review(file.read().decode("utf-8"), CLASSES.index(parts[-2]))
    for name in sorted(texts):
        yield texts[name]


def _from_folder(folder: Path, split: str) -> Iterator[Review]:
    for label, name in enumerate(CLASSES):
        for path in sorted((folder / split / name).glob("*.txt")):
            yield Review(doors.read_text(path, "a review", "fetch it again"), label)


def _from_json_lines(folder: Path, split: str) -> Iterator[Review]:
    paths = sorted(p for p in folder.glob(f"*{split}*") if p.name.endswith((".jsonl", ".jsonl.xz")))
    if not paths:
        raise SkipRNNError(
            f"{folder} holds neither the folder {split} of aclImdb nor a file *{split}*.jsonl; name the folder or the "
            "archive with --source"
        )
    check_file(paths[0], "fetch it again")
    with (lzma.open if paths[0].suffix == ".xz" else open)(paths[0], "rt", encoding="utf-8") as file:
        for number, line in enumerate(lines_of(file, str(paths[0])), start=1):
            record = parse_json(line, dict)
            text, label = record["text"], record["label"]
            if not isinstance(text, str) or label not in (0, 1) or isinstance(label, float):
                raise ValueError(f"line {number} needs a text and a label of 0 or 1")
            yield Review(text, int(label))
