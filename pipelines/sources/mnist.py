"""MNIST: the four original IDX files to a data file."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.errors import SkipRNNError
from pipelines.randomness import derive_seed
from pipelines.sources.download import download, file_digest
from pipelines.storage import Sequences, sequences_writer
from pipelines.tasks.mnist import SIDE, Mnist

BYTES = 11_594_722  # to download
VALIDATION = 5_000  # of the 60,000 training digits
FILES = {  # name: MD5 of the compressed file
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")

Bytes = npt.NDArray[np.uint8]


def write_mnist(
    task: Mnist,
    path: Path,
    *,
    source: Path | None = None,
    cache: Path,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda size: None,
) -> dict[str, int]:
    """Write MNIST, or the digits of the task, as sequences of pixels.

    Args:
        task: says which digits.
        path: the HDF5 file to write.
        source: folder with the four IDX files, compressed or not; None downloads them into ``cache``.
        cache: folder for downloads.
        seed: of the split of the 60,000 training digits into 55,000 and 5,000 for validation.
        overwrite: replace a file that exists.
        on_progress: called with the number of bytes just downloaded.

    Returns:
        The sizes of the splits.

    Raises:
        SkipRNNError: a file is missing, truncated or not the original; or ``path`` cannot be written.
    """
    folder = Path(source) if source is not None else _fetch(cache, on_progress)
    images, labels = _read(folder, "train-images-idx3-ubyte", 3), _read(folder, "train-labels-idx1-ubyte", 1)
    test = _read(folder, "t10k-images-idx3-ubyte", 3), _read(folder, "t10k-labels-idx1-ubyte", 1)
    order = np.random.default_rng(derive_seed(seed, "mnist")).permutation(len(images))
    val, train = np.sort(order[:VALIDATION]), np.sort(order[VALIDATION:])
    splits = {"train": (images[train], labels[train]), "val": (images[val], labels[val]), "test": test}
    sizes = {}
    with sequences_writer(path, overwrite=overwrite) as writer:
        for name, (pixels, digits) in splits.items():
            sequences = _sequences(task, pixels, digits)
            sizes[name] = len(sequences)
            writer.write_split(name, len(sequences), _chunks(sequences))
        writer.finish({"task": task.name, **task.parameters(), "seed": seed, "version": version("skiprnn")})
    return sizes


def _sequences(task: Mnist, pixels: Bytes, digits: Bytes) -> Sequences:
    classes = np.full(10, -1, dtype=np.int64)
    for index, digit in enumerate(task.digits):
        classes[int(digit)] = index
    y = classes[digits]
    chosen = y >= 0
    x = pixels[chosen].reshape(-1, SIDE * SIDE, 1)
    return Sequences(torch.from_numpy(x), torch.from_numpy(y[chosen]))


def _chunks(sequences: Sequences) -> Iterator[Sequences]:
    for start in range(0, len(sequences), 1024):
        yield sequences.take(slice(start, start + 1024))


def _fetch(cache: Path, on_progress: Callable[[int], None]) -> Path:
    for name, digest in FILES.items():
        path = cache / f"{name}.gz"
        if not path.exists():
            download([mirror + path.name for mirror in MIRRORS], path, "md5", digest, on_progress)
    return cache


def _read(folder: Path, name: str, dimensions: int) -> Bytes:
    """An original file's array; the compressed one is verified by its digest, the plain one by its header and size."""
    compressed, plain = folder / f"{name}.gz", folder / name
    path = compressed if compressed.exists() else plain
    if not path.exists():
        raise SkipRNNError(
            f"no {compressed}, compressed or not; --source must hold the four original files {', '.join(FILES)}"
        )
    try:
        if path == compressed:
            found = file_digest(path, "md5")
            if found != FILES[name]:
                raise ValueError(f"its MD5 is {found}, the original's {FILES[name]}")
            data = gzip.decompress(path.read_bytes())
        else:
            data = path.read_bytes()
        return _parse_idx(data, dimensions, 60_000 if name.startswith("train") else 10_000)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise SkipRNNError(
            f"{path} is truncated or not the original file of MNIST ({error}); fetch it again"
        ) from error


def _parse_idx(data: bytes, dimensions: int, count: int) -> Bytes:
    """The IDX format: two zero bytes, the type (8: bytes), the number of dimensions, their sizes, the values."""
    shape: tuple[int, ...] = (count, SIDE, SIDE)[:dimensions]
    header: bytes = bytes([0, 0, 8, dimensions]) + np.array(shape, ">i4").tobytes()
    if data[: len(header)] != header:
        raise ValueError("its header is another")
    if len(data) != len(header) + int(np.prod(shape)):
        raise ValueError(f"it has {len(data)} bytes instead of {len(header) + int(np.prod(shape))}")
    array: npt.NDArray[Any] = np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)
    return array
