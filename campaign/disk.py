"""Full disks, folders that may not be written, and commands that want the same output at the same time."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from campaign.cases import Attack, Kind, Scene, Verdict, files_in, hdf5_of, judge, leftovers, silent_or_lost
from campaign.kills import SECONDS, Work, works
from campaign.processes import NOBODY, run, together

NAMES = ("gen-data adding", "gen-data own", "train", "train --resume", "plot-usage", "extract-features", "export")
RACERS = 4
SMALLEST = 64 * 1024  # bytes of a file system of its own


def attacks(times: float) -> list[Attack]:
    """Rows of their own for each way a write can fail."""
    count = max(round(10 * times), 1)
    list_of = [work for name, work in works().items() if name in NAMES]
    needs = tuple(dict.fromkeys(name for work in list_of for name in (*work.copied, *work.needs)))
    in_files = [work for work in list_of if not work.command.startswith("extract")]  # whose shared memory is a file too
    return [
        Attack("full disk (files cannot grow)", count * len(in_files), _full(in_files), needs, _sizes(in_files)),
        Attack("full disk (tmpfs)", count, _tmpfs, (), skipped=_no_mount()),
        Attack(
            "read-only folder", len(list_of) if times >= 0.1 else 1, _read_only(list_of), needs, skipped=_no_nobody()
        ),
        Attack(f"{RACERS} at one output", count, _race, ("own.npz",)),
    ]


def _largest(scene: Scene) -> int:
    sizes = [path.stat().st_size for path in scene.folder.rglob("*") if path.is_file()]
    return max(sizes)


def _sizes(list_of: list[Work]) -> Callable[[Scene], Any]:
    def prepare(scene: Scene) -> list[tuple[int, Any]]:
        said = []
        for number, work in enumerate(list_of):
            folder = scene.folder / str(number)
            folder.mkdir()
            place = Scene(folder, scene.originals, scene.rng)
            place.copy(*work.copied)
            done = run(work.command.format(o=scene.originals).split(), folder, seconds=SECONDS)
            if done.code:
                raise RuntimeError(done.err)
            said.append((_largest(place), work.result(folder / work.out)))
        return said

    return prepare


def _full(list_of: list[Work]) -> Callable[[int, Scene], list[Verdict]]:
    """A limit on the size of files stands in for a disk that fills up at some moment."""

    def case(number: int, scene: Scene) -> list[Verdict]:
        work = list_of[number % len(list_of)]
        size, result = scene.prepared[number % len(list_of)]
        scene.copy(*work.copied)
        before = files_in(scene.folder)
        command = work.command.format(o=scene.originals).split()
        limit = int(size * scene.rng.random())
        done = run(command, scene.folder, file_limit=limit, seconds=SECONDS)
        what = f"files cannot grow beyond {limit:,} bytes"
        there = files_in(scene.folder)
        verdict = judge(done, what, command)
        if verdict.kind == Kind.REFUSED:
            if work.out.endswith((".h5", ".png", ".onnx")) and work.out in there:
                return [silent_or_lost(Kind.LOST, what, command, "an output was left by a command that failed")]
            if left := leftovers(set(there) - set(before)):
                return [silent_or_lost(Kind.LOST, what, command, f"{left[0]} was left")]
        again = (work.again(scene.folder) or " ".join(command)).split()
        if done.code == 0:
            again += [work.replaces] if work.before is not None else []
        done = run(again, scene.folder, seconds=SECONDS)

        def fine() -> str:
            return "" if work.result(scene.folder / work.out) == result else "with room again it makes something else"

        second = judge(done, f"{what}, then they can", again, fine)
        if second.kind == Kind.REFUSED:
            second = silent_or_lost(Kind.LOST, second.what, again, second.detail)
        return [verdict, second]

    return case


def _tmpfs(number: int, scene: Scene) -> list[Verdict]:
    """A disk that is full."""
    place = scene.folder / "small"
    place.mkdir()
    size = SMALLEST * (1 + number)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        command = ["gen-data", "adding", "--train", "60000", "--val", "9", "--test", "9", "--out", str(place / "a.h5")]
        done = run(command, scene.folder)
        verdict = judge(done, f"a disk of {size:,} bytes", command)
        if verdict.kind == Kind.REFUSED and list(place.iterdir()):
            verdict = silent_or_lost(Kind.LOST, verdict.what, command, "something was left on it")
        return [verdict]
    finally:
        subprocess.run(["umount", str(place)], check=False)


def _no_mount() -> str:
    if os.geteuid() != 0 or not shutil.which("mount"):
        return "only root may mount"
    with contextlib.suppress(OSError):
        trial = os.path.join("/tmp", f"skiprnn-mount-{os.getpid()}")
        os.mkdir(trial)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SMALLEST}", "none", trial]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        if mounted:
            subprocess.run(["umount", trial], check=False)
        os.rmdir(trial)
        if mounted:
            return ""
    return "nothing may be mounted here"


def _no_nobody() -> str:
    """Root may write everywhere, so it becomes someone who may not."""
    if os.geteuid() != 0:
        return ""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setuid(NOBODY)
        except OSError:
            os._exit(1)
        os._exit(0)
    return "" if os.waitpid(child, 0)[1] == 0 else "root writes everywhere and cannot become another user"


def _read_only(list_of: list[Work]) -> Callable[[int, Scene], list[Verdict]]:
    def case(number: int, scene: Scene) -> list[Verdict]:
        work = list_of[number]
        scene.copy(*work.copied)
        folders = [scene.folder, *(path for path in scene.folder.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)
        before = files_in(scene.folder)
        command = work.command.format(o=scene.originals).split()
        user = NOBODY if os.geteuid() == 0 else None
        done = run(command, scene.folder, user=user, seconds=SECONDS)
        for path in folders:
            path.chmod(0o755)
        verdict = judge(done, "a folder that may not be written", command, lambda: "it says that it succeeded")
        if files_in(scene.folder) != before:
            verdict = silent_or_lost(Kind.LOST, verdict.what, command, "something changed in it")
        return [verdict]

    return case


def _race(number: int, scene: Scene) -> list[Verdict]:
    """Commands without --overwrite that start together: one writes, the others say that the file exists."""
    said = f"gen-data own {scene.originals}/own.npz" if number % 2 else "gen-data adding --train 2000 --val 9 --test 9"
    commands = [f"{said} --out out.h5 --seed {seed}".split() for seed in range(RACERS)]
    done = together(commands, scene.folder)
    verdicts = [judge(one, "at the same time", command) for one, command in zip(done, commands, strict=True)]
    first = [seed for seed, one in enumerate(done) if one.code == 0]
    if len(first) != 1:
        return [silent_or_lost(Kind.LOST, "at the same time", commands[0], f"{len(first)} said that they wrote it")]
    for seed, one in enumerate(done):
        if one.code == 1 and "exists already" not in one.err:
            verdicts[seed] = silent_or_lost(Kind.LOST, "at the same time", commands[seed], one.err.strip()[-200:])
    alone = scene.folder / "alone"
    alone.mkdir()
    run(commands[first[0]], alone)
    if hdf5_of(scene.folder / "out.h5") != hdf5_of(alone / "out.h5"):
        verdicts[first[0]] = silent_or_lost(Kind.LOST, "at the same time", commands[first[0]], "the file is another's")
    if left := leftovers(files_in(scene.folder)):
        verdicts[first[0]] = silent_or_lost(Kind.LOST, "at the same time", commands[first[0]], f"{left[0]} was left")
    return verdicts
