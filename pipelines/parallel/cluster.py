"""A Ray cluster: one that is there, or one started on this machine for as long as it is needed."""

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from pipelines.errors import SkipRNNError

J = TypeVar("J")
R = TypeVar("R")


def require_ray() -> Any:
    """The module.

    Raises:
        SkipRNNError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise SkipRNNError("Ray is not installed; `pip install 'skiprnn[ray]'` or use --executor local") from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster and yield the module.

    Args:
        address: of the cluster; None is RAY_ADDRESS or one started here, ``local`` always the latter.

    Raises:
        SkipRNNError: no cluster answers there.
    """
    ray = require_ray()
    _knock(address or os.environ.get("RAY_ADDRESS"))
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SkipRNNError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Refuse an address HOST:PORT at which nobody listens, which Ray itself takes minutes for."""
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SkipRNNError(f"no Ray cluster answers at {address}: {error}") from error


def map_on_actors(
    ray: Any,
    workers: int,
    work: Callable[[J], R],
    jobs: Iterator[J],
    *,
    ahead: int = 1,
    retries: int,
    begin: Callable[[], object] | None = None,
    num_gpus: float,
) -> Generator[tuple[J, R | Exception], None, None]:
    """Yield each job with what comes of it, or with the error of a worker that died too often.

    Args:
        ray: the module, connected.
        workers: actors; those that the cluster has no room for wait until it has.
        work: what to do with a job; a function of a module.
        jobs: taken when a worker is free.
        ahead: jobs that a worker has in hand.
        retries: of a job whose worker died.
        begin: called in each worker before its first job.
        num_gpus: of a worker, which takes a CPU core besides.

    Raises:
        SkipRNNError: a worker could not begin.
    """
    remote = ray.remote(max_restarts=-1, max_task_retries=retries, num_cpus=1, num_gpus=num_gpus)(_Actor)
    begin = ray.put(begin)
    actors = [remote.remote(work, begin) for _ in range(workers)]
    starting = {one.ready.remote(): index for index, one in enumerate(actors)}
    running: dict[Any, tuple[J, int]] = {}
    free: list[int] = []
    upcoming = next(jobs, None)
    try:
        while upcoming is not None or running:
            while free and upcoming is not None:
                index = free.pop()
                running[actors[index].work.remote(upcoming)] = upcoming, index
                upcoming = next(jobs, None)
            if upcoming is None:  # let go of what those hold that have nothing left to do, or not begun
                for index in {*free, *starting.values()} - {at_work for _, at_work in running.values()}:
                    ray.kill(actors[index])
                free, starting = [], {}
            (reference, *_), _ = ray.wait([*running, *starting])
            if reference in starting:
                free += [starting.pop(reference)] * ahead
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[-1].strip()[:300]  # before it, where it arose
                    raise SkipRNNError(f"a worker on the Ray cluster could not begin: {reason}") from error
                continue
            job, index = running.pop(reference)
            free.append(index)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                yield job, error
    finally:
        for one in actors:
            ray.kill(one)


class _Actor:
    """What runs on a node of the cluster; it sees files under the same path as whoever sends the jobs."""

    def __init__(self, work: Callable[[Any], Any], begin: Callable[[], object] | None) -> None:
        torch.set_num_threads(1)
        self._work = work
        if begin is not None:
            begin()

    def ready(self) -> None:
        """Answer once there is room for this actor."""

    def work(self, job: Any) -> Any:
        return self._work(job)
