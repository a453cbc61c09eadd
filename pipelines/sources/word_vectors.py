"""Word vectors in word2vec's formats, read as a stream of which only the words asked for are kept."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.data.arrays import open_npz
from pipelines.data.doors import lines_of, opening
from pipelines.errors import SkipRNNError

REMEDY = "name another file with --word2vec, or leave it out"
WORD = 2**16  # bytes of a word, at most
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
    found: dict[str, Vector] = {}
    with opening(path, "word vectors", REMEDY), np.errstate(over="ignore"):  # to infinity, which is refused
        for word, vector in readers[path.suffix](path, words):
            found.setdefault(word, vector)
    if len({vector.shape for vector in found.values()}) > 1 or any(vector.size == 0 for vector in found.values()):
        raise SkipRNNError(f"cannot read word vectors from {path}: they differ in length, or have none; {REMEDY}")
    if bad := [word for word, vector in found.items() if not np.isfinite(vector).all()]:
        raise SkipRNNError(f"{path}: the vector of {bad[0]!r} holds NaN or infinity")
    if not found:
        raise SkipRNNError(f"{path} has a vector for none of the words; is it of another language?")
    return found


def _binary(path: Path, words: set[str]) -> Iterator[tuple[str, Vector]]:
    with path.open("rb") as file:
        count, dimensions = (int(number) for number in file.readline(WORD).split())
        if not 0 <= count * (4 * dimensions + 2) <= path.stat().st_size:
            raise EOFError(f"it says that it has {count} words of {dimensions} numbers, and is too small for that")
        for _ in range(count):
            name = bytearray()
            while (byte := file.read(1)) != b" ":
                if not byte or len(name) == WORD:
                    raise EOFError("a word has no end")
                name += byte
            data = file.read(4 * dimensions)
            if len(data) < 4 * dimensions:
                raise EOFError("the file is truncated")
            word = name.decode("utf-8", errors="replace").lstrip("\n")
            if word in words:
                yield word, np.frombuffer(data, "<f4").astype(np.float32)


def _text(path: Path, words: set[str]) -> Iterator[tuple[str, Vector]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(lines_of(file, str(path))):
            word, _, values = line.rstrip().partition(" ")
            if number == 0 and len(values.split()) == 1:
                continue  # "count dimensions"
            if word in words:
                yield word, np.array(values.split(), dtype=np.float32)


def _archive(path: Path, words: set[str]) -> Iterator[tuple[str, Vector]]:
    with closing(open_npz(path, REMEDY)) as arrays:
        names, vectors = arrays.array("words"), arrays.array("vectors")
        rows = arrays.array("row") if "row" in arrays else np.arange(len(names))
        right = names.dtype.kind == "U" and vectors.dtype.kind in "fiu" and rows.dtype.kind in "iu"
        if not right or vectors.ndim != 2:
            raise ValueError("it needs words (N,), vectors (M, D) and row (N,)")
        for word, row in zip(names.tolist(), rows.tolist(), strict=True):
            if word in words:
                yield word, vectors[row].astype(np.float32)
