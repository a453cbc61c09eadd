"""The undamaged files, small ones, made once with the commands themselves where a command makes them."""

import csv
import hashlib
import io
import json
import math
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.processes import run

REVIEWS = 40  # of each split, where IMDB has 25,000; in two classes
SMALL = (
    "--device", "cpu", "--hidden", "5", "--layers", "1", "--batch-size", "32", "--lr", "0.01", "--eval-every", "4",
    "--lam", "0.001",
)  # fmt: skip
STEPS = "8"


def build(folder: Path, *names: str) -> None:
    """Make originals, and what they are made from, unless they are there."""
    for name in names:
        if not (folder / name).exists():
            MAKERS[name.partition("/")[0]](folder)


def skiprnn(folder: Path, *arguments: str, seconds: float = 120) -> None:
    """A command that must succeed."""
    done = run(arguments, folder, seconds=seconds)
    if done.code or done.hung:
        raise RuntimeError(f"skiprnn {' '.join(arguments)} ended with {done.code}:\n{done.err}")


def few_reviews() -> None:
    """Let IMDB be small: its true size would cost seconds a case."""
    from pipelines.sources import imdb

    if not hasattr(imdb, "REVIEWS"):
        raise RuntimeError("pipelines.sources.imdb no longer says how many reviews IMDB has")
    imdb.REVIEWS = REVIEWS


def _adding(folder: Path) -> None:
    sizes = ("--train", "64", "--val", "16", "--test", "16")
    skiprnn(folder, "gen-data", "adding", "--length", "12", *sizes, "--out", "adding.h5")


