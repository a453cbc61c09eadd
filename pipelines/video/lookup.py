"""A video to predict on, frame by frame: only frames that are asked for go through the network."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.data.samples import Source
from pipelines.errors import SkipRNNError
from pipelines.video.decode import Frame, Sampling, VideoReader, prepare
from pipelines.video.network import FRAME_COST, FrameNetwork, Origin, VideoTask, load_network

AHEAD = 32  # frames that are decoded while the network works
EVERY_FRAME_BATCH = 8  # frames

Floats = npt.NDArray[np.float32]


def network_of(origin: Origin, weights: str | None, device: torch.device) -> FrameNetwork:
    """The network that computed the features of a run, ready to compute more.

    Args:
        origin: what the run's task says of it.
        weights: where to find them; None is where they came from.
        device: where to run it.

    Raises:
        SkipRNNError: the features were made elsewhere, or the weights cannot be had or are others.
    """
    if origin.network not in FRAME_COST:
        raise SkipRNNError(
            f"the run was trained on features made elsewhere ({origin.network or 'by what is not said'}), so it cannot "
            "look at a video; predict on a feature file"
        )
    if not weights or (weights == "random" and origin.weights.startswith("random:")):
        weights = origin.weights
    try:
        network, _ = load_network(origin.network, weights, device=device, origin=origin)
    except SkipRNNError as error:
        raise SkipRNNError(
            f"no weights to look at frames with: {error}. The run's features were made with {origin.weights} of "
            f"{origin.network}, SHA-256 of the tensors {origin.weights_sha256[:16]}…; name these with --weights"
        ) from error
    for count in (1, EVERY_FRAME_BATCH):  # the first call of a size takes longer
        network(torch.zeros(count, 3, 224, 224, dtype=torch.uint8))
    return network


@contextmanager
def open_video(path: Path, task: VideoTask, network: FrameNetwork, *, pads: bool) -> Iterator[Source]:
    """A video as a source of features, computed for the frames that are asked for; decoding goes on meanwhile.

    Args:
        path: the video.
        task: which of its frames, and how they are prepared.
        network: frames to features.
        pads: frames that are absent are zeros; without it the sequence ends there.

    Raises:
        SkipRNNError: when it is read, it holds no video.
    """
    at: tuple[int, Frame] | None = None
    used = 0
    with _decoded_ahead(path, task) as decoded:

        def read(step: int) -> Floats | None:
            nonlocal at, used
            if step >= task.steps:
                return None
            while (at is None or at[0] < step) and (item := next(decoded, None)) is not None:
                at = item
            if at is None or at[0] < step:
                return np.zeros(task.features, dtype=np.float32) if pads else None
            used += 1
            features: Floats = network(prepare(at[1], task.resize)[None])[0].cpu().numpy()
            return features

        def frames() -> tuple[int, int]:
            nonlocal at
            for item in decoded:  # those that nobody asked for too
                at = item
            return used, 0 if at is None else at[0] + 1

        every = partial(_every_frame, path, task, network, pads=pads)
        yield Source(read, lambda: task.steps if pads else frames()[1], str(path), frames=frames, every=every)


def _every_frame(path: Path, task: VideoTask, network: FrameNetwork, *, pads: bool) -> Floats:
    """The features of all frames of a video, (T, D), computed in batches while decoding goes on."""
    features = []
    with _decoded_ahead(path, task) as decoded:
        while batch := [prepare(frame, task.resize) for _, frame in islice(decoded, EVERY_FRAME_BATCH)]:
            features.append(network(torch.stack(batch)).cpu())
    rows: Floats = torch.cat(features).numpy()
    return np.pad(rows, ((0, task.steps - len(rows) if pads else 0), (0, 0)))


@contextmanager
def _decoded_ahead(path: Path, task: VideoTask) -> Iterator[Iterator[tuple[int, Frame]]]:
    """The steps and frames of a video, decoded in a thread that ends with the block."""
    items: queue.Queue[Any] = queue.Queue(AHEAD)
    closed = threading.Event()

    def decode() -> None:
        last: Any = None
        try:
            for item in VideoReader(path, Sampling(task.fps, task.seconds)):
                items.put(item)
                if closed.is_set():
                    break
        except Exception as error:  # for whoever asks for the next frame
            last = error
        items.put(last)

    def taken() -> Iterator[tuple[int, Frame]]:
        while (item := items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        closed.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                items.get(timeout=0.01)
