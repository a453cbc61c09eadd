"""Damaged files of every format, given to the commands that read them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign import formats
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
from campaign.damage import (
    damage_file,
    damage_json,
    damage_npy,
)
from campaign.originals import EXTRACTION, SMALL, few_reviews
from campaign.processes import HANG, Done, run

TRAIN = (*SMALL, "--steps", "4")


@dataclass(frozen=True)
class Probe:
    """A command that reads the damaged file."""

    arguments: str  # {o}: the folder of the undamaged files
    answer: Callable[[Done, Path], Any]
    protected: bool  # by digests: another answer than the undamaged file's must not come without a word
    writes: tuple[str, ...] = ()  # files and folders that it may make or change
    seconds: float = HANG


def _said(done: Done, folder: Path) -> Any:
    return answer_of(done.out)


def _nothing(done: Done, folder: Path) -> Any:
    return None


def evaluate(run: str, data: str = "", protected: bool = True, checkpoint: str = "best") -> Probe:
    option = f" --data {data}" if data else ""
    return Probe(f"evaluate {run}{option} --checkpoint {checkpoint} --device cpu --json", _said, protected)


def predict(run: str, input: str, protected: bool = False, more: str = "") -> Probe:
    return Probe(f"predict {run} {input} --json {more}", _said, protected)


def train(data: str, protected: bool = True) -> Probe:
    options = " ".join(TRAIN)
    return Probe(
        f"train --data {data} --out new {options}", lambda done, folder: weights_of(folder / "new"), protected, ("new",)
    )


def resume(run: str = "run") -> Probe:
    """Training reads and writes the last checkpoint; a damaged best one stays as it is."""
    return Probe(
        f"train --resume {run} --steps 12", lambda done, folder: weights_of(folder / run)["last"], True, (run,)
    )


def made(arguments: str) -> Probe:
    """A command that makes a data file of unprotected ones."""
    return Probe(f"{arguments} --out out.h5", lambda done, folder: hdf5_of(folder / "out.h5"), False, ("out.h5",))


def imdb(more: str) -> Probe:
    return made(f"gen-data imdb --length 6 --min-count 1 {more}")


def fuzz(
    name: str,
    count: int,
    copied: tuple[str, ...],
    damage: formats.Damage,
    probes: list[Probe],
    needs: tuple[str, ...] = (),
) -> Attack:
    """An attack that damages a copy of the originals and gives it to each of the commands in turn.

    Args:
        name: of the row.
        count: of damaged files.
        copied: originals to damage.
        damage: damages them in a folder; says what it did.
        probes: the commands.
        needs: other originals.
    """

    def probe_all(scene: Scene) -> list[tuple[Probe, list[str], Done, list[str], Any]]:
        few_reviews()
        results = []
        for probe in probes:
            command = probe.arguments.format(o=scene.originals).split()
            before = files_in(scene.folder)
            done = run(command, scene.folder, seconds=probe.seconds)
            after = files_in(scene.folder)
            wrong = [
                f"{path} was changed" for path in before if before[path] != after.get(path) and not _may(path, probe)
            ]
            new = after.keys() - before.keys()
            wrong += [f"{path} was left" for path in leftovers(new)]
            wrong += [
                f"{path} was made" for path in new if not _may(path, probe) and not path.endswith((".lock", ".checked"))
            ]
            if done.code and (half := [path for path in new if path.endswith((".h5", ".png", ".html"))]):
                wrong += [f"{path} was left by a command that failed" for path in half]
            results.append((probe, command, done, wrong, None))
        return results

    def prepare(scene: Scene) -> list[Any]:
        scene.copy(*copied)
        answers = []
        for probe, command, done, wrong, _ in probe_all(scene):
            if done.code or done.hung or wrong:
                raise RuntimeError(f"undamaged, {' '.join(command)} ended with {done.code}, {wrong}:\n{done.err}")
            answers.append(probe.answer(done, scene.folder))
        return answers

    def case(number: int, scene: Scene) -> list[Verdict]:
        scene.copy(*copied)
        what = damage(scene.folder, scene.rng)
        verdicts = []
        for (probe, command, done, wrong, _), undamaged in zip(probe_all(scene), scene.prepared, strict=True):

            def fine(probe: Probe = probe, done: Done = done, undamaged: Any = undamaged) -> str:
                try:
                    answer = probe.answer(done, scene.folder)
                except Exception as error:
                    return f"its output cannot be read: {type(error).__name__}: {error}"
                if "NaN" in json.dumps(answer):
                    return "the answer is NaN"
                return f"the answer is {answer!r:.300}" if probe.protected and answer != undamaged else ""

            verdict = judge(done, what, command, fine)
            if wrong and verdict.kind in (Kind.REFUSED, Kind.ACCEPTED):
                verdict = silent_or_lost(Kind.LOST, what, command, "; ".join(sorted(wrong)[:5]))
            verdicts.append(verdict)
        return verdicts

    return Attack(name, count, case, (*copied, *needs), prepare)


def _may(path: str, probe: Probe) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in probe.writes)


def attacks(times: float) -> list[Attack]:
    """All of them; ``times`` multiplies their cases."""
    files = max(round(200 * times), 1)
    few = max(round(40 * times), 1)
    in_run = "run/config.json", "run/task.json"
    return [
        fuzz("data files", files, ("adding.h5",), formats.inside("adding.h5"),
             [evaluate("{o}/run", "adding.h5"), predict("{o}/run", "adding.h5", True), train("adding.h5")], ("run",)),
        fuzz("feature files", files, ("features.h5",), formats.inside("features.h5"),
             [evaluate("{o}/features-run", "features.h5"), predict("{o}/features-run", "features.h5", True),
              train("features.h5")], ("features-run",)),
        fuzz("own HDF5", files, ("own.h5",), formats.inside("own.h5"),
             [made("gen-data own own.h5"), predict("{o}/own-run", "own.h5", more="--dataset x --index 1")],
             ("own-run",)),
        fuzz("own NPZ", files, ("own.npz", "tight.npz"), formats.npz,
             [made("gen-data own own.npz"), predict("{o}/own-run", "own.npz", more="--dataset x --index 1")],
             ("own-run",)),
        fuzz("own NPY", files, ("own.npy",), formats.one_of("own.npy", by=damage_npy),
             [predict("{o}/own-run", "own.npy")], ("own-run",)),
        fuzz("own CSV", files, ("own",), formats.any_text,
             [made("gen-data own own"), predict("{o}/own-run", "own/00.csv")], ("own-run",)),
        fuzz("config.json", files, ("run",), formats.of_json(in_run[0]), [evaluate("run"), resume()], ("adding.h5",)),
        fuzz("task.json", files, ("own-run",), formats.of_json("own-run/task.json"),
             [predict("own-run", "{o}/own/00.csv"), evaluate("own-run"), resume("own-run")], ("own-data.h5", "own")),
        fuzz("checkpoint JSON", files, ("run",),
             formats.of_json("run/checkpoints/last.json", "run/checkpoints/best.json"),
             [evaluate("run"), evaluate("run", checkpoint="last"), resume()], ("adding.h5",)),
        fuzz("checkpoint tensors", files, ("run",), formats.tensors,
             [evaluate("run"), predict("run", "{o}/adding.h5", True), resume()], ("adding.h5",)),
        fuzz("checkpoints made anew", files, ("run",), formats.checkpoint,
             [evaluate("run", protected=False), predict("run", "{o}/adding.h5"),
              Probe("train --resume run --steps 12", _nothing, False, ("run",))], ("adding.h5",)),
        fuzz("records of a run", files, ("run",),
             formats.of_json("run/environment.json", "run/outcome.json", "run/metrics.jsonl"),
             [Probe("plot-curves run --out curves.svg", _nothing, False, ("curves.svg",)), resume()], ("adding.h5",)),
        fuzz("results of a sweep", files, ("sweep",),
             lambda folder, rng: damage_file(
                 rng.choice([folder / "sweep/results.json", *sorted((folder / "sweep/runs").glob("*/result.json"))]),
                 rng, damage_json),
             [Probe("report sweep --out report.html", _nothing, False, ("report.html",))], ("adding.h5",)),
        fuzz("IDX", few, ("digits",), formats.idx, [made("gen-data mnist --digits 1,7 --source digits")]),
        fuzz("IMDB archives", files, ("reviews.tar", "reviews.tar.gz"), formats.tar, [imdb("--source reviews.tar")]),
        fuzz("IMDB JSON lines", files, ("reviews",), formats.of_json("reviews/train.jsonl", "reviews/test.jsonl"),
             [imdb("--source reviews")]),
        fuzz("IMDB JSON lines, xz", files, ("reviews-xz",),
             formats.one_of("reviews-xz/train.jsonl.xz", "reviews-xz/test.jsonl.xz"), [imdb("--source reviews-xz")]),
        fuzz("word2vec .bin", files, ("vectors.bin",), formats.one_of("vectors.bin"),
             [imdb("--source {o}/reviews --word2vec vectors.bin")], ("reviews",)),
        fuzz("word2vec .txt", files, ("vectors.txt",), formats.one_of("vectors.txt", by=formats.words_or_bytes),
             [imdb("--source {o}/reviews --word2vec vectors.txt")], ("reviews",)),
        fuzz("word2vec .npz", files, ("vectors.npz",), formats.one_of("vectors.npz"),
             [imdb("--source {o}/reviews --word2vec vectors.npz")], ("reviews",)),
        fuzz("vocabulary of a run", few, ("reviews-run",),
             formats.one_of("reviews-run/words.txt", by=formats.words_or_bytes),
             [predict("reviews-run", "{o}/reviews/train.jsonl", True)], ("reviews",)),
        fuzz("images", files, ("images",), formats.image,
             [predict("{o}/digits-run", "images/digit.png")], ("digits-run",)),
        fuzz("videos, predicted on", files, ("clips/class0/0.avi", "clip.mp4"), formats.clip,
             [predict("{o}/clips-run", "clips/class0/0.avi")], ("clips-run", "clips")),
        fuzz("videos, extracted", max(round(4 * times), 1), ("clips",), formats.many_clips,
             [Probe(f"extract-features videos clips {' '.join(EXTRACTION)} --allow-failures --out out.h5", _nothing,
                    False, ("out.h5", "out.h5.report.jsonl", ".out.h5.lock"), 6 * HANG)]),
        fuzz("network weights", few, ("weights.pth", "weights.safetensors"), formats.weights,
             [predict("{o}/clips-run", "{o}/clips/class0/0.avi", True, "--weights weights.pth"),
              predict("{o}/clips-run", "{o}/clips/class0/0.avi", True, "--weights weights.safetensors")],
             ("clips-run", "clips")),
    ]  # fmt: skip
