"""What an attack is, and what may come of a case of it."""

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from campaign.processes import MEMORY, Done

WORDS = 2_000  # characters that a message may have


class Kind(StrEnum):
    """What came of a command; the columns of the table."""

    REFUSED = "refused with one message"
    ACCEPTED = "accepted"
    TRACEBACK = "tracebacks"
    HANG = "hangs"
    SILENT = "silent changes"
    LOST = "lost"
    MEMORY = "too much memory"


FINE = (Kind.REFUSED, Kind.ACCEPTED)


@dataclass(frozen=True)
class Verdict:
    """What came of a command, and what it was."""

    kind: Kind
    what: str  # was done to it
    command: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class Scene:
    """Where a case takes place."""

    folder: Path
    originals: Path
    rng: random.Random
    prepared: Any = None  # what the attack's ``prepare`` returned

    def copy(self, *names: str) -> None:
        """Take originals into the folder."""
        for name in names:
            source, target = self.originals / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns(".lock"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


@dataclass(frozen=True)
class Attack:
    """A class of faults, and its row of the table."""

    name: str
    count: int  # cases
    run: Callable[[int, Scene], list[Verdict]]
    needs: tuple[str, ...] = ()  # originals
    prepare: Callable[[Scene], Any] = lambda scene: None  # once, before the cases
    skipped: str = ""  # why it cannot be tried here


def judge(done: Done, what: str, command: Sequence[str], fine: Callable[[], str | Verdict] = lambda: "") -> Verdict:
    """What came of a command; ``fine`` looks at what it did where it says it succeeded, and says what is wrong."""

    def verdict(kind: Kind, detail: str = "") -> Verdict:
        return Verdict(kind, what, tuple(command), detail)

    lines = done.err.strip().splitlines()
    last = lines[-1][:300] if lines else ""
    if done.hung:
        return verdict(Kind.HANG, f"{done.seconds:.0f} s")
    if done.peak > MEMORY:
        return verdict(Kind.MEMORY, f"{done.peak / 2**30:.1f} GiB")
    if "Traceback (most recent call last)" in done.err or done.code not in (0, 1, 2) or "Exception ignored" in done.err:
        return verdict(Kind.TRACEBACK, f"exit {done.code}: {last}")
    if done.code:
        said = [line for line in lines if line.startswith("Error: ")]
        if len(said) != 1:
            return verdict(Kind.TRACEBACK, f"exit {done.code} with {len(said)} messages: {last}")
        if len(said[0]) > WORDS + 3 * sum(map(len, command)):  # it may name what it was given
            return verdict(Kind.TRACEBACK, f"a message of {len(said[0])} characters: {said[0][:100]}")
        return verdict(Kind.REFUSED, said[0])
    wrong = fine()
    return wrong if isinstance(wrong, Verdict) else verdict(Kind.SILENT if wrong else Kind.ACCEPTED, wrong)


def silent_or_lost(kind: Kind, what: str, command: Sequence[str], detail: str) -> Verdict:
    """A verdict on what a command did to files."""
    return Verdict(kind, what, tuple(command), detail)


ANSWER = {
    "task", "split", "step", "sequences", "metric", "used_mean", "used_std", "steps_per_sequence", "answer", "used",
    "given", "frames", "frames_used",
}  # fmt: skip


def answer_of(out: str) -> Any:
    """What JSON lines say, without times and names."""
    records = [json.loads(line) for line in out.splitlines()]
    return [{key: value for key, value in record.items() if key in ANSWER} for record in records]


def weights_of(run: Path) -> Any:
    """The tensors of a run's checkpoints."""
    said = {}
    for path in sorted((run / "checkpoints").glob("*.json")):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # one that was damaged before
            content = json.loads(path.read_text(encoding="utf-8"))
            said[path.stem] = content["tensors_sha256"], content["numbers"]["step"]
    return said


def hdf5_of(path: Path) -> Any:
    """All that a file made by a command holds, but versions and where it came from."""
    import h5py

    said: dict[str, str] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            value = item[()]
            whole = repr(value.tolist()) if value.dtype == object else value.tobytes()
            said[name] = hashlib.sha256(whole.encode() if isinstance(whole, str) else whole).hexdigest()
        for key, value in item.attrs.items():
            if key not in ("source", "version"):
                said[f"{name}@{key}"] = repr(value)

    with h5py.File(path, "r") as file:
        add("", file)
        file.visititems(add)
    for key in [key for key in said if "source_mtime" in key]:
        del said[key]
    return said


def files_in(folder: Path) -> dict[str, str]:
    """The files in a folder with the digests of their contents; those that are no files with none."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            plain = path.is_file() and not path.is_symlink()
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if plain else ""
            found[str(path.relative_to(folder))] = digest
    return found


def leftovers(names: Sequence[str] | set[str] | dict[str, str]) -> list[str]:
    """Temporary files among the names: hidden ones, but locks and notes of what was checked."""
    hidden = (name for name in names if any(part.startswith(".") for part in Path(name).parts))
    return sorted(name for name in hidden if not name.endswith((".lock", ".checked")))
