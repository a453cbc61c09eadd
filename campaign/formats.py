"""How files of each format are damaged in a folder."""

import hashlib
import io
import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from campaign.damage import damage_bytes, damage_file, damage_json, damage_npy, damage_value, damage_words
from campaign.damage_hdf5 import damage_array_file
from campaign.originals import tar_of_reviews

Damage = Callable[[Path, Random], str]


def one_of(*names: str, by: Callable[[bytes, Random], tuple[bytes, str]] = damage_bytes) -> Damage:
    """Damage one of some files."""
    return lambda folder, rng: damage_file(folder / rng.choice(names), rng, by)


def inside(name: str) -> Damage:
    """Damage an HDF5 file."""
    return lambda folder, rng: damage_array_file(folder / name, rng)


def any_text(folder: Path, rng: Random) -> str:
    path = rng.choice(sorted((folder / "own").iterdir()))
    if rng.random() < 0.5:
        path = folder / "own" / rng.choice(["labels.csv", "00.csv"])
    return damage_file(path, rng, rng.choice([damage_words, damage_words, damage_bytes]))


def words_or_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    return (damage_words if rng.random() < 0.6 else damage_bytes)(data, rng)


def npz(folder: Path, rng: Random) -> str:
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


def checkpoint(folder: Path, rng: Random) -> str:
    """Another checkpoint with right digests: only what it says can give it away."""
    import torch
    from safetensors.torch import load_file, save

    from pipelines.runs.checkpoints import NAMES, _digest

    checkpoints = folder / "run" / "checkpoints"
    content = json.loads((checkpoints / "last.json").read_text())
    tensors, numbers = load_file(checkpoints / content["tensors"]), content["numbers"]
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
            "integers": tensor.long,
            "float64": tensor.double,
            "bfloat16": tensor.bfloat16,
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
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    (checkpoints / content["tensors"]).write_bytes(data)
    content |= {"tensors_sha256": hashlib.sha256(data).hexdigest(), "numbers": numbers}
    del content["sha256"]
    for name in NAMES:
        (checkpoints / f"{name}.json").write_text(json.dumps({**content, "sha256": _digest(content)}))
    return f"a checkpoint made anew: {how}"


def tensors(folder: Path, rng: Random) -> str:
    path = rng.choice(sorted((folder / "run" / "checkpoints").glob("*.safetensors")))
    return damage_file(path, rng)


def safetensors(data: bytes, rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.2:
        other = rng.choice([0, 1, size + 8, 2**40, 2**63])
        return struct.pack("<Q", other) + data[8:], f"a header of {other} bytes"
    header, how = damage_value(json.loads(data[8 : 8 + size]), rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :], f"header: {how}"


def weights(folder: Path, rng: Random) -> str:
    if rng.random() < 0.5:
        return damage_file(folder / "weights.pth", rng)
    return damage_file(folder / "weights.safetensors", rng, safetensors)


def idx(folder: Path, rng: Random) -> str:
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


def tar(folder: Path, rng: Random) -> str:
    path = folder / rng.choice(["reviews.tar", "reviews.tar.gz"])
    if rng.random() < 0.3:
        tar_of_reviews(path, "w" if path.suffix == ".tar" else "w:gz")
        with tarfile.open(folder / "other.tar", "w") as archive:
            info = tarfile.TarInfo(
                rng.choice(
                    ["aclImdb/train/pos/9_9.txt", "../aclImdb/test/neg/1_1.txt", "/train/pos/a", "\udcff/train/pos/x"]
                )
            )
            text = rng.choice([b"\xff\xfe", b"good film", b"", b"\0" * 600])
            info.type = rng.choice(
                [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"x", b"L"]
            )
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


def image(folder: Path, rng: Random) -> str:
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


def clip(folder: Path, rng: Random) -> str:
    path = folder / "clips" / "class0" / "0.avi"
    if rng.random() < 0.5:
        shutil.copyfile(folder / "clip.mp4", path)
    return damage_file(path, rng)


def many_clips(folder: Path, rng: Random) -> str:
    """All videos of a folder, but one of each split and class, damaged."""
    paths = sorted((folder / "clips").rglob("*.avi"))
    for path in list(paths):
        for copy in range(4):
            other = path.with_name(f"{path.stem}-{copy}.avi")
            shutil.copyfile(path, other)
            damage_file(other, rng)
    return f"{4 * len(paths)} damaged videos among others"


def of_json(*names: str) -> Damage:
    return one_of(*names, by=damage_json)
