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
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from campaign.cases import Scene
from campaign.originals import arrays, idx, review

SECRET = 12345.6789  # stands in files that no command was given


def npy(shape: tuple[int, ...], kind: str = "<f8", body: bytes = b"") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def zip(path: Path, members: dict[str, tuple[bytes, int, int, int]]) -> None:
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


def stored(data: bytes) -> tuple[bytes, int, int, int]:
    return data, zlib.crc32(data), len(data), 0


def lying_npz(scene: Scene) -> None:
    members = {"x.npy": stored(npy((10**9, 1000))), "y.npy": stored(npy((3,), "<i8", bytes(24)))}
    zip(scene.folder / "own.npz", members)


def deflate_bomb(scene: Scene) -> None:
    """3 GiB of zeros in some megabytes."""
    block, blocks = bytes(2**24), 192
    header = npy((8, 3 * 2**26, 2), "|u1")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    data += (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * blocks
    data += packer.flush()
    crc = zlib.crc32(header)
    for _ in range(blocks):
        crc = zlib.crc32(block, crc)
    member = data, crc, len(header) + blocks * len(block), 8
    zip(scene.folder / "own.npz", {"x.npy": member, "y.npy": stored(npy((8,), "<i8", np.arange(8).tobytes()))})


def endless_hdf5(scene: Scene) -> None:
    with h5py.File(scene.folder / "own.h5", "w") as file:
        file.create_dataset("x", (2**40, 3, 2), "f4", chunks=(1024, 3, 2))
        file.create_dataset("y", (2**40,), "i8", chunks=(1024,))
    scene.copy("adding.h5")
    with h5py.File(scene.folder / "adding.h5", "r+") as file:
        for name in ("x", "y"):
            kind, shape = file["test"][name].dtype, file["test"][name].shape[1:]
            del file["test"][name]
            file["test"].create_dataset(name, (2**40, *shape), kind, chunks=(1024, *shape))


def wide_hdf5(scene: Scene) -> None:
    """Features and offsets of a feature file, and words of a review, without end."""
    scene.copy("features.h5")
    with h5py.File(scene.folder / "features.h5", "r+") as file:
        count = len(file["offsets"])
        shape, kind = file["features"].shape, file["features"].dtype
        del file["features"]
        file.create_dataset("features", (2**40, *shape[1:]), kind, chunks=(64, *shape[1:]))
        file["offsets"][-1] = 2**40
        file["offsets"][1 : count - 1] = np.linspace(0, 2**40, count, dtype=np.int64)[1:-1]


def word2vec(text: bytes) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        (scene.folder / "v.bin").write_bytes(text)

    return make


def png(scene: Scene) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (scene.folder / "digit.png").write_bytes(data)


def tar_of_50_gb(scene: Scene, *, sparse: bool) -> None:
    info = tarfile.TarInfo("aclImdb/train/pos/0_9.txt")
    if not sparse:
        info.size = 50 * 10**9
        (scene.folder / "reviews.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        return
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = (
        f"{50 * 10**9:011o} ".encode()[-12:] if 50 * 10**9 < 8**11 else b"\x80" + (50 * 10**9).to_bytes(11, "big")
    )
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (scene.folder / "reviews.tar").write_bytes(bytes(header) + bytes(1024))


def xz_bomb(scene: Scene) -> None:
    """A line of 4 GiB."""
    (scene.folder / "reviews").mkdir()
    block = lzma.compress(b" " * 2**26, preset=0)
    for split in ("train", "test"):
        (scene.folder / "reviews" / f"{split}.jsonl.xz").write_bytes(block * 64)


DEEP = "[" * 100_000 + "]" * 100_000


def deep(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy(name.partition("/")[0])
        (scene.folder / name).write_text(DEEP + "\n")

    return make


def deep_attribute(scene: Scene) -> None:
    for name, key in (("own-data.h5", "mean"), ("features.h5", "classes")):
        scene.copy(name)
        with h5py.File(scene.folder / name, "r+") as file:
            file.attrs[key] = DEEP[:30_000] + DEEP[-30_000:]  # an attribute holds 64 KiB


def pipe(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy(name.partition("/")[0])
        (scene.folder / name).unlink()
        os.mkfifo(scene.folder / name)

    return make


def endless(*names: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        for name in names:
            (scene.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (scene.folder / name).symlink_to("/dev/zero")

    return make


def endless_in(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy(name.partition("/")[0])
        (scene.folder / name).unlink()
        (scene.folder / name).symlink_to("/dev/zero")

    return make


def nothing(scene: Scene) -> None:
    return


def idx_label(scene: Scene) -> None:
    (scene.folder / "digits").mkdir()
    for path in (scene.originals / "digits").iterdir():
        os.link(path, scene.folder / "digits" / path.name)
    labels = np.zeros(60_000, np.uint8)
    labels[777] = 200
    (scene.folder / "digits" / "train-labels-idx1-ubyte").unlink()
    (scene.folder / "digits" / "train-labels-idx1-ubyte").write_bytes(idx(labels))


def imdb_label(label: Any) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        scene.copy("reviews")
        for split in ("train", "test"):
            with (scene.folder / "reviews" / f"{split}.jsonl").open("a") as file:
                file.write(json.dumps({**review(0), "label": label}) + "\n")

    return make


def own_label(scene: Scene) -> None:
    said = arrays()
    np.savez(scene.folder / "own.npz", x=said["x"], y=np.array([2**63 - 1, -(2**63)] * 12))


def secret(scene: Scene) -> None:
    """Files that a command is not given."""
    x = np.full((24, 9, 2), SECRET, np.float32)
    with h5py.File(scene.folder.parent / "secret.h5", "w") as file:
        file["x"] = x
    (scene.folder.parent / "secret.bin").write_bytes(x.tobytes())
    (scene.folder.parent / "secret.csv").write_text("x,y\n" + f"{SECRET},{SECRET}\n" * 6)


def linked(kind: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        secret(scene)
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


def linked_data(kind: str, name: str, dataset: str) -> Callable[[Scene], None]:
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


def outside(name: str) -> Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        secret(scene)
        scene.copy("own")
        table = scene.folder / "own" / "labels.csv"
        where = name.format(outside=scene.folder.parent)
        table.write_text(table.read_text() + f"{where},class a\n")
        shutil.copyfile(scene.folder.parent / "secret.csv", scene.folder / "secret.csv")

    return make


def tensors_outside(scene: Scene) -> None:
    from pipelines.runs import checkpoints

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


def pickles(scene: Scene) -> None:
    code = pickle.dumps(_Code())
    np.savez(scene.folder / "own.npz", x=arrays()["x"], y=np.zeros(24, int))
    (scene.folder / "x.npy").write_bytes(npy((1,), "|O", code))
    zip(scene.folder / "own.npz", {f"{name}.npy": stored(npy((1,), "|O", code)) for name in "xy"})
    shutil.copyfile(scene.folder / "own.npz", scene.folder / "v.npz")
    (scene.folder / "weights.pth").write_bytes(code)
