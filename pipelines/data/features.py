"""The HDF5 file of video features: all videos end to end, and a table of what they are.

``features`` (ΣT, D) float16 or float32, and ``offsets`` (N + 1,) int64, where each video begins; the group ``videos``
holds a column of N values for each field of ``Entry``. Videos of the splits train, val and test follow each other, by
name within a split. Attributes of the root as in schema.py; ``digest`` is of the table, which has each video's own.
An absent frame is D zeros, which are not stored. The features lie in one piece, so that processes can map them into
memory and share it; older files have them in chunks, which are read or loaded.
"""

import hashlib
import json
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

from pipelines.data import memory
from pipelines.data.checked import Checked
from pipelines.data.hdf5 import Hdf5
from pipelines.data.schema import FEATURES, describe, hdf5_writer, open_data, signals_waiting
from pipelines.data.sequences import SPLITS, DataFile, Sequences, sha256
from pipelines.data.stored_rows import REMEDY, StoredRows
from pipelines.errors import SkipRNNError

CPU = torch.device("cpu")
SHARE = 1 / 3  # of a device's free memory that the features of a split may take
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


@dataclass(frozen=True)
class FlatSequences:
    """One split of a feature file, in memory or left in its file."""

    rows: Tensor | StoredRows  # (ΣT, D)
    y: Tensor  # (N,) int64
    starts: Tensor  # (N,) int64, of each video in rows
    counts: Tensor  # (N,) int64, its frames, at most steps
    steps: int  # of a sequence
    width: int  # D
    device: torch.device = CPU  # where ``take`` puts what it takes
    reads_padding: bool = False

    def __len__(self) -> int:
        return len(self.y)

    @property
    def lengths(self) -> Tensor | None:
        """(N,), or None where absent frames are read like others."""
        return None if self.reads_padding else self.counts

    @property
    def streams(self) -> bool:
        """Whether the features are left in their file."""
        return isinstance(self.rows, StoredRows)

    def padded(self) -> "FlatSequences":
        """The same, absent frames being part of the sequences."""
        return replace(self, reads_padding=True)

    def to(self, device: torch.device | str) -> "FlatSequences":
        """The split on a device; where its features take more than a third of the memory there, its batches will be.

        On the CPU features in one piece are mapped, whatever they take.
        """
        target, rows = torch.device(device), self.rows
        moved = {name: getattr(self, name).to(target) for name in ("y", "starts", "counts")}
        if isinstance(rows, Tensor):
            return replace(self, rows=rows.to(target), device=target, **moved)
        first = int(self.starts.min())
        last = int((self.starts + self.counts).max())
        moved["starts"] = moved["starts"] - first
        if target.type == "cpu" and (mapped := rows.mapped) is not None:
            return replace(self, rows=mapped[first:last], device=target, **moved)
        row, free = rows[:1], torch.cuda.mem_get_info(target)[0] if target.type == "cuda" else memory.available()
        if (last - first) * row.nbytes > SHARE * free:
            return replace(self, device=target)
        here = torch.empty(last - first, self.width, dtype=row.dtype, device=target)
        for start in range(first, last, BLOCK):
            here[start - first : start - first + BLOCK] = rows[start : min(start + BLOCK, last)]
        return replace(self, rows=here, device=target, **moved)

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
        return Sequences(x, y, None if self.reads_padding else counts).sent(self.device)

    __getitem__ = take  # what a DataLoader calls


def write_features(
    path: Path,
    entries: list[Entry],
    read: Callable[[Entry], Floats],
    attributes: dict[str, Any],
    *,
    dtype: str = "float16",
    overwrite: bool = False,
) -> Path:
    """Write a feature file; it appears whole or not at all.

    Args:
        path: the HDF5 file.
        entries: the videos; their order in the file is by split, then by name. What they give as the SHA-256 of the
            features is replaced by that of what is stored.
        read: a video's features, (T, D), finite; called twice for each.
        attributes: ``task`` and its parameters, and where the features come from.
        dtype: "float16" or "float32".
        overwrite: replace a file that exists.

    Raises:
        SkipRNNError: a split is empty, features are not what they should be, or ``path`` cannot be written.
    """
    entries = sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name))
    for split in SPLITS:
        if not any(entry.split == split for entry in entries):
            raise SkipRNNError(f"{len(entries)} videos leave none for {split}; give more, or other splits")

    def stored(entry: Entry) -> Floats:
        rows, width = read(entry), attributes["features"]
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise SkipRNNError(f"{entry.name}: features of shape {rows.shape}, where (T, {width}) was expected")
        with np.errstate(over="ignore"):  # to infinity, which is refused
            rows = rows.astype(dtype)
        if not np.isfinite(rows).all():
            raise SkipRNNError(f"{entry.name}: a feature is NaN or too large for {dtype}; store float32")
        return rows

    counts = []
    for number, entry in enumerate(entries):
        rows = stored(entry)
        counts.append(len(rows))
        entries[number] = replace(entry, features_sha256=sha256([rows]))
    offsets = np.cumsum([0, *counts], dtype=np.int64)
    with hdf5_writer(path, overwrite=overwrite) as (file, disk):
        features = file.create_dataset("features", (offsets[-1], attributes["features"]), dtype)  # in one piece
        for entry, start, end in zip(entries, offsets[:-1], offsets[1:], strict=True):
            rows = stored(entry)
            with signals_waiting():
                features[start:end] = rows
            disk.check()
        file["offsets"] = offsets
        for field in fields(Entry):
            column = [getattr(entry, field.name) for entry in entries]
            kind = h5py.string_dtype() if field.type is str else np.int64
            file.create_dataset(f"videos/{field.name}", data=column, dtype=kind)
        describe(file, FEATURES, {**attributes, "digest": _digest(entries)})
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
    """Yield a function from a video's name to its features, (T, D), which are not checked. Errors as for the table."""
    with open_data(path, FEATURES) as file:
        entries = _entries(file)
        offsets = _offsets(file, len(entries))
        numbers = {entry.name: number for number, entry in enumerate(entries)}
        rows, row_bytes = StoredRows(path, _digest(entries)), _row_bytes(file)

        def read(name: str) -> Floats:
            start, end = offsets[numbers[name] : numbers[name] + 2].tolist()
            memory.check_fits((end - start) * row_bytes, f"{name} in {path}")
            return rows[start:end].numpy()

        yield read


