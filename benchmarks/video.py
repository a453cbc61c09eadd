"""Features of videos, and predictions on them, against the plain way of doing it, in the same run.

    python benchmarks/video.py FOLDER_OF_VIDEOS --out benchmarks/results/mine.json

"extract": frames/s of ``extract_features`` with its processes, their start included, against a loop in one process that
decodes with OpenCV, transforms as torchvision's weights want it, and runs torchvision's ResNet-50 in batches of 32,
on the same videos; each as torch's defaults are on this machine. "predict": seconds of ``Predictor`` on one video with
a model that uses one frame in so many, against every frame used: all frames through the same network in batches of 8
while decoding goes on, then torch's own LSTM. The least that is asked for is 0.7 times frames / used frames. Weights
are random; medians of the rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch
from speed import machine, use_one_in
from torchvision.models import ResNet50_Weights, resnet50

from pipelines.parallel.devices import choose_device
from pipelines.runs.model import stream, without_skipping
from pipelines.tasks import Videos
from pipelines.video.extraction import extract_features
from pipelines.video.listing import Video, VideoSet
from pipelines.video.lookup import open_video
from pipelines.video.network import load_network
from pipelines.video.workers import local
from skiprnn import SkipLSTM
from skiprnn.networks import SequenceModel

USAGES = {"50%": 2, "10%": 10, "4%": 25}  # a frame in n
SUFFIXES = (".avi", ".mp4", ".mkv")


def main():
    options = parse()
    setting = {**machine(options.device), "workers": options.workers, "rounds": options.rounds}
    print(json.dumps(setting, indent=2), file=sys.stderr, flush=True)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix in SUFFIXES)
    paths = paths[:: max(len(paths) // options.videos, 1)][: options.videos]
    rows = [extract(paths, options)]
    show(rows[-1])
    for usage in USAGES:
        rows.append(predict(paths[0], usage, options))
        show(rows[-1])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**setting, "rows": rows}, indent=2) + "\n")


def extract(paths, options):
    loop, ours, rivals = [], [], []
    splits = ("train", "val", "test")
    videos = [Video(path.name, n % 2, path.name, splits[n % 3]) for n, path in enumerate(paths)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "videos"
        root.mkdir()
        for path in paths:
            (root / path.name).symlink_to(path)
        for number in range(options.rounds):
            begun = time.perf_counter()
            frames = plain_loop(paths, options.device)
            loop.append(frames / (time.perf_counter() - begun))
            network, origin = load_network("resnet50", "random:0", device=options.device)
            task = VideoSet(**origin.attributes())
            begun = time.perf_counter()
            done = extract_features(
                VideoSet(root, ["0", "1"], videos), Path(folder) / f"{number}.h5", task, network,
                local(options.workers),
                batch_size=8 if options.device.type == "cpu" else 128,
            )  # fmt: skip
            ours.append(done.steps / (time.perf_counter() - begun))
            rivals.append(ours[-1] / loop[-1])
    return {
        "what": "extract", "videos": len(paths), "frames": frames,
        "loop_frames_per_s": statistics.median(loop), "frames_per_s": statistics.median(ours),
        "times_as_fast": statistics.median(rivals),
    }  # fmt: skip


@torch.inference_mode()
def plain_loop(paths, device):
    torch.manual_seed(0)
    network = resnet50(weights=None).eval().to(device)
    network.fc = torch.nn.Identity()
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms()
    frames, batch = 0, []

    def run():
        network(torch.stack(batch).to(device)).cpu()
        batch.clear()

    for path in paths:
        capture = cv2.VideoCapture(str(path))
        for _ in range(250):
            there, picture = capture.read()
            if not there:
                break
            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            batch.append(transform(torch.from_numpy(picture).permute(2, 0, 1)))
            frames += 1
            if len(batch) == 32:
                run()
    if batch:
        run()
    return frames


@torch.inference_mode()
def predict(path, usage, options):
    torch.manual_seed(0)
    rnn = SkipLSTM(2048, 512, 2, batch_first=True)
    use_one_in(rnn, USAGES[usage])
    model = SequenceModel(rnn, 101).eval()
    network, origin = load_network("resnet50", "random:0", device=options.device)
    task = Videos(classes=tuple(str(n) for n in range(101)), **origin.attributes())
    follower, plain = stream(model), without_skipping(model).eval()
    skipping, every = [], []
    for _ in range(1 + options.rounds):
        begun = time.perf_counter()
        with open_video(path, task, network, pads=False) as video:
            follower.reset()
            follower.run(video.read)
            task.answer(follower.prediction)
            skipping.append(time.perf_counter() - begun)
            used, frames = video.frames()
            begun = time.perf_counter()
            features = torch.from_numpy(video.every())
            task.answer(plain(features[None]).output[0])
            every.append(time.perf_counter() - begun)
    ratio = statistics.median(e / s for e, s in zip(every[1:], skipping[1:], strict=True))
    return {
        "what": "predict", "usage": usage, "frames": frames, "used": used, "seconds": statistics.median(skipping[1:]),
        "seconds_with_every_frame": statistics.median(every[1:]), "times_as_fast": ratio,
        "of_frames_over_used": ratio * used / frames,
    }  # fmt: skip


def show(row):
    print(
        ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=9)
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=choose_device, default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
