"""Which videos there are, and each one's class, group and split: UCF-101's official lists, folders, CSV lists."""

import csv
import io
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.data.doors import read_text, reading
from pipelines.data.sequences import SPLITS
from pipelines.errors import SkipRNNError
from pipelines.seeds import derive_seed

SUFFIXES = (
    ".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".ts",
)  # fmt: skip
UCF101 = "https://www.crcv.ucf.edu/research/data-sets/ucf101/"
_GROUP = re.compile(r"_(g\d+)_c\d+$")


@dataclass(frozen=True)
class Video:
    """A video and what it is to be called."""

    name: str  # path relative to the folder of videos, with forward slashes
    label: int
    group: str
    split: str  # train, val or test


@dataclass(frozen=True)
class VideoSet:
    """The videos of a data set."""

    root: Path
    classes: list[str]
    videos: list[Video]
    missing: int = 0  # named by the lists, but not in the folder
    unlisted: int = 0  # in the folder, but not named by the lists


def ucf101(root: Path, lists: Path, *, split: int = 1, val: float = 0.15, seed: int = 0) -> VideoSet:
    """The videos of UCF-101 that a folder holds, by one of the official splits.

    Args:
        root: the folder with a folder of videos for each class.
        lists: the folder with classInd.txt, trainlist01.txt and so on.
        split: 1, 2 or 3.
        val: share of each class's training groups (gNN, the videos of one scene) that are for validation.
        seed: of the choice of these groups.

    Raises:
        SkipRNNError: a list is missing or damaged, or the folder holds none of its videos.
    """
    if not root.is_dir():
        raise SkipRNNError(
            f"no folder {root} with the videos of UCF-101; get them from {UCF101} or name another folder"
        )
    classes = _class_names(lists / "classInd.txt")
    numbers = {name: number for number, name in enumerate(classes)}
    found = {name.casefold(): name for name in _files(root)}
    videos: list[Video] = []
    missing = 0
    for part in ("train", "test"):
        listed = lists / f"{part}list{split:02}.txt"
        for number, line in _lines(listed):
            path = line.split()[0]
            folder = path.partition("/")[0]
            if folder not in numbers:
                raise SkipRNNError(f"{listed}, line {number}: its video is of a class that classInd.txt does not name")
            there = found.pop(path.casefold(), None)  # v_HandStandPushups_* lies in HandstandPushups
            if there is None:
                missing += 1
            else:
                videos.append(Video(there, numbers[folder], ucf101_group(there), part))
    if not videos:
        raise SkipRNNError(
            f"{root} holds none of the videos in {lists}; it should have a folder for each class, such as "
            f"{classes[0]}/v_{classes[0]}_g01_c01.avi"
        )
    return VideoSet(root, classes, hold_out(videos, val, seed), missing, len(found))


def ucf101_group(name: str) -> str:
    """The scene a video of UCF-101 was cut from: ``Archery/v_Archery_g07_c02.avi`` is of ``Archery/g07``.

    Raises:
        SkipRNNError: the name says none.
    """
    match = _GROUP.search(Path(name).stem)
    if match is None:
        raise SkipRNNError(f"{name} is not named like a video of UCF-101, v_CLASS_gNN_cNN")
    return f"{Path(name).parent.as_posix()}/{match[1]}"


def own_videos(source: Path, *, val: float = 0.15, test: float = 0.15, seed: int = 0) -> VideoSet:
    """One's own videos.

    Args:
        source: a folder with a folder of videos for each class; or a CSV list with the columns file (relative to the
            list's folder) and label, and perhaps group and split (train, val or test).
        val, test: shares of each class's groups where no split is given; a video without a group is one by itself.
        seed: of the draw.

    Raises:
        SkipRNNError: the source is missing, damaged or contradicts itself.
    """
    if source.is_dir():
        root, rows = source, [(name, name.split("/")[0], "", "") for name in _files(source) if "/" in name]
        if not rows:
            raise SkipRNNError(f"{source} holds no folders of videos, one for each class; or name a CSV list")
    else:
        root, rows = source.parent, _list(source)
        if not any((root / row[0]).is_file() for row in rows):
            raise SkipRNNError(f"{source}: none of its {len(rows)} files exists; they are relative to {root}")
    classes = sorted({label for _, label, _, _ in rows})
    if len(classes) < 2:
        raise SkipRNNError(f"{source}: all videos are of the class {_short(classes[0])}; there is nothing to learn")
    given = any(split for _, _, _, split in rows)
    videos = [Video(name, classes.index(label), group or name, split or "train") for name, label, group, split in rows]
    if not given:
        videos = hold_out(hold_out(videos, test, seed, into="test"), val / (1 - test), seed)
    sides = defaultdict(set)
    for video in videos:
        sides[video.group].add(video.split)
    if torn := sorted(group for group, splits in sides.items() if len(splits) > 1):
        raise SkipRNNError(
            f"{source}: the group {_short(torn[0])} stands in the splits {', '.join(sorted(sides[torn[0]]))}"
        )
    return VideoSet(root, classes, videos)


