"""Frames of a video file at a wanted rate: decoded forward, never sought, picked by their timestamps."""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from pipelines.data.doors import check_file
from pipelines.errors import SkipRNNError

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # before the import, which reads them
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2

CROP = 224  # pixels, the side of what the network sees
EARLY = 5.5e-4  # s; timestamps are often rounded to milliseconds
RATES = (0.1, 1000.0)  # frames/s that a file may claim

Frame = npt.NDArray[np.uint8]  # (height, width, 3), RGB


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video to look at: at each multiple of 1/fps the one on screen, for the first seconds."""

    fps: float = 25.0
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.fps < math.inf and 0 < self.seconds < math.inf and self.steps >= 1):
            raise SkipRNNError(f"{self.fps:g} frames/s for {self.seconds:g} s are no frames; raise --fps or --seconds")

    @property
    def steps(self) -> int:
        """Frames to look at, at most."""
        return round(self.fps * self.seconds)


class VideoReader:
    """Iterates over (step, frame) of a video; a frame that stays on screen comes for several steps, the same array.

    Raises:
        SkipRNNError: the file is missing, empty, or holds no video that OpenCV can decode.
    """

    def __init__(self, path: Path, sampling: Sampling) -> None:
        self.path, self.sampling = Path(path), sampling
        self.decoded = 0  # frames
        self.declared: int | None = None  # frames that the file says it has
        self.truncated = False  # once the end is reached: fewer were decoded than it said

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        capture = self._open()
        try:
            yield from self._steps(capture)
        finally:
            capture.release()

    def _open(self) -> Any:
        if check_file(self.path, "name a video file") == 0:
            raise SkipRNNError(f"{self.path} is empty")
        if printable(self.path) != str(self.path):
            raise SkipRNNError(f"{self.path}: OpenCV opens no file whose name is not UTF-8; rename it")
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise SkipRNNError(f"{self.path} holds no video that OpenCV can decode")
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared = int(count) if 0 < count < 2**53 else None
        return capture

    def _steps(self, capture: Any) -> Iterator[tuple[int, Frame]]:
        fps, steps = self.sampling.fps, self.sampling.steps
        frame: Frame | None = None
        step, self.decoded = 0, 0
        first = start = 0.0
        while capture.grab():
            self.decoded += 1
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if self.decoded == 1:
                first = stamp
            elif stamp - first > start:
                start = stamp - first
            else:  # without a timestamp, or with a wrong one
                start += self._interval(capture, start, self.decoded - 1)
            while frame is not None and step < steps and step / fps + EARLY < start:
                yield step, frame
                step += 1
            if step == steps:
                return
            there, picture = capture.retrieve()
            if there:
                frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        if frame is None:
            raise SkipRNNError(f"{self.path} holds no frame that can be decoded")
        end = start + self._interval(capture, start, self.decoded)
        while step < steps and (step == 0 or step / fps + EARLY < end):
            yield step, frame
            step += 1
        if self.declared is not None and step < steps:
            self.truncated = self.decoded + max(2, self.declared // 50) < self.declared

    def _interval(self, capture: Any, start: float, frames: int) -> float:
        """Seconds from a frame to the next: the mean so far, or what the file says."""
        if frames > 1 and start > 0:
            return start / (frames - 1)
        rate = capture.get(cv2.CAP_PROP_FPS)
        return 1 / rate if RATES[0] <= rate <= RATES[1] else 1 / self.sampling.fps


@dataclass(frozen=True)
class Decoded:
    """What decoding a video found out."""

    status: str  # ok or truncated
    frames: int
    source_bytes: int
    source_mtime: int  # ns
    source_sha256: str


@dataclass(frozen=True)
class Clip:
    """The frames of a video that its features need."""

    frames: Tensor  # (F, 3, 224, 224) uint8, each once
    places: Tensor  # (T,) int64, the frame of each step
    about: Decoded


def printable(path: Path) -> str:
    """A path as text that any file takes: bytes of it that are no UTF-8 as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def read_clip(path: Path, sampling: Sampling, size: int) -> Clip:
    """Decode a video and cut its frames to what the network sees.

    Args:
        path: the video file.
        sampling: which of its frames.
        size: pixels of the shorter side before the crop.

    Raises:
        SkipRNNError: as for ``VideoReader``.
    """
    reader = VideoReader(path, sampling)
    frames: list[Tensor] = []
    places: list[int] = []
    last = None
    for _, frame in reader:
        if frame is not last:
            frames.append(prepare(frame, size))
            last = frame
        places.append(len(frames) - 1)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        status = os.fstat(file.fileno())
    ending = "truncated" if reader.truncated else "ok"
    about = Decoded(ending, reader.decoded, status.st_size, status.st_mtime_ns, digest)
    return Clip(torch.stack(frames), torch.tensor(places), about)


def prepare(frame: Frame, size: int) -> Tensor:
    """A frame as the network wants it, (3, 224, 224) uint8: the shorter side to ``size`` pixels, then the centre."""
    image = torch.from_numpy(frame).permute(2, 0, 1)
    cut: Tensor = center_crop(resize(image, [size], antialias=True), [CROP])
    return cut.contiguous()
