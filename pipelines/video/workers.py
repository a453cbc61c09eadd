"""Runs the same function on many videos: in processes of this machine, or as Ray actors on a cluster.

A CPU works best on whole videos, one thread each, so its processes decode and compute features. A GPU has one process
that computes features, fed by others that decode, and is given a video before it is done with the last. Jobs are taken
from their iterator only when a worker is free, so that whoever makes them may decide late.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from pipelines.errors import SkipRNNError
from pipelines.parallel.cluster import connected, map_on_actors, require_ray
from pipelines.parallel.processes import map_in_processes
from pipelines.video.decode import Clip, Decoded, Sampling, read_clip
from pipelines.video.network import FrameNetwork

AHEAD = 2  # jobs a worker has in hand
RETRIES = 2  # of a video whose actor died


@dataclass(frozen=True)
class Job:
    """A video to extract."""

    name: str
    path: Path


@dataclass(frozen=True)
class Extracted:
    """A video's features, and what decoding it found out."""

    features: Tensor  # (T, D) float32
    about: Decoded


@dataclass(frozen=True)
class Failed:
    """Why a video has none."""

    reason: str


@dataclass(frozen=True)
class Recipe:
    """What is to be done to each video."""

    sampling: Sampling
    resize: int
    batch_size: int


Result = Extracted | Failed
Results = Generator[tuple[Job, Result], None, None]
Extractor = Callable[[Iterator[Job], FrameNetwork, Recipe], Results]


def extract(job: Job, network: FrameNetwork, recipe: Recipe) -> Result:
    """A video's features."""
    clip = decode(job, recipe)
    return clip if isinstance(clip, Failed) else Extracted(network.of_clip(clip, recipe.batch_size), clip.about)


def decode(job: Job, recipe: Recipe) -> Clip | Failed:
    """A video's frames."""
    try:
        return read_clip(job.path, recipe.sampling, recipe.resize)
    except SkipRNNError as error:
        return Failed(str(error))
    except Exception as error:  # whatever a decoder makes of a damaged file
        return Failed(f"{type(error).__name__}: {error}")


def local(workers: int) -> Extractor:
    """Processes of this machine."""

    def run(jobs: Iterator[Job], network: FrameNetwork, recipe: Recipe) -> Results:
        begin = partial(_begin, network if network.mean.device.type == "cpu" else None, recipe)
        found = map_in_processes(workers, _work, jobs, ahead=AHEAD, begin=begin)
        begun: deque[tuple[Job, Decoded, Callable[[], Tensor]]] = deque()  # videos that a GPU is at
        with closing(found):
            for job, result in found:
                if isinstance(result, Clip):
                    begun.append((job, result.about, network.begin(result, recipe.batch_size)))
                elif isinstance(result, Exception):
                    yield job, Failed("the process that read it died, for want of memory or by a fault of the decoder")
                else:
                    yield job, result
                if len(begun) > 1:  # while it is at the next one, the last is stored
                    yield _ended(*begun.popleft())
            while begun:
                yield _ended(*begun.popleft())

    return run


def _ended(job: Job, about: Decoded, wait: Callable[[], Tensor]) -> tuple[Job, Result]:
    return job, Extracted(wait(), about)


_network: FrameNetwork | None
_recipe: Recipe


def _begin(network: FrameNetwork | None, recipe: Recipe, on_gpu: bool = False) -> None:
    global _network, _recipe
    _network, _recipe = network.cuda() if network is not None and on_gpu else network, recipe


def _work(job: Job) -> Result | Clip:
    return decode(job, _recipe) if _network is None else extract(job, _network, _recipe)


def on_ray(workers: int | None, address: str | None) -> Extractor:
    """Actors of a Ray cluster, or of one started here; ``workers`` of them, or as many as there are GPUs or CPUs.

    Raises:
        SkipRNNError: Ray is not installed, or there is no cluster at the address.
    """
    require_ray()

    def run(jobs: Iterator[Job], network: FrameNetwork, recipe: Recipe) -> Results:
        with connected(address) as ray:
            there = ray.cluster_resources()
            gpus = int(there.get("GPU", 0))
            count = workers or gpus or max(int(there.get("CPU", 1)), 1)
            begin = partial(_begin, network.cpu(), recipe, bool(gpus))
            found = map_on_actors(
                ray, count, _work, jobs, ahead=AHEAD, retries=RETRIES, begin=begin, num_gpus=min(gpus, 1)
            )
            with closing(found):
                for job, result in found:
                    if isinstance(result, Exception):
                        reason = " ".join(str(result).split())[:200]
                        yield job, Failed(f"the actor that read it died three times ({reason})")
                    else:
                        assert not isinstance(result, Clip)
                        yield job, result

    return run
