"""The HDF5 file of video features: all videos end to end, and a table of what they are.

``features`` (ΣT, D) float16 or float32, and ``offsets`` (N + 1,) int64, where each video begins; the group ``videos``
holds a column of N values for each field of ``Entry``. Videos of the splits train, val and test follow each other, by
name within a split. Attributes of the root as in storage.py. An absent frame is D zeros, which are not stored.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.errors import SkipRNNError
from pipelines.storage import (
    FEATURES,
    SPLITS,
    DataFile,
    Sequences,
    describe,
    hdf5_writer,
    open_data,
    root_attributes,
)

CHUNK = 64  # frames; a whole video is a few chunks
CPU = torch.device("cpu")
SHARE = 1 / 3  # of a device's memory that the features of a split may take
BLOCK = 8192  # frames read at once

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Entry:
    """A row of the table of videos."""

    name: str  # path relative to the folder of videos
    split: str  # train, val or test
    label: int
    group: str  # videos of one group never stand on both sides of a split
    status: str  # ok or truncated
    frames: int  # decoded
    source_bytes: int
    source_mtime: int  # ns
    source_sha256: str
    features_sha256: str


class StoredRows:
    """Features that stay in their file, which each process opens for itself."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._opened: tuple[int, h5py.File] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def __getitem__(self, rows: slice) -> Tensor:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), h5py.File(self.path, "r")
        try:
            return torch.from_numpy(self._opened[1]["features"][rows])
        except OSError as error:
            raise SkipRNNError(
                f"cannot read the features in {self.path}: damaged ({error}); extract them again"
            ) from error


@dataclass(frozen=True)
class FlatSequences:
    """One split of a feature file, in memory or left in its file."""

    rows: Tensor | StoredRows  # (ΣT, D)
    y: Tensor  # (N,) int64
    starts: Tensor  # (N,) int64, of each video in rows
    counts: Tensor  # (N,) int64, its frames, at most steps
    steps: int  # of a sequence
    width: int  # D
    row_bytes: int
    target: torch.device = CPU
    reads_padding: bool = False

    def __len__(self) -> int:
        return len(self.y)

    @property
    def lengths(self) -> Tensor | None:
        """(N,), or None where absent frames are read like others."""
        return None if self.reads_padding else self.counts

    @property
    def device(self) -> torch.device:
        """Where ``take`` puts what it takes."""
        return self.target

    @property
    def streams(self) -> bool:
        """Whether the features are left in their file."""
        return isinstance(self.rows, StoredRows)

    def padded(self) -> "FlatSequences":
        """The same, absent frames being part of the sequences."""
        return replace(self, reads_padding=True)

    def to(self, device: torch.device | str) -> "FlatSequences":
        """The split on a device, if its features fit into a third of the memory there; else its batches will be."""
        target, rows = torch.device(device), self.rows
        moved = {name: getattr(self, name).to(target) for name in ("y", "starts", "counts")}
        if isinstance(rows, Tensor):
            return replace(self, rows=rows.to(target), target=target, **moved)
        first = int(self.starts.min())
        last = int((self.starts + self.counts).max())
        if (last - first) * self.row_bytes > SHARE * _memory(target):
            return replace(self, target=target)
        moved["starts"] -= first
        blocks = [rows[start : min(start + BLOCK, last)].to(target) for start in range(first, last, BLOCK)]
        return replace(self, rows=torch.cat(blocks), target=target, **moved)

    def take(self, rows: Tensor | slice) -> Sequences:
        """The sequences of the given row numbers, x (B, steps, D) with zeros for absent frames."""
        if isinstance(self.rows, Tensor):
            starts, counts = self.starts[rows], self.counts[rows]
            place = torch.arange(self.steps, device=starts.device)
            there = place < counts[:, None]
            x = self.rows[torch.where(there, starts[:, None] + place, 0)]
            x = x.masked_fill_(~there[..., None], 0)
            return Sequences(x, self.y[rows], None if self.reads_padding else counts)
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        y, starts, counts = self.y[rows], self.starts[rows], self.counts[rows]
        parts = [
            self.rows[start : start + count] for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
        ]
        x = torch.stack([torch.nn.functional.pad(part, (0, 0, 0, self.steps - len(part))) for part in parts])
        return Sequences(x, y, None if self.reads_padding else counts).to(self.target)

    __getitem__ = take  # what a DataLoader calls


