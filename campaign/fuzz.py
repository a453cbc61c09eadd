"""Damaged files of every format, given to the commands that read them."""

import io
import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
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
from campaign.damage import (
    damage_array_file,
    damage_bytes,
    damage_file,
    damage_json,
    damage_npy,
    damage_value,
    damage_words,
)
from campaign.originals import EXTRACTION, SMALL, few_reviews, tar_of_reviews
from campaign.processes import Done, run

TRAIN = (*SMALL, "--steps", "4")


@dataclass(frozen=True)
class Probe:
    """A command that reads the damaged file."""

    arguments: str  # {o}: the folder of the undamaged files
    answer: Callable[[Done, Path], Any]
    protected: bool  # by digests: another answer than the undamaged file's must not come without a word
    writes: tuple[str, ...] = ()  # files and folders that it may make or change


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
    return Probe(
        f"{arguments} --out out.h5", lambda done, folder: hdf5_of(folder / "out.h5"), False, ("out.h5",)
    )


def imdb(more: str) -> Probe:
    return made(f"gen-data imdb --length 6 --min-count 1 {more}")


Damage = Callable[[Path, Random], str]


def fuzz(
    name: str,
    count: int,
    copied: tuple[str, ...],
    damage: Damage,
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
            done = run(command, scene.folder)
            after = files_in(scene.folder)
            wrong = [f"{path} was changed" for path in before if before[path] != after.get(path) and not _may(path, probe)]
            new = after.keys() - before.keys()
            wrong += [f"{path} was left" for path in leftovers(new)]
            wrong += [f"{path} was made" for path in new if not _may(path, probe) and not path.endswith(".lock")]
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


def one_of(*names: str, by: Callable[[bytes, Random], tuple[bytes, str]] = damage_bytes) -> Damage:
    """Damage one of some files."""
    return lambda folder, rng: damage_file(folder / rng.choice(names), rng, by)


def inside(name: str) -> Damage:
    """Damage an HDF5 file."""
    return lambda folder, rng: damage_array_file(folder / name, rng)


def _any_text(folder: Path, rng: Random) -> str:
    path = rng.choice(sorted((folder / "own").iterdir()))
    if rng.random() < 0.5:
        path = folder / "own" / rng.choice(["labels.csv", "00.csv"])
    return damage_file(path, rng, rng.choice([damage_words, damage_words, damage_bytes]))


def _words_or_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    return (damage_words if rng.random() < 0.6 else damage_bytes)(data, rng)


def _npz(folder: Path, rng: Random) -> str:
    path = folder / rng.choice(["own.npz", "tight.npz"])
    if rng.random() < 0.5:
        how = damage_file(path, rng)
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(list(members))
        roll = rng.random()
        if roll < 0.8:
            members[name], how = damage_npy(members[name], rng)
        elif roll < 0.9:
            del members[name]
            how = "taken out"
        else:
            members[rng.choice(["z.npy", "x", "../x.npy", "y.npy "])] = members[name]
            how = "doubled under another name"
        with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        how = f"{path.name}: {name}: {how}"
    if path.name != "own.npz":
        path.replace(folder / "own.npz")
    return how


def _checkpoint(folder: Path, rng: Random) -> str:
    """Another checkpoint with right digests: only what it says can give it away."""
    import torch

    from pipelines.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

    saved = load_checkpoint(folder / "run", "last")
    tensors, numbers = dict(saved.tensors), dict(saved.numbers)
    if rng.random() < 0.4:
        numbers, how = damage_value(numbers, rng)
        numbers = {"step": 4, **numbers} if isinstance(numbers, dict) else {"step": numbers}
        if not isinstance(numbers["step"], int):
            numbers["step"] = 4
    else:
        name = rng.choice(list(tensors))
        tensor = tensors[name].clone()
        change: dict[str, Callable[[], Any]] = {
            "NaN": lambda: torch.full_like(tensor, float("nan")),
            "infinite": lambda: torch.full_like(tensor, float("inf")),
            "integers": lambda: tensor.long(),
            "float64": lambda: tensor.double(),
            "bfloat16": lambda: tensor.bfloat16(),
            "booleans": lambda: tensor > 0,
            "complex": lambda: tensor.to(torch.complex64),
            "flat": lambda: tensor.reshape(-1),
            "empty": lambda: tensor.reshape(-1)[:0],
            "of one more dimension": lambda: tensor[None],
            "huge": lambda: tensor + 3e38,
            "negative": lambda: -tensor - 5,
        }
        how = rng.choice([*change, "taken out", "renamed"])
        del tensors[name]
        if how in change:
            tensors[name] = change[how]()
        elif how == "renamed":
            tensors[f"{name}_"] = tensor
        how = f"{name} {how}"
    with torch.no_grad():
        save_checkpoint(folder / "run", ("last", "best"), Checkpoint(tensors, numbers))
    return f"a checkpoint made anew: {how}"


def _tensors(folder: Path, rng: Random) -> str:
    path = rng.choice(sorted((folder / "run" / "checkpoints").glob("*.safetensors")))
    return damage_file(path, rng)


def _safetensors(data: bytes, rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.2:
        other = rng.choice([0, 1, size + 8, 2**40, 2**63])
        return struct.pack("<Q", other) + data[8:], f"a header of {other} bytes"
    header, how = damage_value(json.loads(data[8 : 8 + size]), rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :], f"header: {how}"


def _weights(folder: Path, rng: Random) -> str:
    if rng.random() < 0.5:
        return damage_file(folder / "weights.pth", rng)
    return damage_file(folder / "weights.safetensors", rng, _safetensors)


def _idx(folder: Path, rng: Random) -> str:
    path = rng.choice(sorted((folder / "digits").iterdir()))
    size = path.stat().st_size
    with path.open("r+b") as file:  # in place: a copy in memory of all of it is not needed
        roll = rng.random()
        at = rng.choice([rng.randrange(20), rng.randrange(size)])
        if roll < 0.3:
            file.truncate(at)
            return f"{path.name}: cut at {at}"
        if roll < 0.4:
            file.seek(0, 2)
            file.write(rng.randbytes(5))
            return f"{path.name}: five bytes more"
        file.seek(at)
        noise = rng.randbytes(rng.choice([1, 2, 100]))
        file.write(noise)
        return f"{path.name}: {len(noise)} bytes overwritten at {at}"


def _tar(folder: Path, rng: Random) -> str:
    path = folder / rng.choice(["reviews.tar", "reviews.tar.gz"])
    if rng.random() < 0.3:
        tar_of_reviews(path, "w" if path.suffix == ".tar" else "w:gz")
        with tarfile.open(folder / "other.tar", "w") as archive:
            info = tarfile.TarInfo(
                rng.choice(["aclImdb/train/pos/9_9.txt", "../aclImdb/test/neg/1_1.txt", "/train/pos/a", "\udcff/train/pos/x"])
            )
            text = rng.choice([b"\xff\xfe", b"good film", b"", b"\0" * 600])
            info.type = rng.choice([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"x", b"L"])
            info.linkname = rng.choice(["", "/etc/passwd", info.name])
            info.size = len(text) if info.type in (tarfile.REGTYPE, b"x", b"L") else 0
            archive.addfile(info, io.BytesIO(text))
        extra = (folder / "other.tar").read_bytes()[:1024]
        (folder / "other.tar").unlink()
        data = (folder / "reviews.tar").read_bytes()
        (folder / "reviews.tar").write_bytes(extra + data)
        path = folder / "reviews.tar"
        how = f"a member {info.name!r} of type {info.type!r} before the others"
    else:
        how = damage_file(path, rng)
    path.replace(folder / "a.tar")
    (folder / "a.tar").replace(folder / "reviews.tar")
    return how


def _image(folder: Path, rng: Random) -> str:
    path = rng.choice(sorted((folder / "images").iterdir()))
    if path.suffix == ".png" and rng.random() < 0.5:
        data = path.read_bytes()
        header = bytearray(data[12:29])
        at = rng.randrange(4, 17)
        header[at] = rng.choice([0, 1, 255, rng.randrange(256)])
        path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
        how = f"IHDR byte {at} = {header[at]}, with its checksum"
    else:
        how = damage_file(path, rng)
    name = path.name
    path.replace(folder / "images" / "digit.png")  # its content says what it is
    return f"{name}: {how}"


def _clip(folder: Path, rng: Random) -> str:
    path = folder / "clips" / "class0" / "0.avi"
    if rng.random() < 0.5:
        shutil.copyfile(folder / "clip.mp4", path)
    return damage_file(path, rng)


def _many_clips(folder: Path, rng: Random) -> str:
    """All videos of a folder, but one of each split and class, damaged."""
    paths = sorted((folder / "clips").rglob("*.avi"))
    for path in list(paths):
        for copy in range(4):
            other = path.with_name(f"{path.stem}-{copy}.avi")
            shutil.copyfile(path, other)
            damage_file(other, rng)
    return f"{4 * len(paths)} damaged videos among others"


def _json(*names: str) -> Damage:
    return one_of(*names, by=damage_json)


def attacks(times: float) -> list[Attack]:
    """All of them; ``times`` multiplies their cases."""
    files = max(round(200 * times), 1)
    few = max(round(40 * times), 1)
    in_run = "run/config.json", "run/task.json"
    return [
        fuzz("data files", files, ("adding.h5",), inside("adding.h5"),
             [evaluate("{o}/run", "adding.h5"), predict("{o}/run", "adding.h5", True), train("adding.h5")], ("run",)),
        fuzz("feature files", files, ("features.h5",), inside("features.h5"),
             [evaluate("{o}/features-run", "features.h5"), predict("{o}/features-run", "features.h5", True),
              train("features.h5")], ("features-run",)),
        fuzz("own HDF5", files, ("own.h5",), inside("own.h5"),
             [made("gen-data own own.h5"), predict("{o}/own-run", "own.h5", more="--dataset x --index 1")],
             ("own-run",)),
        fuzz("own NPZ", files, ("own.npz", "tight.npz"), _npz,
             [made("gen-data own own.npz"), predict("{o}/own-run", "own.npz", more="--dataset x --index 1")],
             ("own-run",)),
        fuzz("own NPY", files, ("own.npy",), one_of("own.npy", by=damage_npy),
             [predict("{o}/own-run", "own.npy")], ("own-run",)),
        fuzz("own CSV", files, ("own",), _any_text,
             [made("gen-data own own"), predict("{o}/own-run", "own/00.csv")], ("own-run",)),
        fuzz("config.json", files, ("run",), _json(in_run[0]), [evaluate("run"), resume()], ("adding.h5",)),
        fuzz("task.json", files, ("own-run",), _json("own-run/task.json"),
             [predict("own-run", "{o}/own/00.csv"), evaluate("own-run"), resume("own-run")], ("own-data.h5", "own")),
        fuzz("checkpoint JSON", files, ("run",), _json("run/checkpoints/last.json", "run/checkpoints/best.json"),
             [evaluate("run"), evaluate("run", checkpoint="last"), resume()], ("adding.h5",)),
        fuzz("checkpoint tensors", files, ("run",), _tensors,
             [evaluate("run"), predict("run", "{o}/adding.h5", True), resume()], ("adding.h5",)),
        fuzz("checkpoints made anew", files, ("run",), _checkpoint,
             [evaluate("run", protected=False), predict("run", "{o}/adding.h5"),
              Probe("train --resume run --steps 12", _nothing, False, ("run",))], ("adding.h5",)),
        fuzz("records of a run", files, ("run",),
             _json("run/environment.json", "run/outcome.json", "run/metrics.jsonl"),
             [Probe("plot-curves run --out curves.svg", _nothing, False, ("curves.svg",)), resume()], ("adding.h5",)),
        fuzz("results of a sweep", files, ("sweep",),
             lambda folder, rng: damage_file(
                 rng.choice([folder / "sweep/results.json", *sorted((folder / "sweep/runs").glob("*/result.json"))]),
                 rng, damage_json),
             [Probe("report sweep --out report.html", _nothing, False, ("report.html",))], ("adding.h5",)),
        fuzz("IDX", few, ("digits",), _idx, [made("gen-data mnist --digits 1,7 --source digits")]),
        fuzz("IMDB archives", files, ("reviews.tar", "reviews.tar.gz"), _tar, [imdb("--source reviews.tar")]),
        fuzz("IMDB JSON lines", files, ("reviews",), _json("reviews/train.jsonl", "reviews/test.jsonl"),
             [imdb("--source reviews")]),
        fuzz("IMDB JSON lines, xz", files, ("reviews-xz",),
             one_of("reviews-xz/train.jsonl.xz", "reviews-xz/test.jsonl.xz"), [imdb("--source reviews-xz")]),
        fuzz("word2vec .bin", files, ("vectors.bin",), one_of("vectors.bin"),
             [imdb("--source {o}/reviews --word2vec vectors.bin")], ("reviews",)),
        fuzz("word2vec .txt", files, ("vectors.txt",), one_of("vectors.txt", by=_words_or_bytes),
             [imdb("--source {o}/reviews --word2vec vectors.txt")], ("reviews",)),
        fuzz("word2vec .npz", files, ("vectors.npz",), one_of("vectors.npz"),
             [imdb("--source {o}/reviews --word2vec vectors.npz")], ("reviews",)),
        fuzz("vocabulary of a run", few, ("reviews-run",), one_of("reviews-run/words.txt", by=_words_or_bytes),
             [predict("reviews-run", "{o}/reviews/train.jsonl", True)], ("reviews",)),
        fuzz("images", files, ("images",), _image, [predict("{o}/digits-run", "images/digit.png")], ("digits-run",)),
        fuzz("videos, predicted on", files, ("clips/class0/0.avi", "clip.mp4"), _clip,
             [predict("{o}/clips-run", "clips/class0/0.avi")], ("clips-run", "clips")),
        fuzz("videos, extracted", max(round(4 * times), 1), ("clips",), _many_clips,
             [Probe(f"extract-features videos clips {' '.join(EXTRACTION)} --allow-failures --out out.h5", _nothing,
                    False, ("out.h5", "out.h5.report.jsonl", ".out.h5.lock"))]),
        fuzz("network weights", few, ("weights.pth", "weights.safetensors"), _weights,
             [predict("{o}/clips-run", "{o}/clips/class0/0.avi", True, "--weights weights.pth"),
              predict("{o}/clips-run", "{o}/clips/class0/0.avi", True, "--weights weights.safetensors")],
             ("clips-run", "clips")),
    ]  # fmt: skip
