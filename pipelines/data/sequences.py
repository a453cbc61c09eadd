"""The data file of sequences, and its splits in memory.

A file holds groups ``train``, ``val`` and ``test``, each with ``x``, (N, T, D) float32 or uint8, or (N, T) int32
numbers of words; ``y``, (N,) or, with several answers to a sequence or an answer to each step, (N, K), (N, T) or
(N, T, K), float32, int64 or uint8; and, where sequences differ in length, ``lengths`` (N,) int64, past which x and
the steps of y are padding. Attributes of the root as in schema.py; ``digest`` is the SHA-256 over the digests of the
splits, which each group holds and which are checked on reading. A task may add arrays of its own in the group
``extra``, such as the words, whose digests are attributes of that group.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.data.hdf5 import Hdf5
from pipelines.data.schema import REMEDY, SEQUENCES, PatientFile, describe, hdf5_writer, open_data, signals_waiting
from pipelines.errors import SkipRNNError

if TYPE_CHECKING:
    from pipelines.data.features import FlatSequences

SPLITS = ("train", "val", "test")
ARRAYS = ("x", "y", "lengths")  # of a split


Split: TypeAlias = "Sequences | FlatSequences"
"""One split of a data file."""


@dataclass(frozen=True)
class Sequences:
    """Sequences in memory."""

    x: Tensor  # (N, T, D) float32, float16 or uint8, or (N, T) int32
    y: Tensor  # (N,), (N, K), (N, T) or (N, T, K): float32, int64 or uint8
    lengths: Tensor | None = None  # (N,) int64; None: all T steps

    def __len__(self) -> int:
        return len(self.x)

    @property
    def steps(self) -> int:
        """T."""
        return self.x.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.x.device

    def padded(self) -> "Sequences":
        """The sequences with what stands past their ends as part of them."""
        return Sequences(self.x, self.y)

    def take(self, rows: Tensor | slice) -> "Sequences":
        """The sequences of the given row numbers."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Sequences":
        return self._map(lambda tensor: tensor.to(device))

    def copied(self) -> "Sequences":
        """The sequences in memory of their own."""
        return self._map(Tensor.clone)

    def sent(self, device: torch.device) -> "Sequences":
        """The sequences on a device, for which the host does not wait."""
        return self._map(lambda tensor: sent(tensor, device))

    def pin_memory(self) -> "Sequences":
        """The sequences where a GPU fetches them by itself: what a DataLoader calls."""
        return self._map(Tensor.pin_memory)

    def ends(self) -> list[int]:
        """The steps of each sequence."""
        return [self.steps] * len(self) if self.lengths is None else self.lengths.tolist()

    def arrays(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Sequences":
        return Sequences(**{name: function(tensor) for name, tensor in self.arrays().items()})


@dataclass(frozen=True)
class DataFile:
    """A data file's attributes and splits."""

    path: Path
    attributes: dict[str, Any]
    splits: dict[str, Split]
    extra: dict[str, npt.NDArray[Any]]
    reordered: bool = False  # whether the columns stand in another order in the file


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, for which the host does not wait: a GPU fetches it from pinned memory in its turn."""
    here = tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor
    return here.to(device, non_blocking=True)


def mean_steps(split: Split) -> float:
    """Steps of a sequence, mean."""
    return split.steps if split.lengths is None else split.lengths.double().mean().item()


class SequencesWriter:
    """Writes an open HDF5 file split by split, chunk by chunk, with the digest as it goes."""

    def __init__(self, file: h5py.File, disk: PatientFile) -> None:
        self._file, self._disk, self._digest = file, disk, hashlib.sha256()

    def write_split(self, name: str, size: int, chunks: Iterable[Sequences]) -> None:
        group, start = self._file.create_group(name), 0
        digests = {name: hashlib.sha256() for name in ARRAYS}
        for chunk in chunks:
            for key, tensor in chunk.arrays().items():
                array = tensor.cpu().numpy()
                with signals_waiting():
                    if key not in group:
                        group.create_dataset(
                            key, (size, *array.shape[1:]), array.dtype, chunks=(min(size, 1024), *array.shape[1:]),
                            fletcher32=True,
                        )  # fmt: skip
                    group[key][start : start + len(array)] = array
                digests[key].update(array.tobytes())
            start += len(chunk)
            self._disk.check()
        group.attrs["digest"] = "".join(digests[key].hexdigest() for key in ARRAYS if key in group)
        self._digest.update(group.attrs["digest"].encode())

    def write_extra(self, name: str, array: npt.NDArray[Any]) -> None:
        """Add an array of the task's own: numbers, or strings as ``object``."""
        kind = h5py.string_dtype() if array.dtype == object else array.dtype
        group = self._file.require_group("extra")
        group.create_dataset(name, data=array, dtype=kind)
        group.attrs[name] = _digest(array)
        self._disk.check()

    def finish(self, attributes: dict[str, Any]) -> None:
        describe(self._file, SEQUENCES, {**attributes, "digest": self._digest.hexdigest()})


@contextmanager
def sequences_writer(path: Path, *, overwrite: bool) -> Iterator[SequencesWriter]:
    """Open a new data file for writing; it appears at ``path`` whole or not at all."""
    with hdf5_writer(path, overwrite=overwrite) as (file, disk):
        yield SequencesWriter(file, disk)


def read_sequences(path: Path, splits: tuple[str, ...] = SPLITS, rows: slice | None = None) -> DataFile:
    """Read a data file into memory.

    Args:
        path: the file.
        splits: of train, val and test.
        rows: read these sequences only, whose digest nobody can tell.

    Raises:
        SkipRNNError: the file is missing, foreign, damaged, or holds values that are not finite.
    """
    with open_data(path, SEQUENCES) as file:
        parts: dict[str, Split] = {name: _read_split(file, path, name, rows) for name in splits}
        return DataFile(Path(path), file.attributes(), parts, _read_extra(file, path) if rows is None else {})


def _read_split(file: Hdf5, path: Path, name: str, rows: slice | None) -> Sequences:
    there = {key: file.dataset(f"{name}/{key}") for key in ARRAYS if f"{name}/{key}" in file}
    if missing := {"x", "y"} - there.keys():
        raise SkipRNNError(f"{path}: split {name} has no {' nor '.join(sorted(missing))}; {REMEDY}")
    x, y, lengths = there["x"], there["y"], there.get("lengths")
    if (
        (len(x.shape), x.dtype) not in ((3, np.float32), (3, np.uint8), (2, np.int32))
        or len(y.shape) not in (1, 2, 3)
        or y.dtype not in (np.float32, np.int64, np.uint8)
        or len(x) != len(y)
        or (lengths is not None and (lengths.shape != (len(x),) or lengths.dtype != np.int64))
    ):
        raise SkipRNNError(
            f"{path}: split {name} must have x (N, T, D) float32 or uint8, or (N, T) int32, and y (N, ...) "
            f"float32, int64 or uint8, got x {x.shape} {x.dtype} and y {y.shape} {y.dtype}; {REMEDY}"
        )
    if 0 in (x.size, y.size):
        raise SkipRNNError(f"{path}: split {name} is empty, its x being {x.shape} and y {y.shape}; {REMEDY}")
    if rows is not None and rows.start >= len(x):
        raise SkipRNNError(f"{path} has {len(x):,} sequences in {name}, so --index goes up to {len(x) - 1}")
    arrays = {key: file.array(f"{name}/{key}", rows) for key in there}
    if rows is None:
        digest = "".join(_digest(array) for array in arrays.values())
        if digest != file.attributes(name).get("digest"):
            raise SkipRNNError(f"{path}: split {name} was changed after it was made; {REMEDY}")
    if "lengths" in arrays and not (arrays["lengths"].min() >= 0 and arrays["lengths"].max() <= x.shape[1]):
        raise SkipRNNError(f"{path}: split {name} has lengths outside 0..{x.shape[1]}; {REMEDY}")
    sequences = Sequences(**{key: torch.from_numpy(array) for key, array in arrays.items()})
    for key, tensor in (("x", sequences.x), ("y", sequences.y)):
        finite = torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise SkipRNNError(f"{path}: {name}/{key} of sequence {first} holds NaN or infinity; drop such sequences")
    return sequences


def _read_extra(file: Hdf5, path: Path) -> dict[str, npt.NDArray[Any]]:
    names = [name.removeprefix("extra/") for name in file.names() if name.startswith("extra/")]
    digests = file.attributes("extra") if names else {}
    found = {name: file.array(f"extra/{name}") for name in names}
    for name, array in found.items():
        if digests.get(name, digest := _digest(array)) != digest:  # older files have none
            raise SkipRNNError(f"{path}: {name} was changed after it was made; {REMEDY}")
    return found


def _digest(array: npt.NDArray[Any]) -> str:
    if array.dtype == object:
        return hashlib.sha256("\n".join(array.tolist()).encode()).hexdigest()
    return sha256([array])


def sha256(blocks: Iterable[npt.NDArray[Any]]) -> str:
    """The SHA-256 of numbers that come in blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()