def _memory(device: torch.device) -> int:
    """Bytes: free on a GPU, in all on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write_features(
    path: Path,
    entries: list[Entry],
    read: Callable[[Entry], Floats],
    attributes: dict[str, Any],
    *,
    dtype: str = "float16",
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write a feature file; it appears whole or not at all.

    Args:
        path: the HDF5 file.
        entries: the videos; their order in the file is by split, then by name.
        read: a video's features, (T, D), finite.
        attributes: ``task`` and its parameters, and where the features come from.
        dtype: "float16" or "float32".
        overwrite: replace a file that exists.
        on_progress: called with the number of videos just written.

    Raises:
        SkipRNNError: a split is empty, features are not what they should be, or ``path`` cannot be written.
    """
    entries = sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name))
    for split in SPLITS:
        if not any(entry.split == split for entry in entries):
            raise SkipRNNError(f"{len(entries)} videos leave none for {split}; give more, or other splits")
    width = attributes["features"]
    with hdf5_writer(path, overwrite=overwrite) as (file, disk):
        features = file.create_dataset(
            "features", (0, width), dtype, maxshape=(None, width), chunks=(CHUNK, width), fletcher32=True
        )
        offsets = [0]
        for entry in entries:
            rows = read(entry)
            if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
                raise SkipRNNError(f"{entry.name}: features of shape {rows.shape}, where (T, {width}) was expected")
            with np.errstate(over="ignore"):  # to infinity, which is refused
                rows = rows.astype(dtype)
            if not np.isfinite(rows).all():
                raise SkipRNNError(f"{entry.name}: a feature is NaN or too large for {dtype}; store float32")
            offsets.append(offsets[-1] + len(rows))
            features.resize(offsets[-1], axis=0)
            features[offsets[-2] :] = rows
            disk.check()
            on_progress(1)
        file["offsets"] = np.array(offsets, dtype=np.int64)
        for field in fields(Entry):
            column = [getattr(entry, field.name) for entry in entries]
            kind = h5py.string_dtype() if field.type is str else np.int64
            file.create_dataset(f"videos/{field.name}", data=column, dtype=kind)
        content = [(entry.name, entry.split, entry.label, entry.features_sha256) for entry in entries]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        describe(file, FEATURES, {**attributes, "digest": digest})
    return path


def read_entries(path: Path) -> list[Entry]:
    """The table of videos.

    Raises:
        SkipRNNError: there is no such file, or it is not an intact feature file.
    """
    with open_data(path, FEATURES) as file:
        return _entries(file)


@contextmanager
def reading_videos(path: Path) -> Iterator[Callable[[str], Floats]]:
    """Yield a function from a video's name to its features, (T, D). Errors as for ``read_entries``."""
    with open_data(path, FEATURES) as file:
        numbers = {entry.name: number for number, entry in enumerate(_entries(file))}

        def read(name: str) -> Floats:
            start, end = file["offsets"][numbers[name] : numbers[name] + 2]
            rows: Floats = file["features"][start:end]
            return rows

        yield read


def read_features(path: Path, splits: tuple[str, ...] = SPLITS) -> DataFile:
    """Read all of a feature file but the features, which are left where they are until ``FlatSequences.to``.

    Raises:
        SkipRNNError: the file is missing, foreign or damaged.
    """
    with open_data(path, FEATURES) as file:
        attributes = root_attributes(file)
        entries, offsets, features = _entries(file), torch.from_numpy(file["offsets"][()]), file["features"]
        if features.ndim != 2 or features.shape[1] != attributes["features"] or offsets[-1] != len(features):
            raise SkipRNNError(f"{path}: features {features.shape} and offsets do not fit; extract them again")
        width, row_bytes = features.shape[1], features.shape[1] * features.dtype.itemsize
    steps = int(attributes["steps"])
    parts: dict[str, Any] = {}
    for split in splits:
        rows = torch.tensor([index for index, entry in enumerate(entries) if entry.split == split])
        if not len(rows):
            raise SkipRNNError(f"{path} has no videos for {split}; extract them again")
        labels = torch.tensor([entries[int(row)].label for row in rows])
        counts = (offsets[1:] - offsets[:-1])[rows].clamp(max=steps)
        parts[split] = FlatSequences(StoredRows(path), labels, offsets[rows], counts, steps, width, row_bytes)
    names = np.array([entry.name for entry in entries], dtype=object)
    return DataFile(Path(path), attributes, parts, {"names": names})


def _entries(file: h5py.File) -> list[Entry]:
    columns = []
    for field in fields(Entry):
        column = file[f"videos/{field.name}"]
        columns.append(column.asstr()[()].tolist() if field.type is str else column[()].tolist())
    return [Entry(*row) for row in zip(*columns, strict=True)]
