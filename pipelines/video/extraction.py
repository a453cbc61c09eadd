"""``extract-features``: videos to one file of features, in whatever order and by however many processes.

Each video's features go to a part file of their own, written atomically, in the folder OUT.parts beside the file to
come. When every video has its part, or a record of why not, the parts are merged into OUT and removed; those of other
videos are left to the larger extraction that they belong to. What is done is found in the parts and in OUT, so a run
that was killed, or is asked for more videos, does only the rest. Processes that work at the same output, shards among
them, share the work: each video is locked by the one that does it, and the last one merges.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.numpy import load_file, save

from pipelines.data.doors import check_file, file_digest, opening, parse_json, read_json, reading
from pipelines.data.features import Entry, read_entries, reading_videos, write_features
from pipelines.data.fields import check_fields
from pipelines.data.files import atomic_path, check_writable, write_text
from pipelines.data.schema import FEATURES, read_attributes, schema_of
from pipelines.data.sequences import SPLITS, sha256
from pipelines.errors import SkipRNNError
from pipelines.video.decode import CROP, Decoded, Sampling, printable
from pipelines.video.listing import Video, VideoSet
from pipelines.video.network import FrameNetwork, VideoTask
from pipelines.video.workers import Extractor, Failed, Job, Recipe, Result

WAYS = ("network", "weights_sha256", "resize", "precision", "fps", "seconds", "dtype")  # what decides the features
POLL = 0.5  # s between looks at the videos that other processes are at
FRAME_RULE = "at each multiple of 1/fps s after the first frame, the frame on screen"

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Summary:
    """How an extraction ended."""

    path: Path
    report: Path
    merged: bool  # whether ``path`` holds all videos now
    written: bool  # whether this process wrote it
    videos: int  # asked for, of all shards
    extracted: int  # by this process
    steps: int  # of these
    truncated: int  # of all
    failed: dict[str, str]  # of all: name -> reason
    waiting: int  # of all, those that other shards have yet to do


@dataclass(frozen=True)
class _Done(Decoded):
    """What is kept of a video beside its features: columns of its entry."""

    features_sha256: str


def extract_features(
    videos: VideoSet,
    path: Path,
    task: VideoTask,
    network: FrameNetwork,
    executor: Extractor,
    *,
    chosen: list[Video] | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 8,
    dtype: str = "float16",
    allow_failures: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda videos, steps: None,
) -> Summary:
    """Extract the features of videos, those that are not done yet, and merge all.

    Args:
        videos: what there is.
        path: the HDF5 file to write.
        task: its parameters, among them what the network is.
        network: frames to features.
        executor: where the work is done.
        chosen: which of the videos; by default all.
        shard: (i, n) does each n-th video from the i-th, counted from 0.
        batch_size: frames through the network at once.
        dtype: of the stored features, "float16" or "float32".
        allow_failures: merge without the videos that failed.
        overwrite: replace what was made in another way, or holds other videos or splits.
        on_progress: called with the number of videos and of their steps just done.

    Returns:
        What came of it. Nothing is merged while videos are waiting, or have failed without being allowed to.

    Raises:
        SkipRNNError: the output exists and was made in another way, or cannot be written; or a split has no videos.
    """
    chosen = sorted(videos.videos if chosen is None else chosen, key=lambda video: video.name)
    for split in SPLITS:
        if not any(video.split == split for video in chosen):
            raise SkipRNNError(f"{len(chosen)} videos leave none for {split}; take more, or give their splits")
    parameters = {"task": task.name, **task.parameters(), "dtype": dtype}
    store = _Store(Path(path), parameters, chosen, overwrite)
    recipe = Recipe(Sampling(task.fps, task.seconds), task.resize, batch_size)
    wanted, extracted, steps = chosen[shard[0] :: shard[1]], 0, 0
    later: list[Video] = []  # those that another process is at
    locks: dict[str, FileLock] = {}

    def claimed() -> Iterator[Job]:
        """The videos to be done, locked."""
        for video in wanted:
            source = videos.root / video.name
            if not store.has(video.name, source):
                lock = store.lock(video.name)
                if lock is None:
                    later.append(video)
                    continue
                if not store.has(video.name, source):  # nor has another process done it meanwhile
                    locks[video.name] = lock
                    yield Job(video.name, source)
                    continue
                lock.release()
            on_progress(1, 0)

    try:
        while wanted:
            later, jobs = [], claimed()
            if (first := next(jobs, None)) is not None:
                with closing(executor(chain([first], jobs), network, recipe)) as results:
                    for job, result in results:
                        count = store.put(job, result)
                        locks.pop(job.name).release()
                        extracted += count > 0
                        steps += count
                        on_progress(1, count)
            elif later:
                time.sleep(POLL)
            wanted = later
    finally:
        for lock in locks.values():
            lock.release()
    attributes = {
        **parameters,
        "source": printable(videos.root.resolve()),
        "frame_rule": FRAME_RULE,
        "transform": f"shorter side to {task.resize} (bilinear, antialiased), central {CROP}, ImageNet's mean and std",
        **{name: version(name) for name in ("torch", "torchvision")},
        "opencv-python": cv2.__version__,  # which may be of opencv-python-headless
    }
    return store.merge(attributes, allow_failures, extracted, steps)


def report_path(path: Path) -> Path:
    """Where the report of an extraction to ``path`` is written: a JSON object a video."""
    return path.with_name(f"{path.name}.report.jsonl")


class _Store:
    """The parts, and the file they were merged into."""

    def __init__(self, path: Path, parameters: dict[str, Any], chosen: list[Video], overwrite: bool) -> None:
        check_writable(path, overwrite=True)
        self._way = {key: parameters[key] for key in WAYS}
        way = hashlib.sha256(json.dumps(self._way).encode()).hexdigest()[:16]  # parts of two ways never mix
        self._path, self._folder = path, path.with_name(f"{path.name}.parts") / way
        self._parameters, self._dtype, self._overwrite = parameters, parameters["dtype"], overwrite
        self._chosen = {video.name: video for video in chosen}
        self._merged: dict[str, Entry] = {}
        self._merged_stamp = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock_all():
                self._check()
        except OSError as error:
            raise SkipRNNError(f"cannot write {path}: {error.strerror}; choose another --out") from error

    def _check(self) -> None:
        """Refuse to lose what is in the file already."""
        if not self._path.exists():
            return
        if schema_of(self._path) != FEATURES:
            raise SkipRNNError(f"{self._path} exists and holds no features; choose another --out")
        if self._overwrite:
            return
        there = read_attributes(self._path)
        for key, ours in self._way.items():
            if there.get(key) != ours:
                raise SkipRNNError(
                    f"{self._path} was made with {key} {there.get(key)}, not {ours}; pass --overwrite to replace it, "
                    "or choose another --out"
                )
        for entry in read_entries(self._path):
            video = self._chosen.get(entry.name)
            if video is None:
                raise SkipRNNError(
                    f"{self._path} also holds videos not asked for, such as {entry.name}; pass --overwrite to leave "
                    "them out, or choose another --out"
                )
            if (video.split, video.label) != (entry.split, entry.label):
                raise SkipRNNError(
                    f"{self._path} has {entry.name} in {entry.split} as class {entry.label}, now it would be in "
                    f"{video.split} as class {video.label}; pass --overwrite to write it anew (nothing is extracted "
                    "again), or choose another --out"
                )

    def lock(self, name: str) -> FileLock | None:
        """Take the lock that whoever does a video holds; None where another process has it."""
        lock = FileLock(self._part(name).with_suffix(".lock"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # the latter where a process that merges has just removed the folder
            return None
        except OSError as error:
            raise SkipRNNError(f"cannot write {self._folder}: {error.strerror}; choose another --out") from error
        return lock

    def has(self, name: str, source: Path) -> bool:
        """Whether the features of a video are there, made from the file as it is now."""
        done = self._done(name)
        if done is None:
            return False
        try:
            status = source.stat()
            if status.st_size != done.source_bytes:
                return False
            if status.st_mtime_ns == done.source_mtime:
                return True
            return file_digest(source) == done.source_sha256
        except OSError:
            return True  # the video itself is no longer needed

    def put(self, job: Job, result: Result) -> int:
        """Keep what came of a video; returns the number of its steps."""
        failure = self._failure(job.name)
        if isinstance(result, Failed):
            write_text(failure, json.dumps({"name": job.name, "reason": result.reason}))
            return 0
        with np.errstate(over="ignore"):  # to infinity, which is refused
            features = result.features.numpy().astype(self._dtype)
        if not np.isfinite(features).all():
            return self.put(job, Failed(f"a feature is not finite in {self._dtype}; store float32"))
        done = _Done(**vars(result.about), features_sha256=sha256([features]))
        with atomic_path(self._part(job.name)) as temporary:
            about = json.dumps({"name": job.name, **asdict(done)})
            temporary.write_bytes(save({"features": features}, {"about": about}))
        failure.unlink(missing_ok=True)
        return len(features)

    def merge(self, attributes: dict[str, Any], allow_failures: bool, extracted: int, steps: int) -> Summary:
        """Write the report and, when all is there, the file."""
        with self._lock_all():
            self._check()  # another process may have written it
            entries, failed, records = [], {}, []
            for video in self._chosen.values():
                done = self._done(video.name)
                record: dict[str, Any] = {"video": video.name, "split": video.split}
                if done is not None:
                    entries.append(Entry(video.name, video.split, video.label, video.group, **asdict(done)))
                    record |= {"status": done.status, "frames": done.frames}
                elif (reason := self._reason(video.name)) is not None:
                    failed[video.name] = reason
                    record |= {"status": "failed", "reason": reason}
                else:
                    record |= {"status": "waiting"}
                records.append(json.dumps(record))
            report = report_path(self._path)
            write_text(report, "\n".join([*records, ""]))
            waiting = len(self._chosen) - len(entries) - len(failed)
            merged = not waiting and bool(entries) and (allow_failures or not failed)
            written = merged and not self._is_merged(entries)
            if written:
                self._write(entries, attributes)
            if merged:
                self._clear({entry.name for entry in entries})
        truncated = sum(entry.status == "truncated" for entry in entries)
        return Summary(
            self._path, report, merged, written, len(self._chosen), extracted, steps, truncated, failed, waiting
        )  # fmt: skip

    def _clear(self, merged: set[str]) -> None:
        """Remove what is kept of videos that the file holds; the rest is of a larger extraction, if of any."""
        with suppress(OSError):  # what stays does no harm
            for name in merged:
                self._part(name).unlink(missing_ok=True)
                self._failure(name).unlink(missing_ok=True)
            for lock in self._folder.glob("*.lock"):
                with suppress(Timeout), FileLock(lock, timeout=0):
                    lock.unlink()
            if not [*self._folder.glob("*.safetensors"), *self._folder.glob("*.lock")]:
                for failure in self._folder.glob("*.failed.json"):
                    failure.unlink()
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def _is_merged(self, entries: list[Entry]) -> bool:
        if set(entries) != set(self._merged.values()):
            return False
        there = read_attributes(self._path)
        return all(there.get(key) == value for key, value in self._parameters.items())

    def _write(self, entries: list[Entry], attributes: dict[str, Any]) -> None:
        with reading_videos(self._path) if self._merged else nullcontext() as merged:
            read = partial(self._features, merged=merged)
            write_features(self._path, entries, read, attributes, dtype=self._dtype, overwrite=True)

    def _features(self, entry: Entry, merged: Callable[[str], Floats] | None) -> Floats:
        part = self._part(entry.name)
        from_part = part.exists() or merged is None
        try:
            with reading(part if from_part else self._path, "features", "run the same command again"):
                if from_part:
                    check_file(part, "remove it")
                rows: Floats = load_file(part)["features"] if from_part else merged(entry.name)  # type: ignore[misc]
                if sha256([rows]) != entry.features_sha256:
                    raise ValueError("its SHA-256 is wrong")
        except SkipRNNError as error:
            if not from_part:
                raise SkipRNNError(
                    f"{self._path} is damaged where it has {entry.name}; move it away and run the same command again "
                    f"({error})"
                ) from error
            with suppress(OSError):
                part.unlink()
            raise SkipRNNError(
                f"the part {part} of {entry.name} was damaged and is removed; run the same command again ({error})"
            ) from error
        return rows

    def _done(self, name: str) -> _Done | None:
        part = self._part(name)
        with suppress(SkipRNNError), opening(part, "a part", ""):
            with safe_open(part, "numpy") as file:
                about = parse_json(file.metadata()["about"], dict)
            if about.pop("name") == name:
                check_fields(_Done, about)
                return _Done(**about)
        self._refresh()
        entry = self._merged.get(name)
        return None if entry is None else _Done(**{key: getattr(entry, key) for key in _Done.__dataclass_fields__})

    def _reason(self, name: str) -> str | None:
        """Why a video failed, if it did."""
        with suppress(SkipRNNError):
            reason = read_json(self._failure(name), dict, "").get("reason")
            return reason if isinstance(reason, str) else None
        return None

    def _refresh(self) -> None:
        """Read what is merged, if that has changed."""
        stamp = self._path.stat().st_mtime_ns if self._path.exists() else 0
        if stamp != self._merged_stamp:
            there = read_attributes(self._path) if stamp else {}
            same_way = all(there.get(key) == ours for key, ours in self._way.items())
            self._merged = {entry.name: entry for entry in read_entries(self._path)} if same_way else {}
            self._merged_stamp = stamp

    def _part(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.safetensors"

    def _failure(self, name: str) -> Path:
        return self._part(name).with_suffix(".failed.json")

    def _lock_all(self) -> FileLock:
        return FileLock(self._path.with_name(f".{self._path.name}.lock"))
