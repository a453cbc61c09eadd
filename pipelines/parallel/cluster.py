"""A Ray cluster: one that is there, or one started on this machine for as long as it is needed."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import SkipRNNError


def require_ray() -> Any:
    """The module.

    Raises:
        SkipRNNError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise SkipRNNError("Ray is not installed; `pip install 'skiprnn[ray]'` or use --engine local") from error
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


def map_tasks(
    ray: Any, function: Callable[[Any], Any], jobs: Iterator[Any], *, at_once: int, retries: int, **share: float
) -> Iterator[tuple[Any, Any]]:
    """Yield each job with what ``function`` makes of it, or with the error of a worker that died too often.

    Args:
        ray: the module, connected.
        function: run on the cluster; again, if its worker dies.
        jobs: taken when there is room.
        at_once: how many are in hand.
        retries: of a job whose worker died.
        share: num_cpus and num_gpus of a job.
    """
    task = ray.remote(max_retries=retries, **share)(function)
    running: dict[Any, Any] = {}
    upcoming = next(jobs, None)
    while upcoming is not None or running:
        while upcoming is not None and len(running) < at_once:
            running[task.remote(upcoming)] = upcoming
            upcoming = next(jobs, None)
        (reference, *_), _ = ray.wait(list(running))
        job = running.pop(reference)
        try:
            yield job, ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            yield job, error
