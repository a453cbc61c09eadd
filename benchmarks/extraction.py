"""What bounds the extraction of features: frames/s of decoding alone, of the network alone, and of both together.

    python benchmarks/extraction.py --device cuda --out benchmarks/results/mine.json

"decode": the processes of ``extract_features``, their frames thrown away. "network": ResNet-50 on frames that lie in
memory, copied to the device as in an extraction, for each precision; "on device" has them there already. "both": what
``extract_features`` does, with the last precision, once each process has done a video; "with start", processes, weights
and the file of features included. Videos are synthetic, of UCF-101's size, and weights random. On the CPU each process
does both for videos of its own, so that "network", which is one process, times the processes is what bounds "both".
"""

import argparse
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from speed import machine

from pipelines.parallel.devices import choose_device
from pipelines.parallel.processes import cores, map_in_processes
from pipelines.tasks import Videos
from pipelines.video import workers
from pipelines.video.decode import Clip, Decoded, Sampling
from pipelines.video.extraction import extract_features
from pipelines.video.listing import Video, VideoSet
from pipelines.video.network import load_network
from pipelines.video.workers import AHEAD, Job, Recipe, local

FRAMES, RATE, SIZE = 175, 25, (320, 240)  # of a video; frames/s; pixels
DIFFERENT = 4  # videos; the others are links to them
SPLITS = ("train", "val", "test")
SECONDS = 2.0  # that the network is measured


def main():
    options = parse()
    setting = {**machine(options.device), "cores": cores(), "workers": options.workers, "videos": options.videos}
    print(json.dumps(setting, indent=2), file=sys.stderr, flush=True)
    recipe, rows = Recipe(Sampling(RATE, 10), 256, options.batch_size), {}
    with tempfile.TemporaryDirectory() as folder:
        names = write_videos(Path(folder), options.videos)
        jobs = (Job(name, Path(folder) / name) for name in names)
        begin, decoded = partial(workers._begin, None, recipe), Rate()
        for _, clip in map_in_processes(options.workers, workers._work, jobs, ahead=AHEAD, begin=begin):
            decoded.add(1, len(clip.places))
        rows["decode"] = decoded.after_first(options.workers)
        for precision in options.precisions:
            network, _ = load_network("resnet50", "random:0", precision=precision, device=options.device)
            rows[f"network, {precision}"] = network_rate(network, options.batch_size)
            if options.device.type == "cuda":
                rows[f"network, {precision}, on device"] = rate_on_device(network, options.batch_size)
        videos = [Video(name, n % 2, name, SPLITS[n % 3]) for n, name in enumerate(names)]
        both = Rate()
        network, origin = load_network("resnet50", "random:0", precision=precision, device=options.device)
        done = extract_features(
            VideoSet(Path(folder), ["0", "1"], videos), Path(folder) / "out.h5", Videos(**origin.attributes()), network,
            local(options.workers), batch_size=options.batch_size, on_progress=both.add,
        )  # fmt: skip
        rows["both"] = both.after_first(options.workers)
        rows["both, with start"] = done.steps / (time.perf_counter() - both.begun)
    for name, rate in rows.items():
        print(f"{name}: {rate:,.0f} frames/s")
    fastest = rows[f"network, {precision}"] * (1 if options.device.type == "cuda" else options.workers)
    print(f"bound by {'decoding' if rows['decode'] < fastest else 'the network'}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**setting, "frames_per_s": rows}, indent=2) + "\n")


def write_videos(folder, count):
    """Names of videos of a textured picture that moves, with noise."""
    draw = np.random.default_rng(0)
    for number in range(DIFFERENT):
        picture = cv2.resize(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8), (640, 480))
        writer = cv2.VideoWriter(str(folder / f"{number}.avi"), cv2.VideoWriter_fourcc(*"XVID"), RATE, SIZE)
        assert writer.isOpened()
        for t in range(FRAMES):
            part = picture[t % 240 :, t % 320 :][: SIZE[1], : SIZE[0]]
            writer.write(part // 2 + draw.integers(0, 16, part.shape, dtype=np.uint8))
        writer.release()
    names = [f"{number}.avi" for number in range(max(count, DIFFERENT))]
    for number, name in enumerate(names[DIFFERENT:]):
        os.link(folder / f"{number % DIFFERENT}.avi", folder / name)
    return names[:count]


class Rate:
    """Frames/s of videos that come one by one."""

    def __init__(self):
        self.begun, self.came = time.perf_counter(), []

    def add(self, videos, frames):
        self.came.append((time.perf_counter(), frames))

    def after_first(self, count):
        """Without the first videos, which wait for the processes to start."""
        frames = sum(frames for _, frames in self.came[count:])
        return frames / (self.came[-1][0] - self.came[count - 1][0])


def network_rate(network, batch_size):
    """Frames/s of clips of a batch, each begun before the last has ended."""
    clip = clip_of(batch_size)
    network.begin(clip, batch_size)()
    begun, frames = time.perf_counter(), 0
    waiting = network.begin(clip, batch_size)
    while time.perf_counter() - begun < SECONDS:
        last, waiting = waiting, network.begin(clip, batch_size)
        last()
        frames += batch_size
    waiting()
    return (frames + batch_size) / (time.perf_counter() - begun)


def rate_on_device(network, batch_size):
    """Frames/s of the network's own work."""
    frames = clip_of(batch_size).frames.cuda()
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    rounds = 20
    for _ in range(3):
        network(frames)
    ends[0].record()
    for _ in range(rounds):
        network(frames)
    ends[1].record()
    ends[1].synchronize()
    return rounds * batch_size / ends[0].elapsed_time(ends[1]) * 1000


def clip_of(count):
    frames = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    return Clip(frames, torch.arange(count), Decoded("ok", count, 0, 0, ""))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=choose_device, default="auto")
    parser.add_argument("--videos", type=int, help="default: 6 a process on CUDA, else 3")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--batch-size", type=int, help="default: 128 on CUDA, else 8")
    parser.add_argument("--precisions", type=lambda text: text.split(","), help="default: all on CUDA, else float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cuda = options.device.type == "cuda"
    options.videos = options.videos or (6 if cuda else 3) * max(options.workers, 2)
    options.batch_size = options.batch_size or (128 if cuda else 8)
    options.precisions = options.precisions or (["float32", "bfloat16"] if cuda else ["float32"])
    return options


if __name__ == "__main__":
    main()
