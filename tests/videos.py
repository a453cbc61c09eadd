"""Videos whose frames carry their number, as tests need them."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.data.features import Entry
from pipelines.tasks import Videos
from pipelines.video.decode import CROP, Clip
from pipelines.video.workers import Job, Recipe, Results, extract

BITS = 10
BLOCK = 16  # pixels of a bit
WIDTH, STEPS = 4, 6  # of a small feature file: numbers a frame, frames a sequence
COUNTS = [3, 6, 9, 1, 5, 6, 2, 4, 8, 7]  # frames of its videos


def numbered(number: int, width: int = BITS * BLOCK, height: int = 48) -> np.ndarray:
    """A picture with a number in black and white blocks, (height, width, 3)."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        left = bit * width // BITS
        right = (bit + 1) * width // BITS
        picture[:, left:right] = 255 if number >> bit & 1 else 0
    return picture


def number_of(frame: np.ndarray) -> int:
    """The number in a picture."""
    width = frame.shape[1]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum((frame[frame.shape[0] // 2, centre].mean() > 127) << bit for bit, centre in enumerate(centres))


def write_video(
    path: Path,
    times: list[Fraction] | int,
    rate: Fraction = Fraction(25),
    *,
    size: tuple[int, int] = (BITS * BLOCK, 48),
    codec: str = "mpeg4",
    first: int = 0,
) -> Path:
    """A video of numbered frames.

    Args:
        path: its ending says the container.
        times: when each frame comes on screen, in s, or how many frames come at the rate.
        rate: frames/s that the file declares.
        size: width and height in pixels.
        codec: of FFmpeg.
        first: number of the first frame.
    """
    times = [number / rate for number in range(times)] if isinstance(times, int) else times
    base = 1 / rate if all((time * rate).denominator == 1 for time in times) else Fraction(1, 60_000)
    path.parent.mkdir(parents=True, exist_ok=True)
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = base
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(first + number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file of half a second of silence, without video."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp2", rate=44_100)
        for start in range(0, 22_050, 1_152):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_152), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 44_100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


class TinyNetwork(torch.nn.Module):
    """Frames to six numbers, in no time, as a stand-in for ``FrameNetwork``."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def of_clip(self, clip: Clip, batch_size: int) -> torch.Tensor:
        halves = clip.frames.float().div(255).unflatten(3, (2, CROP // 2)).mean((2, 4))
        return halves.flatten(1)[clip.places]


def tiny_task(classes: list[str], **parameters: Any) -> Videos:
    """The task that goes with ``TinyNetwork``: 10 frames a second for 2 seconds."""
    settings = {"features": TinyNetwork.width, "steps": 20, "fps": 10.0, "seconds": 2.0, "resize": 224}
    return Videos(**{**settings, "network": "tiny", "classes": tuple(classes), **parameters})


def inline(jobs: Iterator[Job], network: Any, recipe: Recipe) -> Results:
    """An engine without processes."""
    for job in jobs:
        yield job, extract(job, network, recipe)


def write_folder(root: Path, *, classes: int = 2, each: int = 6) -> Path:
    """A folder of videos for each class, which differ in the numbers of their frames."""
    for label in range(classes):
        for number in range(each):
            path = root / f"class{label}" / f"clip{number:02}.avi"
            write_video(path, 8 + number, first=500 * label + 10 * number, codec="mjpeg")
    return root


def entries_of(counts: list[int]) -> list[Entry]:
    """The table of a feature file of videos with so many frames."""
    splits = ["train", "train", "train", "val", "test"]
    return [
        Entry(f"v{n}.avi", splits[n % 5], n % 2, f"g{n}", "ok", count, 1, 2, "a", "b") for n, count in enumerate(counts)
    ]


def features_of(entry: Entry) -> np.ndarray:
    """Features (T, WIDTH) of a video, which say its class."""
    draws = np.random.default_rng(int(entry.name[1:-4]))
    return (draws.standard_normal((entry.frames, WIDTH)) + entry.label).astype(np.float16)
