"""Hostile files and the commands that meet them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from campaign import hostile
from campaign.cases import Attack, Kind, Scene, Verdict, judge, silent_or_lost
from campaign.originals import few_reviews
from campaign.processes import CLOSED, run

OWN = "predict {o}/own-run"
IMDB = "gen-data imdb --length 6 --min-count 1 --out out.h5"


@dataclass(frozen=True)
class Bomb:
    """A file, or an argument, and the commands that meet it."""

    make: Callable[[Scene], None]
    commands: tuple[str, ...]
    refused: bool = True  # whether they must not succeed
    stdout: str = ""
    secret: bool = False  # whether what they say and make must not hold SECRET


def bombs() -> dict[str, Bomb]:
    """All of them, by what they are."""
    evaluate = "evaluate run --json --device cpu"
    said = {
        "an NPZ that says 7 TiB": Bomb(
            hostile.lying_npz, ("gen-data own own.npz --out out.h5", f"{OWN} own.npz --dataset x")),
        "an NPZ of 3 GiB of zeros": Bomb(
            hostile.deflate_bomb, (f"{OWN} own.npz --dataset x", "gen-data own own.npz --out out.h5")),
        "HDF5 of 2^40 rows, unwritten": Bomb(hostile.endless_hdf5, (
            "gen-data own own.h5 --out out.h5", f"{OWN} own.h5 --dataset x", "evaluate {o}/run --data adding.h5",
            "predict {o}/run adding.h5")),
        "HDF5 of 2^40 rows, one of them": Bomb(
            hostile.endless_hdf5, (f"{OWN} own.h5 --dataset x --index 5 --json",), refused=False),
        "features of 2^40 frames": Bomb(hostile.wide_hdf5, (
            "evaluate {o}/features-run --data features.h5", "predict {o}/features-run features.h5",
            "train --data features.h5 --out new --steps 2 --hidden 4 --layers 1")),
        "word2vec of 10^18 words": Bomb(hostile.word2vec(b"1000000000000000000 4\nfilm " + bytes(16)), (
            f"{IMDB} --source {{o}}/reviews --word2vec v.bin",)),
        "word2vec of 10^18 numbers a word": Bomb(hostile.word2vec(b"5 1000000000000000000\nfilm " + bytes(16)), (
            f"{IMDB} --source {{o}}/reviews --word2vec v.bin",)),
        "word2vec with a word without end": Bomb(hostile.word2vec(b"5 4\n" + b"a" * 10_000_000), (
            f"{IMDB} --source {{o}}/reviews --word2vec v.bin",)),
        "a PNG of 60,000 x 60,000": Bomb(hostile.png, ("predict {o}/digits-run digit.png",)),
        "a tar member of 50 GB": Bomb(
            lambda scene: hostile.tar_of_50_gb(scene, sparse=False), (f"{IMDB} --source reviews.tar",)),
        "a sparse tar member of 50 GB": Bomb(
            lambda scene: hostile.tar_of_50_gb(scene, sparse=True), (f"{IMDB} --source reviews.tar",)),
        "an xz of a line of 4 GiB": Bomb(hostile.xz_bomb, (f"{IMDB} --source reviews",)),
        "deep config.json": Bomb(hostile.deep("run/config.json"), (evaluate, "train --resume run")),
        "deep task.json": Bomb(hostile.deep("run/task.json"), (evaluate,)),
        "deep best.json": Bomb(hostile.deep("run/checkpoints/best.json"), (evaluate,)),
        "deep last.json": Bomb(hostile.deep("run/checkpoints/last.json"), ("train --resume run",)),
        "deep metrics.jsonl": Bomb(
            hostile.deep("run/metrics.jsonl"), ("plot-curves run", "train --resume run --steps 12")),
        "deep environment.json": Bomb(
            hostile.deep("run/environment.json"), ("train --resume run --steps 12",), refused=False),
        "deep results.json": Bomb(hostile.deep("sweep/results.json"), ("report sweep",)),
        "deep reviews": Bomb(hostile.deep("reviews/train.jsonl"), (f"{IMDB} --source reviews",)),
        "deep attributes": Bomb(hostile.deep_attribute, (
            "evaluate {o}/own-run --data own-data.h5", "train --data own-data.h5 --out new --steps 2",
            "evaluate {o}/features-run --data features.h5")),
        "/dev/zero": Bomb(hostile.nothing, (
            f"{OWN} /dev/zero", "predict {o}/run /dev/zero", "predict {o}/digits-run /dev/zero",
            "predict {o}/reviews-run /dev/zero", "evaluate {o}/run --data /dev/zero", "gen-data own /dev/zero",
            "train --data /dev/zero", "gen-data imdb --source /dev/zero --out out.h5",
            "extract-features videos /dev/zero --network resnet18 --weights random --out out.h5")),
        "links to /dev/zero": Bomb(
            hostile.endless("z.npy", "z.npz", "z.h5", "z.png", "z.avi", "z.bin", "z.txt", "z.pth", "z.safetensors",
                            "own/labels.csv", "reviews/train.jsonl", "digits/train-images-idx3-ubyte",
                            "digits/train-images-idx3-ubyte.gz"), (
                f"{OWN} z.npy", f"{OWN} z.npz", f"{OWN} z.h5", "gen-data own z.npz", "gen-data own z.h5",
                "predict {o}/digits-run z.png", "predict {o}/clips-run z.avi",
                f"{IMDB} --source {{o}}/reviews --word2vec z.bin", f"{IMDB} --source {{o}}/reviews --word2vec z.txt",
                "gen-data own own", f"{IMDB} --source reviews", "gen-data mnist --source digits --out out.h5",
                "predict {o}/clips-run {o}/clips/class0/0.avi --weights z.pth",
                "predict {o}/clips-run {o}/clips/class0/0.avi --weights z.safetensors")),
        "config.json is /dev/zero": Bomb(hostile.endless_in("run/config.json"), (evaluate, "train --resume run")),
        "task.json is /dev/zero": Bomb(hostile.endless_in("run/task.json"), (evaluate,)),
        "best.json is /dev/zero": Bomb(hostile.endless_in("run/checkpoints/best.json"), (evaluate,)),
        "metrics.jsonl is /dev/zero": Bomb(hostile.endless_in("run/metrics.jsonl"), ("plot-curves run",)),
        "results.json is /dev/zero": Bomb(hostile.endless_in("sweep/results.json"), ("report sweep",)),
        "words.txt is /dev/zero": Bomb(
            hostile.endless_in("reviews-run/words.txt"), ("predict reviews-run {o}/reviews/train.jsonl",)),
        "config.json is a pipe": Bomb(hostile.pipe("run/config.json"), (evaluate, "train --resume run")),
        "task.json is a pipe": Bomb(hostile.pipe("run/task.json"), (evaluate,)),
        "best.json is a pipe": Bomb(hostile.pipe("run/checkpoints/best.json"), (evaluate,)),
        "metrics.jsonl is a pipe": Bomb(hostile.pipe("run/metrics.jsonl"), ("plot-curves run",)),
        "results.json is a pipe": Bomb(hostile.pipe("sweep/results.json"), ("report sweep",)),
        "a data file is a pipe": Bomb(hostile.pipe("adding.h5"), (
            "evaluate {o}/run --data adding.h5", "train --data adding.h5 --out new --steps 2",
            "predict {o}/run adding.h5")),
        "own HDF5 is a pipe": Bomb(hostile.pipe("own.h5"), ("gen-data own own.h5", f"{OWN} own.h5")),
        "a CSV of a folder is a pipe": Bomb(hostile.pipe("own/03.csv"), ("gen-data own own",)),
        "MNIST label 200": Bomb(hostile.idx_label, ("gen-data mnist --digits 1,7 --source digits --out out.h5",)),
        "IMDB label 7": Bomb(hostile.imdb_label(7), (f"{IMDB} --source reviews",)),
        "IMDB label -1": Bomb(hostile.imdb_label(-1), (f"{IMDB} --source reviews",)),
        "IMDB label 10^30": Bomb(hostile.imdb_label(10**30), (f"{IMDB} --source reviews",)),
        "own labels of 64 bits": Bomb(hostile.own_label, ("gen-data own own.npz --out out.h5",), refused=False),
        "a checkpoint's tensors elsewhere": Bomb(hostile.tensors_outside, (evaluate,)),
        "labels.csv names ../": Bomb(hostile.outside("../secret.csv"), ("gen-data own own --out out.h5",), secret=True),
        "labels.csv names an absolute path": Bomb(
            hostile.outside("{outside}/secret.csv"), ("gen-data own own --out out.h5",), secret=True),
        "code in pickles": Bomb(hostile.pickles, (
            "gen-data own own.npz --out out.h5", f"{OWN} x.npy", f"{OWN} own.npz --dataset x",
            f"{IMDB} --source {{o}}/reviews --word2vec v.npz",
            "predict {o}/clips-run {o}/clips/class0/0.avi --weights weights.pth"), secret=True),
    }  # fmt: skip
    for kind in ("external link", "external storage", "virtual dataset"):
        said[f"own x by {kind}"] = Bomb(
            hostile.linked(kind), ("gen-data own own.h5 --out out.h5", f"{OWN} own.h5 --dataset x --json"), secret=True
        )
        for name, dataset, of in (("adding.h5", "test/x", "run"), ("features.h5", "features", "features-run")):
            said[f"{name} by {kind}"] = Bomb(
                hostile.linked_data(kind, name, dataset),
                (f"evaluate {{o}}/{of} --data {name}", f"predict {{o}}/{of} {name}"),
            )
    for stdout in ("/dev/full", CLOSED):
        commands = (
            "gen-data adding --out a.h5 --train 9 --val 3 --test 3",
            "evaluate {o}/run",
            "predict {o}/run {o}/adding.h5",
        )
        said[f"standard output: {stdout}"] = Bomb(
            hostile.nothing, commands, refused=stdout == "/dev/full", stdout=stdout
        )
    return said


def attacks(times: float) -> list[Attack]:
    """All bombs in one row, a case each."""
    named = list(bombs().items())
    needs = (
        "run", "own-run", "features-run", "digits-run", "reviews-run", "clips-run", "own.h5", "own", "sweep", "reviews",
    )  # fmt: skip

    def case(number: int, scene: Scene) -> list[Verdict]:
        few_reviews()
        name, bomb = named[number]
        bomb.make(scene)
        return [_meet(scene, name, bomb, command.format(o=scene.originals).split()) for command in bomb.commands]

    return [Attack("bombs", round(len(named) * min(times, 1)), case, needs)]


def _meet(scene: Scene, name: str, bomb: Bomb, command: list[str]) -> Verdict:
    out = scene.folder / "out.h5"
    out.unlink(missing_ok=True)
    shutil.rmtree(scene.folder / "data", ignore_errors=True)
    done = run(command, scene.folder, stdout=bomb.stdout or None)
    if bomb.secret and (_reveals(done.out) or (scene.folder / "hacked").exists() or _holds_secret(out)):
        return silent_or_lost(Kind.SILENT, name, command, "what no one gave it to read is in what it made")
    return judge(done, name, command, lambda: "it was accepted" if bomb.refused else "")


def _reveals(said: str) -> bool:
    return str(hostile.SECRET)[:7] in said


def _holds_secret(path: Path) -> bool:
    if not path.exists():
        return False
    with h5py.File(path, "r") as file:
        return any(np.isclose(file[split]["x"][()], hostile.SECRET).any() for split in ("train", "val", "test"))
