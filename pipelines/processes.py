"""Processes of this machine that do jobs, any of which may bring its process down without harm to the others."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing

J = TypeVar("J")
R = TypeVar("R")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Died:
    """What comes of a job whose process died, even when it had one to itself."""


@contextmanager
def pool(
    workers: int,
    work: Callable[[J], R],
    *,
    ahead: int = 1,
    threads: int = 1,
    begin: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator["Pool[J, R]"]:
    """Start processes, which end with the block, or when this process is killed.

    Args:
        workers: how many.
        work: what to do with a job; a function of a module.
        ahead: jobs that a worker has in hand.
        threads: of torch in each.
        begin, arguments: a function, and what it is called with, in each process before its first job.
    """
    opened = Pool(workers, work, ahead, (threads, begin, arguments))
    try:
        yield opened
    except BaseException:
        opened.close(at_once=True)
        raise
    opened.close()


class Pool(Generic[J, R]):
    """What ``pool`` yields."""

    def __init__(self, workers: int, work: Callable[[J], R], ahead: int, start: tuple[Any, ...]) -> None:
        self._workers, self._work, self._in_hand, self._arguments = workers, work, workers * ahead, start
        self._executor, self._lifeline = self._start(workers)

    def map(self, jobs: Iterator[J]) -> Iterator[tuple[J, R | Died]]:
        """The results as they come; a job is taken when a worker is free for it."""
        running: dict[Future[R], J] = {}
        suspects: list[J] = []
        while True:
            if suspects and not running:  # a process died with one of these: which?
                job = suspects.pop()
                yield job, self._alone(job)
                continue
            while not suspects and len(running) < self._in_hand and (upcoming := next(jobs, None)) is not None:
                try:
                    running[self._executor.submit(self._work, upcoming)] = upcoming
                except BrokenProcessPool:  # by one of those that are running
                    suspects.append(upcoming)
            if not running and not suspects:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done if running else set()
            for future in done:
                job = running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    suspects.append(job)
            if suspects:
                suspects += running.values()
                running.clear()
                self.close()
                self._executor, self._lifeline = self._start(self._workers)

    def _alone(self, job: J) -> R | Died:
        executor, lifeline = self._start(1)
        try:
            return executor.submit(self._work, job).result()
        except BrokenProcessPool:
            return Died()
        finally:
            lifeline.close()
            executor.shutdown(cancel_futures=True)

    def close(self, *, at_once: bool = False) -> None:
        """End the processes, when they have done the jobs in hand or at once."""
        if at_once:
            self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()

    def _start(self, workers: int) -> tuple[ProcessPoolExecutor, Connection]:
        context = torch.multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            workers, context, initializer=_begin, initargs=(theirs, *self._arguments)
        )  # fmt: skip
        return executor, ours


def _begin(lifeline: Connection, threads: int, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process that wants the work decides
    threading.Thread(target=lambda: (wait_for([lifeline]), os._exit(1)), daemon=True).start()  # its other end is closed
    torch.set_num_threads(threads)
    if begin is not None:
        begin(*arguments)
