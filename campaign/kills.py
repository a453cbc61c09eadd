"""SIGKILL at any moment: nothing is half there, nothing is lost, and the same command then ends as if undisturbed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from campaign.cases import (
    Attack,
    Kind,
    Scene,
    Verdict,
    answer_of,
    files_in,
    hdf5_of,
    judge,
    leftovers,
    silent_or_lost,
    weights_of,
)
from campaign.originals import EXTRACTION, SMALL
from campaign.processes import Done, Running, run

SECONDS = 120.0
LONG = (*SMALL, "--steps", "60")


@dataclass(frozen=True)
class Work:
    """A command to be killed.

    ``before`` puts an earlier output there, which ``command`` is told to replace, and ``again`` is what a user would
    run after the kill, by default the same.
    """

    command: str
    out: str  # what it makes
    result: Callable[[Path], Any]  # what ``out`` holds; fails where that is not whole
    copied: tuple[str, ...] = ()
    before: Callable[[Scene], None] | None = None
    again: Callable[[Path], str | None] = lambda folder: None
    needs: tuple[str, ...] = ()
    replaces: str = "--overwrite"


def _run(path: Path) -> Any:
    """A finished run without its times."""
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        del record["seconds"]
    config, outcome = ((path / f"{name}.json").read_text() for name in ("config", "outcome"))
    return weights_of(path), metrics, config, outcome


def _bytes(path: Path) -> Any:
    return path.read_bytes()


def _older(command: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        done = run(command.format(o=scene.originals).split(), scene.folder, seconds=SECONDS)
        if done.code:
            raise RuntimeError(done.err)

    return make


def _older_model(scene: Scene) -> None:
    (scene.folder / "model.onnx").write_bytes(b"older")


def _resumed(folder: Path) -> str | None:
    return "train --resume run" if (folder / "run" / "config.json").exists() else None


def works() -> dict[str, Work]:
    """The commands by name."""
    said = {
        "gen-data adding": Work(
            "gen-data adding --train 60000 --val 2000 --test 2000 --out out.h5", "out.h5", hdf5_of,
            before=_older("gen-data adding --train 9 --val 3 --test 3 --out out.h5")),
        "gen-data own": Work(
            "gen-data own own --out out.h5", "out.h5", hdf5_of, copied=("own",),
            before=_older("gen-data own own --seed 5 --out out.h5")),
        "train": Work(
            f"train --data {{o}}/adding.h5 --out run {' '.join(LONG)}", "run", _run, again=_resumed,
            needs=("adding.h5",)),
        "train --resume": Work(
            "train --resume run --steps 60", "run", _run, copied=("run",), needs=("adding.h5",)),
        "evaluate": Work("evaluate run --json", "", lambda path: None, copied=("run",), needs=("adding.h5",)),
        "plot-usage": Work(
            "plot-usage {o}/run --out usage.png --examples 3", "usage.png", _bytes, needs=("run", "adding.h5"),
            before=_older("plot-usage {o}/run --out usage.png --examples 1")),
        "extract-features": Work(
            f"extract-features videos clips {' '.join(EXTRACTION)} --out out.h5", "out.h5", hdf5_of, copied=("clips",)),
    }  # fmt: skip
    if find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime"):
        said["export"] = Work(
            "export {o}/run --out model.onnx", "model.onnx", _bytes, needs=("run", "adding.h5"),
            before=_older_model,
        )  # fmt: skip
    return said


def attacks(times: float) -> list[Attack]:
    """A row for each command; every second kill hits one that replaces an earlier output."""
    return [_attack(f"SIGKILL: {name}", work, max(round(10 * times), 1)) for name, work in works().items()]


def _attack(name: str, work: Work, count: int) -> Attack:
    def undisturbed(scene: Scene) -> tuple[float, Any, set[str], str]:
        scene.copy(*work.copied)
        command = work.command.format(o=scene.originals).split()
        done = run(command, scene.folder, seconds=SECONDS)
        if done.code:
            raise RuntimeError(f"undisturbed, {' '.join(command)} ended with {done.code}:\n{done.err}")
        result = work.result(scene.folder / work.out)
        return done.seconds, result, set(files_in(scene.folder)), _answer(done)

    def case(number: int, scene: Scene) -> list[Verdict]:
        duration, result, files, answer = scene.prepared
        scene.copy(*work.copied)
        command = work.command.format(o=scene.originals).split()
        older: Any = None
        if work.before is not None and number % 2:
            work.before(scene)
            older = files_in(scene.folder).get(work.out)
            command.append(work.replaces)
        inputs = {path: digest for path, digest in files_in(scene.folder).items() if not _of(path, work.out)}
        begin = scene.rng.choice([0, 0.6])  # towards the end, where it writes, more often
        moment = scene.rng.uniform(begin * duration, 1.02 * duration)
        done = Running(command, scene.folder).wait(kill_after=moment)
        what = f"killed after {moment:.3f} s of {duration:.3f} s"

        def lost(detail: str) -> list[Verdict]:
            return [silent_or_lost(Kind.LOST, what, command, detail)]

        there = files_in(scene.folder)
        if work.out.endswith((".h5", ".png", ".onnx")) and there.get(work.out) != older:
            if work.out not in there:
                return lost("what was there before is gone")
            try:
                half = work.result(scene.folder / work.out) != result
            except Exception as error:
                return lost(f"the output is half-written: {type(error).__name__}: {error}")
            if half:
                return lost("the output is another")
        if any(there.get(path) != digest for path, digest in inputs.items()):
            return lost("its input was changed")
        again = (work.again(scene.folder) or " ".join(command)).split()
        if done.code == 0 and older is None and work.out:  # it was done before the kill came
            again += [work.replaces] if work.before is not None else []
        done = run(again, scene.folder, seconds=SECONDS)
        if "exists already" in done.err and older is None and work.before is not None:  # done, but not yet out
            done = run([*again, work.replaces], scene.folder, seconds=SECONDS)
        if done.code:
            return [judge(done, f"{what}, then run again", again)] if done.code not in (1, 2) else lost(
                f"run again it ends with {done.code}: {done.err.strip()[-200:]}"
            )  # fmt: skip

        def fine() -> str:
            same = work.result(scene.folder / work.out) == result and (work.out or _answer(done) == answer)
            return "" if same else "run again it makes something else"

        there = files_in(scene.folder)
        if left := leftovers(set(there) - files):
            return lost(f"left over after it was run again: {', '.join(left)[:200]}")
        if surplus := sorted(set(there) - files - set(inputs)):
            return lost(f"surplus after it was run again: {', '.join(surplus)[:200]}")
        return [judge(done, what, again, fine)]

    return Attack(name, count, case, (*work.copied, *work.needs), undisturbed)


def _answer(done: Done) -> str:
    try:
        return str(answer_of(done.out))
    except ValueError:
        return ""


def _of(path: str, out: str) -> bool:
    return bool(out) and (path == out or path.startswith((f"{out}/", f".{out}")))