def read_features(path: Path, splits: tuple[str, ...] = SPLITS) -> DataFile:
    """Read all of a feature file but the features, which are left where they are until ``FlatSequences.to``.

    The first time the videos of a split are held against their digests.

    Raises:
        SkipRNNError: the file is missing, foreign or damaged, or was changed after it was made.
    """
    path = Path(path)
    with open_data(path, FEATURES) as file:
        attributes: dict[str, Any] = file.attributes()
        entries = _entries(file)
        offsets = torch.from_numpy(_offsets(file, len(entries)))
        width, row_bytes = file.dataset("features").shape[1], _row_bytes(file)
    steps = attributes.get("steps")
    if width != attributes.get("features") or not isinstance(steps, int) or steps < 1:
        raise SkipRNNError(f"{path} has {width} features a frame and says otherwise, or not how many frames; {REMEDY}")
    memory.check_fits(steps * row_bytes, f"a video of {steps} frames of {path}")
    rows, checked = StoredRows(path, attributes["digest"]), Checked(path, attributes["digest"])
    parts: dict[str, Any] = {}
    for split in splits:
        numbers = [number for number, entry in enumerate(entries) if entry.split == split]
        if not numbers:
            raise SkipRNNError(f"{path} has no videos for {split}; {REMEDY}")
        if split not in checked.parts:
            _check(path, rows, [(entries[number], offsets[number : number + 2].tolist()) for number in numbers])
        labels = torch.tensor([entries[number].label for number in numbers])
        counts = offsets.diff()[numbers].clamp(max=steps)
        parts[split] = FlatSequences(rows, labels, offsets[:-1][numbers], counts, steps, width)
    if not checked.parts >= set(splits):
        checked.add(splits)
    names = np.array([entry.name for entry in entries], dtype=object)
    return DataFile(path, attributes, parts, {"names": names})


def _check(path: Path, rows: StoredRows, videos: list[tuple[Entry, list[int]]]) -> None:
    for entry, (first, last) in videos:
        blocks = (rows[start : min(start + BLOCK, last)].numpy() for start in range(first, last, BLOCK))
        if sha256(blocks) != entry.features_sha256:
            raise SkipRNNError(f"{path}: the features of {entry.name} were changed after they were made; {REMEDY}")


def _entries(file: Hdf5) -> list[Entry]:
    columns = []
    for field in fields(Entry):
        column = file.array(f"videos/{field.name}")
        if column.ndim != 1 or column.dtype.kind not in ("O" if field.type is str else "iu"):
            raise SkipRNNError(f"{file.path}: the column videos/{field.name} is {column.dtype}; {REMEDY}")
        columns.append(column.tolist() if field.type is str else column.astype(np.int64).tolist())
    if len({len(column) for column in columns}) > 1:
        raise SkipRNNError(f"{file.path}: the columns of its table are of different lengths; {REMEDY}")
    entries = [Entry(*row) for row in zip(*columns, strict=True)]
    if _digest(entries) != file.attributes()["digest"]:
        raise SkipRNNError(f"{file.path}: its table of videos was changed after it was made; {REMEDY}")
    return entries


def _offsets(file: Hdf5, videos: int) -> npt.NDArray[np.int64]:
    """Where each video begins, held against the features."""
    features, offsets = file.dataset("features"), file.array("offsets")
    if (
        features.ndim != 2
        or features.dtype not in (np.float16, np.float32)
        or offsets.shape != (videos + 1,)
        or offsets.dtype != np.int64
        or (offsets[0], offsets[-1]) != (0, len(features))
        or not (np.diff(offsets) > 0).all()
    ):
        raise SkipRNNError(
            f"{file.path}: features {features.shape} {features.dtype} and {len(offsets)} offsets do not fit; {REMEDY}"
        )
    return offsets


def _row_bytes(file: Hdf5) -> int:
    features = file.dataset("features")
    return int(features.shape[1]) * int(features.dtype.itemsize)


def _digest(entries: list[Entry]) -> str:
    content = [(entry.name, entry.split, entry.label, entry.features_sha256) for entry in entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
