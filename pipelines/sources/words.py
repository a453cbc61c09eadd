"""Word vectors in word2vec's formats, read as a stream of which only the words asked for are kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import SkipRNNError
from pipelines.inputs import UNREADABLE

Vector = npt.NDArray[np.float32]


def read_vectors(path: Path, words: set[str]) -> dict[str, Vector]:
    """The vectors of those words that the file knows.

    Args:
        path: word2vec's binary format (.bin), text with a word and its numbers a line (.txt), or an .npz archive with
            ``words`` (N,), ``vectors`` (M, D) and, if words share vectors, ``row`` (N,).
        words: the words wanted.

    Raises:
        SkipRNNError: the file is missing, damaged or of another format.
    """
    readers = {".bin": _binary, ".txt": _text, ".npz": _archive}
    path = Path(path)
    if path.suffix not in readers:
        raise SkipRNNError(f"cannot read word vectors from {path}: its name must end in {', '.join(readers)}")
    try:
        found: dict[str, Vector] = {}
        for word, vector in readers[path.suffix](path, words):
            found.setdefault(word, vector)
    except (*UNREADABLE, IndexError) as error:
        raise SkipRNNError(f"cannot read word vectors from {path}: {error}") from error
    if len({len(vector) for vector in found.values()}) > 1:
        raise SkipRNNError(f"cannot read word vectors from {path}: they differ in length")
    if bad := [word for word, vector in found.items() if not np.isfinite(vector).all()]:
        raise SkipRNNError(f"{path}: the vector of {bad[0]!r} holds NaN or infinity")
    if not found:
        raise SkipRNNError(f"{path} has a vector for none of the words; is it of another language?")
    return found


def _binary(path: Path, words: set[str]) -> Iterator[tuple[str, Vector]]:
    with path.open("rb") as file:
        count, dimensions = (int(number) for number in file.readline().split())
        for _ in range(count):
            name = bytearray()
            while (byte := file.read(1)) != b" ":
                if not byte:
                    raise EOFError("the file is truncated")
                name += byte
            data = file.read(4 * dimensions)
            if len(data) < 4 * dimensions:
                raise EOFError("the file is truncated")
            word = name.decode("utf-8", errors="replace").lstrip("\n")
            if word in words:
                yield word, np.frombuffer(data, "<f4").astype(np.float32)


def _text(path: Path, words: set[str]) -> Iterator[tuple[str, Vector]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file):
            word, _, values = line.rstrip().partition(" ")
            if number == 0 and len(values.split()) == 1:
                continue  # "count dimensions"
            if word in words:
                yield word, np.array(values.split(), dtype=np.float32)


def _archive(path: Path, words: set[str]) -> Iterator[tuple[str, Vector]]:
    with np.load(path, allow_pickle=False) as arrays:
        names: Any = arrays["words"]
        vectors = arrays["vectors"]
        rows = arrays["row"] if "row" in arrays else np.arange(len(names))
        for word, row in zip(names.tolist(), rows.tolist(), strict=True):
            if word in words:
                yield word, vectors[row].astype(np.float32)