def hold_out(videos: list[Video], share: float, seed: int, into: str = "val") -> list[Video]:
    """The videos with a share of each class's training groups, one at least where there are two, put aside."""
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for video in videos:
        if video.split == "train":
            groups[video.label].add(video.group)
    held: set[str] = set()
    for label, names in sorted(groups.items()):
        draws = np.random.default_rng(derive_seed(seed, "videos", into, label))
        count = min(math.ceil(share * len(names)), len(names) - 1) - len(names & held)  # some by another class
        held |= {str(name) for name in draws.permutation(sorted(names - held))[: max(count, 0)]}
    return [replace(video, split=into) if video.group in held and video.split == "train" else video for video in videos]


def handful(videos: list[Video], limit: int) -> list[Video]:
    """So many videos, of all splits and classes alike."""
    seen: defaultdict[tuple[str, int], int] = defaultdict(int)
    ranks = []
    for video in sorted(videos, key=lambda video: video.name):
        key = (video.split, video.label)
        ranks.append((seen[key], SPLITS.index(video.split), video.label, video))
        seen[key] += 1
    turns = sorted(ranks, key=lambda rank: (rank[0], (rank[1] + rank[2]) % len(SPLITS), rank[2]))
    return [video for *_, video in turns[:limit]]


def _files(root: Path) -> list[str]:
    """The videos under a folder, as relative paths."""
    paths = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = (path.relative_to(root).as_posix() for path in paths)
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def _class_names(path: Path) -> list[str]:
    names = []
    for expected, (line, text) in enumerate(_lines(path), start=1):
        number, _, name = text.partition(" ")
        if number != str(expected) or not name:
            raise SkipRNNError(f"{path}, line {line}: it is no number, counted from 1, and a class")
        names.append(name.strip())
    return names


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, and their numbers."""
    remedy = (
        f"get UCF101TrainTestSplits-RecognitionTask.zip from {UCF101} and name its folder ucfTrainTestlist with "
        "--splits"
    )
    lines = read_text(path, "a list of UCF-101", remedy).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _list(path: Path) -> list[tuple[str, str, str, str]]:
    remedy = "name a folder of videos or a CSV list of them"
    text = read_text(path, "a CSV list", remedy).removeprefix("\ufeff")
    rows: dict[str, tuple[str, str, str, str]] = {}
    with reading(path, "a CSV list", remedy):
        if "\0" in text:
            raise ValueError("it holds zero bytes")
        records = csv.DictReader(io.StringIO(text, newline=""))
        for record in records if {"file", "label"} <= set(records.fieldnames or ()) else ():
            where = f"{path}, line {records.line_num}"
            name, label, group, split = ((record.get(key) or "").strip() for key in ("file", "label", "group", "split"))
            name = os.path.normpath(name).replace(os.sep, "/") if name else ""
            if not name or not label:
                raise SkipRNNError(f"{where}: it names no {'label' if name else 'file'}")
            if name in rows:
                raise SkipRNNError(f"{where}: {_short(name)} is listed twice")
            if "split" in record and split not in SPLITS:
                raise SkipRNNError(f"{where}: unknown split {_short(split)}; it must be train, val or test")
            rows[name] = (name, label, group, split)
    if not rows:
        raise SkipRNNError(f"{path} must have the columns file and label, and a row for each video")
    return list(rows.values())


def _short(cell: str) -> str:
    return repr(cell[:40])
