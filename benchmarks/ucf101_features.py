"""Turn published features of UCF-101 clips into the project's feature files, and how far simple classifiers get.

    python benchmarks/ucf101_features.py FOLDER_WITH_NPZ --out data

Writes OUT/ucf101-effnet.h5 (EfficientNet-Lite0 of 1,125 clips of 9 classes, 25 frames/s) and OUT/ucf101-vgg16.h5 (VGG16
of 1,865 clips of 14 classes, 25 frames each), official split 1, and prints the test accuracy of ridge regression on the
first frame, the mean of n frames equally apart, and the mean of all. A sceptic's controls: what a model that skips has
to be compared with.
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipelines.data.features import Entry, read_features, write_features
from pipelines.tasks import Ucf101
from pipelines.video.listing import Video, hold_out, ucf101_group

NAMES = {
    "ucf101-effnet": "ucf101_9classes_effnetlite0_25fps_pca128_f16.npz",
    "ucf101-vgg16": "ucf101_split1_14classes_vgg16relu6_pca256_f16.npz",
}


def convert(source: Path, path: Path) -> Path:
    """Write the features in an .npz file as extraction would have."""
    with np.load(source) as arrays:
        features = arrays["features"]
        if "path" in arrays:
            names, splits = arrays["path"].tolist(), arrays["split1"].tolist()
            ends = np.cumsum(arrays["length"])
            rows = dict(zip(names, np.split(features, ends[:-1]), strict=True))
            network, fps, steps = "efficientnet_lite0, PCA to 128", 25.0, 250
        else:
            names, splits = arrays["video"].tolist(), [("train", "test")[s - 1] for s in arrays["split1"].tolist()]
            rows = dict(zip(names, features, strict=True))
            network, fps, steps = "vgg16 relu6, PCA to 256", 2.5, 25
    classes = sorted({name.split("/")[0] for name in names})
    videos = [
        Video(name, classes.index(name.split("/")[0]), ucf101_group(name), split)
        for name, split in zip(names, splits, strict=True)
    ]
    entries = [
        Entry(
            v.name, v.split, v.label, v.group, "ok", len(rows[v.name]), 0, 0, "",
            hashlib.sha256(np.ascontiguousarray(rows[v.name]).tobytes()).hexdigest(),
        )
        for v in hold_out(videos, 0.15, seed=0)
    ]  # fmt: skip
    task = Ucf101(features.shape[-1], steps, tuple(classes), fps, steps / fps, network=network)
    attributes = {"task": task.name, **task.parameters(), "source": source.name, "version": version("skiprnn")}
    return write_features(path, entries, lambda entry: rows[entry.name], attributes, overwrite=True)


def controls(path: Path) -> dict[str, float]:
    """Test accuracy of ridge regression on averages of frames; its strength chosen on the validation split."""
    data = read_features(path)
    splits = {name: split.to("cpu") for name, split in data.splits.items()}
    result = {}
    for name, count in (("first frame", 1), ("4 frames", 4), ("8 frames", 8), ("16 frames", 16), ("all frames", None)):
        x, y = {}, {}
        for split, sequences in splits.items():
            batch = sequences.take(slice(None))
            means = []
            for frames, length in zip(batch.x.float(), batch.lengths.tolist(), strict=True):
                chosen = np.arange(length) if count is None else np.linspace(0, length - 1, count).round().astype(int)
                means.append(frames[[0] if count == 1 else chosen].mean(0).numpy())
            x[split], y[split] = np.stack(means), batch.y.numpy()
        best = max((_ridge(x, y, strength) for strength in (1, 10, 100, 1e3, 1e4)), key=lambda pair: pair[0])
        result[name] = best[1]
    return result


def _ridge(x: dict[str, np.ndarray], y: dict[str, np.ndarray], strength: float) -> tuple[float, float]:
    """Accuracy on the validation and the test split."""
    mean = x["train"].mean(0)
    train = x["train"] - mean
    targets = np.eye(y["train"].max() + 1)[y["train"]]
    weights = np.linalg.solve(
        train.T @ train + strength * np.eye(train.shape[1]), train.T @ (targets - targets.mean(0))
    )
    scores = {split: (x[split] - mean) @ weights + targets.mean(0) for split in ("val", "test")}
    val, test = (float((scores[split].argmax(1) == y[split]).mean()) for split in ("val", "test"))
    return val, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    for name, source in NAMES.items():
        path = convert(arguments.folder / source, arguments.out / f"{name}.h5")
        print(path, json.dumps(controls(path)))


if __name__ == "__main__":
    main()
