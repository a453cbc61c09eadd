"""MNIST: the four original IDX files to a data file."""

import gzip
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipelines.data.doors import file_digest, opening
from pipelines.data.sequences import Sequences, sequences_writer
from pipelines.errors import SkipRNNError
from pipelines.seeds import derive_seed
from pipelines.sources.download import download
from pipelines.tasks.mnist import SIDE, Mnist

BYTES = 11_594_722  # to download
VALIDATION = 5_000  # of the 60,000 training digits

Bytes = npt.NDArray[np.uint8]


class Original(NamedTuple):
    """What one of the four files hashes to."""

    compressed_md5: str
    sha256: str  # of the contents


FILES = {
    "train-images-idx3-ubyte": Original(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": Original(
        "d53e105ee54ea40749a09fcbcd1e9432", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte": Original(
        "9fb629c4189551a2d022fa330f9573f3", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": Original(
        "ec29112dd5afa0611ce80d1b7f02629c", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}


MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")


class Conversion(NamedTuple):
    """What ``write_mnist`` wrote."""

    sizes: dict[str, int]  # of the splits
    others: list[str]  # files that are not the originals


def write_mnist(
    task: Mnist,
    path: Path,
    *,
    source: Path | None = None,
    cache: Path,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda size: None,
) -> Conversion:
    """Write MNIST, or the digits of the task, as sequences of pixels.

    Args:
        task: says which digits.
        path: the HDF5 file to write.
        source: folder with the four IDX files, compressed or not; None downloads them into ``cache``.
        cache: folder for downloads.
        seed: of the split of the 60,000 training digits into 55,000 and 5,000 for validation.
        overwrite: replace a file that exists.
        on_progress: called with the number of bytes just downloaded.

    Raises:
        SkipRNNError: a file is missing, truncated or not the original; or ``path`` cannot be written.
    """
    folder = Path(source) if source is not None else _fetch(cache, on_progress)
    read = {name: _read(folder, name, 3 if "images" in name else 1) for name in FILES}
    images, labels, *test = (array for array, _ in read.values())
    order = np.random.default_rng(derive_seed(seed, "mnist")).permutation(len(images))
    val, train = np.sort(order[:VALIDATION]), np.sort(order[VALIDATION:])
    splits = {"train": (images[train], labels[train]), "val": (images[val], labels[val]), "test": tuple(test)}
    classes = np.full(10, -1, dtype=np.int64)  # of the digits; those left out have none
    for index, digit in enumerate(task.digits):
        classes[int(digit)] = index
    sizes = {}
    with sequences_writer(path, overwrite=overwrite) as writer:
        for name, (pixels, digits) in splits.items():
            y = classes[digits]
            x = pixels[y >= 0].reshape(-1, SIDE * SIDE, 1)
            sequences = Sequences(torch.from_numpy(x), torch.from_numpy(y[y >= 0]))
            sizes[name] = len(sequences)
            writer.write_split(name, len(sequences), [sequences])
        writer.finish({"task": task.name, **task.parameters(), "seed": seed})
    return Conversion(sizes, [name for name, (_, is_original) in read.items() if not is_original])


def _fetch(cache: Path, on_progress: Callable[[int], None]) -> Path:
    for name, original in FILES.items():
        path = cache / f"{name}.gz"
        if not path.exists():
            download([mirror + path.name for mirror in MIRRORS], path, "md5", original.compressed_md5, on_progress)
    return cache


def _read(folder: Path, name: str, dimensions: int) -> tuple[Bytes, bool]:
    """A file's array, and whether it is the original's; of a compressed file nothing else is accepted."""
    compressed, plain = folder / f"{name}.gz", folder / name
    path = compressed if compressed.exists() else plain
    if not path.exists():
        raise SkipRNNError(
            f"no {compressed}, compressed or not; --source must hold the four original files {', '.join(FILES)}"
        )
    shape = (60_000 if name.startswith("train") else 10_000, SIDE, SIDE)[:dimensions]
    # The IDX format: two zero bytes, the type (8: bytes), the number of dimensions, their sizes, the values.
    header = bytes([0, 0, 8, dimensions]) + np.array(shape, ">i4").tobytes()
    size = len(header) + math.prod(shape)
    with opening(path, "the original file of MNIST", "fetch it again"):
        if path == compressed and (found := file_digest(path, "md5")) != FILES[name].compressed_md5:
            raise ValueError(f"its MD5 is {found}, the original's {FILES[name].compressed_md5}")
        with gzip.open(path) if path == compressed else path.open("rb") as file:
            data = file.read(size + 1)
        if data[: len(header)] != header:
            raise ValueError("its header is another")
        if len(data) != size:
            raise ValueError(f"it has not the {size:,} bytes that its header says")
        array: Bytes = np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)
        if dimensions == 1 and array.max() > 9:
            raise ValueError(f"it has the label {array.max()}, where digits go up to 9")
        return array, hashlib.sha256(data).hexdigest() == FILES[name].sha256
