"""Files made to exhaust, to hang or to mislead: sizes that lie, endless files, pipes, links, code in pickles."""

import json
import lzma
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from campaign.cases import Attack, Kind, Scene, Verdict, judge, silent_or_lost
from campaign.originals import arrays, few_reviews, idx, review
from campaign.processes import CLOSED, run

SECRET = 12345.6789  # stands in files that no command was given
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
    about: str = field(default="")


def _npy(shape: tuple[int, ...], kind: str = "<f8", body: bytes = b"") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def _zip(path: Path, members: dict[str, tuple[bytes, int, int, int]]) -> None:
    """A zip archive of deflated members: their data, CRC-32 and size, repeated; no size need be true."""
    body, directory = b"", b""
    for name, (data, crc, size, method) in members.items():
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(data), size, len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\3\4" + fields + name.encode() + data
    count = len(members)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)


def _stored(data: bytes) -> tuple[bytes, int, int, int]:
    return data, zlib.crc32(data), len(data), 0


def _lying_npz(scene: Scene) -> None:
    members = {"x.npy": _stored(_npy((10**9, 1000))), "y.npy": _stored(_npy((3,), "<i8", bytes(24)))}
    _zip(scene.folder / "own.npz", members)


def _deflate_bomb(scene: Scene) -> None:
    """3 GiB of zeros in some megabytes."""
    block, blocks = bytes(2**24), 192
    header = _npy((8, 3 * 2**26, 2), "|u1")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    data += (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * blocks
    data += packer.flush()
    crc = zlib.crc32(header)
    for _ in range(blocks):
        crc = zlib.crc32(block, crc)
    member = data, crc, len(header) + blocks * len(block), 8
    _zip(scene.folder / "own.npz", {"x.npy": member, "y.npy": _stored(_npy((8,), "<i8", np.arange(8).tobytes()))})


def _endless_hdf5(scene: Scene) -> None:
    with h5py.File(scene.folder / "own.h5", "w") as file:
        file.create_dataset("x", (2**40, 3, 2), "f4", chunks=(1024, 3, 2))
        file.create_dataset("y", (2**40,), "i8", chunks=(1024,))
    scene.copy("adding.h5")
    with h5py.File(scene.folder / "adding.h5", "r+") as file:
        for name in ("x", "y"):
            kind, shape = file["test"][name].dtype, file["test"][name].shape[1:]
            del file["test"][name]
            file["test"].create_dataset(name, (2**40, *shape), kind, chunks=(1024, *shape))


def _wide_hdf5(scene: Scene) -> None:
    """Features and offsets of a feature file, and words of a review, without end."""
    scene.copy("features.h5")
    with h5py.File(scene.folder / "features.h5", "r+") as file:
        count = len(file["offsets"])
        file["features"].resize(2**40, axis=0)
        file["offsets"][-1] = 2**40
        file["offsets"][1 : count - 1] = np.linspace(0, 2**40, count, dtype=np.int64)[1:-1]


def _word2vec(text: bytes) -> Callable[[Scene], None]:
    return lambda scene: (scene.folder / "v.bin").write_bytes(text) and None


def _png(scene: Scene) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (scene.folder / "digit.png").write_bytes(data)


def _tar_of_50_gb(scene: Scene, *, sparse: bool) -> None:
    info = tarfile.TarInfo("aclImdb/train/pos/0_9.txt")
    if not sparse:
        info.size = 50 * 10**9
        (scene.folder / "reviews.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        return
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = f"{50 * 10**9:011o} ".encode()[-12:] if 50 * 10**9 < 8**11 else b"\x80" + (50 * 10**9).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (scene.folder / "reviews.tar").write_bytes(bytes(header) + bytes(1024))


def _xz_bomb(scene: Scene) -> None:
    """A line of 4 GiB."""
    (scene.folder / "reviews").mkdir()
    block = lzma.compress(b" " * 2**26, preset=0)
    for split in ("train", "test"):
        (scene.folder / "reviews" / f"{split}.jsonl.xz").write_bytes(block * 64)


DEEP = "[" * 100_000 + "]" * 100_000


def _deep(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy(name.partition("/")[0])
        (scene.folder / name).write_text(DEEP + "\n")

    return make


def _deep_attribute(scene: Scene) -> None:
    for name, key in (("own-data.h5", "mean"), ("features.h5", "classes")):
        scene.copy(name)
        with h5py.File(scene.folder / name, "r+") as file:
            file.attrs[key] = DEEP[: 30_000] + DEEP[-30_000:]  # an attribute holds 64 KiB


def _pipe(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy(name.partition("/")[0])
        (scene.folder / name).unlink()
        os.mkfifo(scene.folder / name)

    return make


def _endless(*names: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        for name in names:
            (scene.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (scene.folder / name).symlink_to("/dev/zero")

    return make


def _endless_in(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy(name.partition("/")[0])
        (scene.folder / name).unlink()
        (scene.folder / name).symlink_to("/dev/zero")

    return make


def _nothing(scene: Scene) -> None:
    return


def _idx_label(scene: Scene) -> None:
    (scene.folder / "digits").mkdir()
    for path in (scene.originals / "digits").iterdir():
        os.link(path, scene.folder / "digits" / path.name)
    labels = np.zeros(60_000, np.uint8)
    labels[777] = 200
    (scene.folder / "digits" / "train-labels-idx1-ubyte").unlink()
    (scene.folder / "digits" / "train-labels-idx1-ubyte").write_bytes(idx(labels))


def _imdb_label(label: Any) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy("reviews")
        for split in ("train", "test"):
            with (scene.folder / "reviews" / f"{split}.jsonl").open("a") as file:
                file.write(json.dumps({**review(0), "label": label}) + "\n")

    return make


def _own_label(scene: Scene) -> None:
    said = arrays()
    np.savez(scene.folder / "own.npz", x=said["x"], y=np.array([2**63 - 1, -(2**63)] * 12))


def _secret(scene: Scene) -> None:
    """Files that a command is not given."""
    x = np.full((24, 9, 2), SECRET, np.float32)
    with h5py.File(scene.folder.parent / "secret.h5", "w") as file:
        file["x"] = x
    (scene.folder.parent / "secret.bin").write_bytes(x.tobytes())
    (scene.folder.parent / "secret.csv").write_text("x,y\n" + f"{SECRET},{SECRET}\n" * 6)


def _linked(kind: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        _secret(scene)
        outside = str(scene.folder.parent / "secret.h5")
        with h5py.File(scene.folder / "own.h5", "w") as file:
            file["y"] = arrays()["y"]
            if kind == "external link":
                file["x"] = h5py.ExternalLink(outside, "/x")
            elif kind == "external storage":
                shape = (24, 9, 2)
                size = 4 * 24 * 9 * 2
                file.create_dataset("x", shape, "f4", external=[(str(scene.folder.parent / "secret.bin"), 0, size)])
            else:
                layout = h5py.VirtualLayout((24, 9, 2), "f4")
                layout[...] = h5py.VirtualSource(outside, "x", (24, 9, 2))
                file.create_virtual_dataset("x", layout)

    return make


def _linked_data(kind: str, name: str, dataset: str) -> Callable[[Scene], None]:
    """A data file whose array lies in another file, the very same array: its digest is right."""

    def make(scene: Scene) -> None:
        scene.copy(name)
        original = str(scene.originals / name)
        with h5py.File(scene.folder / name, "r+") as file:
            value = file[dataset][()]
            del file[dataset]
            if kind == "external link":
                file[dataset] = h5py.ExternalLink(original, dataset)
            elif kind == "external storage":
                (scene.folder / "raw").write_bytes(value.tobytes())
                storage = [(str(scene.folder / "raw"), 0, value.nbytes)]
                file.create_dataset(dataset, value.shape, value.dtype, external=storage)
            else:
                layout = h5py.VirtualLayout(value.shape, value.dtype)
                layout[...] = h5py.VirtualSource(original, dataset, value.shape)
                file.create_virtual_dataset(dataset, layout)

    return make


def _outside(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        _secret(scene)
        scene.copy("own")
        table = scene.folder / "own" / "labels.csv"
        where = name.format(outside=scene.folder.parent)
        table.write_text(table.read_text() + f"{where},class a\n")
        shutil.copyfile(scene.folder.parent / "secret.csv", scene.folder / "secret.csv")

    return make


def _tensors_outside(scene: Scene) -> None:
    from pipelines import checkpoints

    scene.copy("run")
    path = scene.folder / "run" / "checkpoints" / "best.json"
    content = json.loads(path.read_text())
    shutil.copyfile(path.with_name(content["tensors"]), scene.folder / "outside.safetensors")
    content = {**content, "tensors": "../../outside.safetensors"}
    del content["sha256"]
    content["sha256"] = checkpoints._digest(content)
    path.write_text(json.dumps(content))


class _Code:
    def __reduce__(self) -> Any:
        return os.system, (f"echo {SECRET}; echo {SECRET} > hacked",)


def _pickles(scene: Scene) -> None:
    code = pickle.dumps(_Code())
    np.savez(scene.folder / "own.npz", x=arrays()["x"], y=np.zeros(24, int))
    (scene.folder / "x.npy").write_bytes(_npy((1,), "|O", code))
    _zip(scene.folder / "own.npz", {f"{name}.npy": _stored(_npy((1,), "|O", code)) for name in "xy"})
    shutil.copyfile(scene.folder / "own.npz", scene.folder / "v.npz")
    (scene.folder / "weights.pth").write_bytes(code)


def bombs() -> dict[str, Bomb]:
    """All of them, by what they are."""
    evaluate = "evaluate run --json --device cpu"
    said = {
        "an NPZ that says 7 TiB": Bomb(_lying_npz, ("gen-data own own.npz --out out.h5", f"{OWN} own.npz --dataset x")),
        "an NPZ of 3 GiB of zeros": Bomb(_deflate_bomb, (f"{OWN} own.npz --dataset x", "gen-data own own.npz --out out.h5")),
        "HDF5 of 2^40 rows, unwritten": Bomb(_endless_hdf5, (
            "gen-data own own.h5 --out out.h5", f"{OWN} own.h5 --dataset x", "evaluate {o}/run --data adding.h5",
            "predict {o}/run adding.h5")),
        "HDF5 of 2^40 rows, one of them": Bomb(
            _endless_hdf5, (f"{OWN} own.h5 --dataset x --index 5 --json",), refused=False),
        "features of 2^40 frames": Bomb(_wide_hdf5, (
            "evaluate {o}/features-run --data features.h5", "predict {o}/features-run features.h5",
            "train --data features.h5 --out new --steps 2 --hidden 4 --layers 1")),
        "word2vec of 10^18 words": Bomb(_word2vec(b"1000000000000000000 4\nfilm " + bytes(16)), (
            f"{IMDB} --source {{o}}/reviews --word2vec v.bin",)),
        "word2vec of 10^18 numbers a word": Bomb(_word2vec(b"5 1000000000000000000\nfilm " + bytes(16)), (
            f"{IMDB} --source {{o}}/reviews --word2vec v.bin",)),
        "word2vec with a word without end": Bomb(_word2vec(b"5 4\n" + b"a" * 10_000_000), (
            f"{IMDB} --source {{o}}/reviews --word2vec v.bin",)),
        "a PNG of 60,000 x 60,000": Bomb(_png, ("predict {o}/digits-run digit.png",)),
        "a tar member of 50 GB": Bomb(
            lambda scene: _tar_of_50_gb(scene, sparse=False), (f"{IMDB} --source reviews.tar",)),
        "a sparse tar member of 50 GB": Bomb(
            lambda scene: _tar_of_50_gb(scene, sparse=True), (f"{IMDB} --source reviews.tar",)),
        "an xz of a line of 4 GiB": Bomb(_xz_bomb, (f"{IMDB} --source reviews",)),
        "deep config.json": Bomb(_deep("run/config.json"), (evaluate, "train --resume run")),
        "deep task.json": Bomb(_deep("run/task.json"), (evaluate,)),
        "deep best.json": Bomb(_deep("run/checkpoints/best.json"), (evaluate,)),
        "deep last.json": Bomb(_deep("run/checkpoints/last.json"), ("train --resume run",)),
        "deep metrics.jsonl": Bomb(_deep("run/metrics.jsonl"), ("plot-curves run", "train --resume run --steps 12")),
        "deep environment.json": Bomb(_deep("run/environment.json"), ("train --resume run --steps 12",), refused=False),
        "deep results.json": Bomb(_deep("sweep/results.json"), ("report sweep",)),
        "deep reviews": Bomb(_deep("reviews/train.jsonl"), (f"{IMDB} --source reviews",)),
        "deep attributes": Bomb(_deep_attribute, (
            "evaluate {o}/own-run --data own-data.h5", "train --data own-data.h5 --out new --steps 2",
            "evaluate {o}/features-run --data features.h5")),
        "/dev/zero": Bomb(_nothing, (
            f"{OWN} /dev/zero", "predict {o}/run /dev/zero", "predict {o}/digits-run /dev/zero",
            "predict {o}/reviews-run /dev/zero", "evaluate {o}/run --data /dev/zero", "gen-data own /dev/zero",
            "train --data /dev/zero", "gen-data imdb --source /dev/zero --out out.h5",
            "extract-features videos /dev/zero --network resnet18 --weights random --out out.h5")),
        "links to /dev/zero": Bomb(
            _endless("z.npy", "z.npz", "z.h5", "z.png", "z.avi", "z.bin", "z.txt", "z.pth", "z.safetensors", "own/labels.csv",
                     "reviews/train.jsonl", "digits/train-images-idx3-ubyte", "digits/train-images-idx3-ubyte.gz"), (
                f"{OWN} z.npy", f"{OWN} z.npz", f"{OWN} z.h5", "gen-data own z.npz", "gen-data own z.h5",
                "predict {o}/digits-run z.png", "predict {o}/clips-run z.avi",
                f"{IMDB} --source {{o}}/reviews --word2vec z.bin", f"{IMDB} --source {{o}}/reviews --word2vec z.txt",
                "gen-data own own", f"{IMDB} --source reviews", "gen-data mnist --source digits --out out.h5",
                "predict {o}/clips-run {o}/clips/class0/0.avi --weights z.pth",
                "predict {o}/clips-run {o}/clips/class0/0.avi --weights z.safetensors")),
        "config.json is /dev/zero": Bomb(_endless_in("run/config.json"), (evaluate, "train --resume run")),
        "task.json is /dev/zero": Bomb(_endless_in("run/task.json"), (evaluate,)),
        "best.json is /dev/zero": Bomb(_endless_in("run/checkpoints/best.json"), (evaluate,)),
        "metrics.jsonl is /dev/zero": Bomb(_endless_in("run/metrics.jsonl"), ("plot-curves run",)),
        "results.json is /dev/zero": Bomb(_endless_in("sweep/results.json"), ("report sweep",)),
        "words.txt is /dev/zero": Bomb(
            _endless_in("reviews-run/words.txt"), ("predict reviews-run {o}/reviews/train.jsonl",)),
        "config.json is a pipe": Bomb(_pipe("run/config.json"), (evaluate, "train --resume run")),
        "task.json is a pipe": Bomb(_pipe("run/task.json"), (evaluate,)),
        "best.json is a pipe": Bomb(_pipe("run/checkpoints/best.json"), (evaluate,)),
        "metrics.jsonl is a pipe": Bomb(_pipe("run/metrics.jsonl"), ("plot-curves run",)),
        "results.json is a pipe": Bomb(_pipe("sweep/results.json"), ("report sweep",)),
        "a data file is a pipe": Bomb(_pipe("adding.h5"), (
            "evaluate {o}/run --data adding.h5", "train --data adding.h5 --out new --steps 2", "predict {o}/run adding.h5")),
        "own HDF5 is a pipe": Bomb(_pipe("own.h5"), ("gen-data own own.h5", f"{OWN} own.h5")),
        "a CSV of a folder is a pipe": Bomb(_pipe("own/03.csv"), ("gen-data own own",)),
        "MNIST label 200": Bomb(_idx_label, ("gen-data mnist --digits 1,7 --source digits --out out.h5",)),
        "IMDB label 7": Bomb(_imdb_label(7), (f"{IMDB} --source reviews",)),
        "IMDB label -1": Bomb(_imdb_label(-1), (f"{IMDB} --source reviews",)),
        "IMDB label 10^30": Bomb(_imdb_label(10**30), (f"{IMDB} --source reviews",)),
        "own labels of 64 bits": Bomb(_own_label, ("gen-data own own.npz --out out.h5",), refused=False),
        "a checkpoint's tensors elsewhere": Bomb(_tensors_outside, (evaluate,)),
        "labels.csv names ../": Bomb(_outside("../secret.csv"), ("gen-data own own --out out.h5",), secret=True),
        "labels.csv names an absolute path": Bomb(
            _outside("{outside}/secret.csv"), ("gen-data own own --out out.h5",), secret=True),
        "code in pickles": Bomb(_pickles, (
            "gen-data own own.npz --out out.h5", f"{OWN} x.npy", f"{OWN} own.npz --dataset x",
            f"{IMDB} --source {{o}}/reviews --word2vec v.npz",
            "predict {o}/clips-run {o}/clips/class0/0.avi --weights weights.pth"), secret=True),
    }  # fmt: skip
    for kind in ("external link", "external storage", "virtual dataset"):
        said[f"own x by {kind}"] = Bomb(
            _linked(kind), ("gen-data own own.h5 --out out.h5", f"{OWN} own.h5 --dataset x --json"), secret=True
        )
        for name, dataset, of in (("adding.h5", "test/x", "run"), ("features.h5", "features", "features-run")):
            said[f"{name} by {kind}"] = Bomb(
                _linked_data(kind, name, dataset), (f"evaluate {{o}}/{of} --data {name}", f"predict {{o}}/{of} {name}")
            )
    for stdout in ("/dev/full", CLOSED):
        commands = ("gen-data adding --out a.h5 --train 9 --val 3 --test 3", "evaluate {o}/run", "predict {o}/run {o}/adding.h5")
        said[f"standard output: {stdout}"] = Bomb(_nothing, commands, refused=stdout == "/dev/full", stdout=stdout)
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
    return str(SECRET)[:7] in said


def _holds_secret(path: Path) -> bool:
    if not path.exists():
        return False
    with h5py.File(path, "r") as file:
        return any(np.isclose(file[split]["x"][()], SECRET).any() for split in ("train", "val", "test"))