def _trained(name: str, data: str, *options: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        build(folder, data)
        path = str(folder / data)
        skiprnn(folder, "train", "--data", path, "--out", name, *SMALL, "--steps", STEPS, *options)

    return make


def series(count: int = 24) -> list[tuple[list[list[float]], str]]:
    """Sequences of two numbers a step, and their classes."""
    rng = random.Random(0)
    said = []
    for number in range(count):
        label, length = rng.choice("ab"), rng.randint(5, 9)
        wave = [[math.sin(t / (1 + (label == "a"))), round(rng.gauss(0, 0.1), 4)] for t in range(length)]
        said.append((wave, f"class {label}" if number else "class a"))
    return said


def _own_csv(folder: Path) -> None:
    (folder / "own").mkdir()
    with open(folder / "own" / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for number, (wave, label) in enumerate(series()):
            rows = "x,y\n" + "".join(f"{a:.5f},{b:.5f}\n" for a, b in wave)
            (folder / "own" / f"{number:02}.csv").write_text(rows)
            table.writerow([f"{number:02}.csv", label])


def arrays() -> dict[str, Any]:
    """The same in arrays."""
    said = series()
    x = np.zeros((len(said), 9, 2), np.float32)
    for row, (wave, _) in enumerate(said):
        x[row, : len(wave)] = wave
    lengths = np.array([len(wave) for wave, _ in said])
    return {"x": x, "y": np.array([int(label == "class b") for _, label in said]), "lengths": lengths}


def _own_npz(folder: Path) -> None:
    np.savez(folder / "own.npz", **arrays())
    np.savez_compressed(folder / "tight.npz", **arrays())


def _own_npy(folder: Path) -> None:
    np.save(folder / "own.npy", arrays()["x"][:3])


def _own_h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "own.h5", "w") as file:
        for name, value in arrays().items():
            file.create_dataset(name, data=value, chunks=True if name == "x" else None)
        file["split"] = [("train", "val", "test")[row % 3] for row in range(24)]


def _own_data(folder: Path) -> None:
    build(folder, "own")
    skiprnn(folder, "gen-data", "own", "own", "--out", "own-data.h5")


def _features(folder: Path) -> None:
    from pipelines.data.features import Entry, write_features
    from pipelines.tasks import Videos

    rng = np.random.default_rng(0)
    entries, rows = [], {}
    for number in range(18):
        name, split = f"{number % 2}/{number}.avi", ("train", "train", "val", "test")[number // 2 % 4]
        rows[name] = rng.normal(size=(3 + number % 4, 6)).astype(np.float32)
        digest = hashlib.sha256(rows[name].tobytes()).hexdigest()
        entries.append(Entry(name, split, number % 2, name, "ok", len(rows[name]), 100, 0, digest, digest))
    task = Videos(features=6, steps=6, classes=("zero", "one"), fps=5.0, seconds=1.2)
    attributes = {"task": task.name, **task.parameters(), "dtype": "float32"}
    write_features(folder / "features.h5", entries, lambda entry: rows[entry.name], attributes, dtype="float32")


def write_clip(path: Path, number: int, codec: str = "MJPG") -> None:
    """A video of a few frames."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10.0, (64, 48))
    for _ in range(6):
        writer.write(cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (64, 48)))
    writer.release()


EXTRACTION = (
    "--network", "resnet18", "--weights", "random", "--fps", "5", "--seconds", "0.6", "--device", "cpu",
    "--workers", "1",
)  # fmt: skip


def _clips(folder: Path) -> None:
    for number in range(8):
        write_clip(folder / "clips" / f"class{number % 2}" / f"{number}.avi", number)


def _mp4(folder: Path) -> None:
    write_clip(folder / "clip.mp4", 3, "mp4v")


def _clips_data(folder: Path) -> None:
    build(folder, "clips")
    skiprnn(folder, "extract-features", "videos", "clips", *EXTRACTION, "--out", "clips.h5")


def _weights(folder: Path) -> None:
    """The random weights, from files."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(weights=None)
    network.fc = torch.nn.Identity()
    torch.save(network.state_dict(), folder / "weights.pth")
    save_file(network.state_dict(), folder / "weights.safetensors")


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    """An array of bytes in MNIST's format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def _digits(folder: Path) -> None:
    """As many digits as MNIST has, nearly all of them zeros: of 1 and 7 alone there are few."""
    (folder / "digits").mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = np.zeros(count, np.uint8)
        chosen = rng.choice(count, 200, replace=False)
        labels[chosen] = rng.choice([1, 7], 200)
        images = np.zeros((count, 28, 28), np.uint8)
        images[chosen, :, 14] = 255
        images[chosen[labels[chosen] == 7], 2] = 255
        (folder / "digits" / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / "digits" / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def _digits_data(folder: Path) -> None:
    build(folder, "digits")
    skiprnn(folder, "gen-data", "mnist", "--digits", "1,7", "--source", "digits", "--out", "digits.h5")


def _images(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "bmp", "gif", "pgm", "tif", "webp"):
        picture.convert("L" if suffix == "pgm" else "RGB").save(folder / "images" / f"digit.{suffix}")


def review(number: int) -> dict[str, Any]:
    """A film review."""
    label = number % 2
    words = random.Random(number).choices(["film", "plot", "and", "actor", "scene"], k=4 + number % 5)
    return {"label": label, "text": " ".join([*words, ("bad", "good")[label]])}


def _reviews(folder: Path) -> None:
    (folder / "reviews").mkdir()
    for split, first in (("train", 0), ("test", 1000)):
        lines = "".join(json.dumps(review(first + number)) + "\n" for number in range(REVIEWS))
        (folder / "reviews" / f"{split}.jsonl").write_text(lines)


def _reviews_xz(folder: Path) -> None:
    import lzma

    build(folder, "reviews")
    (folder / "reviews-xz").mkdir()
    for path in (folder / "reviews").iterdir():
        (folder / "reviews-xz" / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))


def tar_of_reviews(path: Path, mode: str) -> None:
    """An archive like the original."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for split, first in (("train", 0), ("test", 1000)):
            for number in range(REVIEWS):
                said = review(first + number)
                info = tarfile.TarInfo(f"aclImdb/{split}/{('neg', 'pos')[said['label']]}/{number}_7.txt")
                info.size = len(said["text"])
                archive.addfile(info, io.BytesIO(said["text"].encode()))


def _archives(folder: Path) -> None:
    tar_of_reviews(folder / "reviews.tar", "w")
    tar_of_reviews(folder / "reviews.tar.gz", "w:gz")


def _reviews_data(folder: Path) -> None:
    build(folder, "reviews")
    skiprnn(
        folder, "gen-data", "imdb", "--source", "reviews", "--length", "6", "--min-count", "1", "--out", "reviews.h5"
    )


def _vectors(folder: Path) -> None:
    words = ["film", "plot", "good", "bad", "the"]
    numbers = np.random.default_rng(0).normal(size=(5, 4)).astype("<f4")
    binary = b"5 4\n" + b"".join(
        f"{word} ".encode() + row.tobytes() + b"\n" for word, row in zip(words, numbers, strict=True)
    )
    (folder / "vectors.bin").write_bytes(binary)
    lines = [" ".join([word, *map(str, row.tolist())]) for word, row in zip(words, numbers, strict=True)]
    (folder / "vectors.txt").write_text("\n".join(["5 4", *lines, ""]))
    np.savez(folder / "vectors.npz", words=np.array(words), vectors=numbers, row=np.arange(5))


def _sweep(folder: Path) -> None:
    build(folder, "adding.h5")
    settings = ("steps=8", "eval_every=4", "hidden_size=5", "batch_size=32")
    options = [word for setting in settings for word in ("--set", setting)]
    skiprnn(
        folder, "sweep", "--data", str(folder / "adding.h5"), "--cell", "lstm", "--lam", "0", "--seeds", "0", *options,
        "--out", "sweep",
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path], None]] = {
    "adding.h5": _adding,
    "run": _trained("run", "adding.h5"),
    "own": _own_csv,
    "own.npz": _own_npz,
    "tight.npz": _own_npz,
    "own.npy": _own_npy,
    "own.h5": _own_h5,
    "own-data.h5": _own_data,
    "own-run": _trained("own-run", "own-data.h5"),
    "features.h5": _features,
    "features-run": _trained("features-run", "features.h5"),
    "clips": _clips,
    "clip.mp4": _mp4,
    "clips.h5": _clips_data,
    "clips-run": _trained("clips-run", "clips.h5"),
    "weights.pth": _weights,
    "weights.safetensors": _weights,
    "digits": _digits,
    "digits.h5": _digits_data,
    "digits-run": _trained("digits-run", "digits.h5"),
    "images": _images,
    "reviews": _reviews,
    "reviews-xz": _reviews_xz,
    "reviews.tar": _archives,
    "reviews.tar.gz": _archives,
    "reviews.h5": _reviews_data,
    "reviews-run": _trained("reviews-run", "reviews.h5"),
    "vectors.bin": _vectors,
    "vectors.txt": _vectors,
    "vectors.npz": _vectors,
    "sweep": _sweep,
}
