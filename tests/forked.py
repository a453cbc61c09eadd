"""Processes that tests end: forked from one that has imported what takes seconds, they are at work in milliseconds."""

import contextlib
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from pipelines.runs.training import train
from pipelines.video.extraction import extract_features
from pipelines.video.listing import own_videos
from tests.videos import TinyNetwork, inline, tiny_task

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked", "torch._dynamo"])  # the latter comes with the first optimizer


def start(work: Callable[..., Any], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """Start a function of a module of ours; at the end of the connection there is what it returns or raises."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_begin, args=(theirs, work, arguments))
    with contextlib.chdir(Path(__file__).parents[1]):  # where the process to fork from finds this module
        process.start()
    theirs.close()
    assert ours.recv() == "ready"
    return process, ours


def _begin(end: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    end.send("ready")
    try:
        end.send(work(*arguments))
    except Exception as error:
        end.send(error)


def extract_all(folder: Path, out: Path, limit: int | None = None) -> int:
    """How many videos it extracted; with a limit on the size of files, in bytes, which stands in for a full disk."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    videos = own_videos(folder)
    return extract_features(videos, out, tiny_task(videos.classes), TinyNetwork(), inline).extracted


def train_run(run: Path) -> None:
    """Train, to the end or to that of the process."""
    train(run)
