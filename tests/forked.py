"""Processes of tests: forked from one that has imported what takes seconds, they are at work in milliseconds."""

import contextlib
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from torch.distributed import TCPStore

from pipelines.runs.training import train
from pipelines.video.extraction import extract_features
from pipelines.video.listing import own_videos
from skiprnn_cli.main import cli
from tests.videos import TinyNetwork, inline, tiny_task

CONTEXT = multiprocessing.get_context("forkserver")
# Of the others, the first comes with the first optimizer, and one with pytest's own modules, where work may be.
CONTEXT.set_forkserver_preload(["tests.forked", "torch._dynamo", "torch.distributed.nn", "pytest", "torchvision"])


def prepare() -> multiprocessing.context.ForkServerContext:
    """The context of such processes, when there is one to fork them from."""
    with contextlib.chdir(Path(__file__).parents[1]):  # where it finds this module
        forkserver.ensure_running()
    return CONTEXT


def start(work: Callable[..., Any], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """Start a function of a module of ours; at the end of the connection there is what it returns or raises."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = prepare().Process(target=_begin, args=(theirs, work, arguments))
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


@contextlib.contextmanager
def meeting(size: int) -> Iterator[list[dict[str, str]]]:
    """What torchrun would tell each of so many processes by its environment."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    yield [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    del store


def team(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of a module of ours returns in each of so many processes that torchrun could have started."""
    with meeting(size) as environments:
        started = [start(_with_environment, environment, work, arguments) for environment in environments]
        for process, result in started:
            if not result.poll(240):  # it waits for another that failed
                process.kill()
        results = [result.recv() for _, result in started]
    for process, _ in started:
        process.join()
    return results


def _with_environment(environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ.update(environment)
    return work(*arguments)


def command(*words: str) -> tuple[int, str]:
    """The exit code of ``skiprnn`` and what it said."""
    done = CliRunner().invoke(cli, words, prog_name="skiprnn")
    return done.exit_code, done.output
