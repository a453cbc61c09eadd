"""Processes of this machine that do jobs, any of which may bring its process down without harm to the others."""

import os
import signal
import threading
from collections import deque
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
    """What comes of a job whose process died, and the next one's too."""


@contextmanager
def pool(
    workers: int,
    work: Callable[[J], R],
    *,
    ahead: int = 1,
    threads: int = 1,
    gpus: int = 0,
    begin: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator["Pool[J, R]"]:
    """Start processes, which end with the block, or when this process is killed.

    Args:
        workers: how many.
        work: what to do with a job; a function of a module.
        ahead: jobs that a worker has in hand.
        threads: of torch in each.
        gpus: of this machine, shared out among them.
        begin, arguments: a function, and what it is called with, in each process before its first job.
    """
    opened = Pool(
        [_Worker(work, (threads, number % gpus if gpus else None, begin, arguments)) for number in range(workers)],
        ahead,
    )
    try:
        yield opened
    except BaseException:
        opened.close(at_once=True)
        raise
    opened.close()


class Pool(Generic[J, R]):
    """What ``pool`` yields."""

    def __init__(self, workers: list["_Worker[J, R]"], ahead: int) -> None:
        self._workers, self._ahead = workers, ahead

    def map(self, jobs: Iterator[J]) -> Iterator[tuple[J, R | Died]]:
        """The results as they come; a job is taken when a worker is free for it."""
        again: list[J] = []  # jobs whose process died, and those that waited behind them
        died: list[J] = []
        while True:
            for worker in self._workers:
                while len(worker.queue) < self._ahead:
                    job = again.pop() if again else next(jobs, None)
                    if job is None:
                        break
                    if not worker.take(job):
                        again.append(job)
                        break
            busy = [worker for worker in self._workers if worker.queue]
            if not busy:
                return
            done = wait([worker.queue[0][0] for worker in busy], return_when=FIRST_COMPLETED).done
            for worker in busy:
                future, job = worker.queue[0]
                if future not in done:
                    continue
                try:
                    result = future.result()
                except BrokenProcessPool:
                    again += [waiting for _, waiting in worker.restart()[1:]]
                    if any(job is other for other in died):
                        yield job, Died()
                    else:
                        died.append(job)
                        again.append(job)
                    continue
                worker.queue.popleft()
                yield job, result

    def close(self, *, at_once: bool = False) -> None:
        """End the processes, when they have done the jobs in hand or at once."""
        for worker in self._workers:
            if at_once:
                worker.lifeline.close()
        for worker in self._workers:
            worker.end()


class _Worker(Generic[J, R]):
    """An executor of one process, which does its jobs in turn: it dies with the first of them."""

    def __init__(self, work: Callable[[J], R], start: tuple[Any, ...]) -> None:
        self._work, self._arguments = work, start
        self.queue: deque[tuple[Future[R], J]] = deque()
        self._start()

    def take(self, job: J) -> bool:
        """Queue a job; false if the process died with one before it."""
        try:
            self.queue.append((self._executor.submit(self._work, job), job))
        except BrokenProcessPool:
            if self.queue:
                return False
            self.restart()  # it died idle
            self.queue.append((self._executor.submit(self._work, job), job))
        return True

    def restart(self) -> list[tuple[Future[R], J]]:
        """Start anew with an empty queue; what was in it is returned."""
        left = list(self.queue)
        self.queue.clear()
        self.end()
        self._start()
        return left

    def end(self) -> None:
        """End the process when it has done what it is at."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self.lifeline.close()

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        theirs, self.lifeline = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(theirs, *self._arguments))


def _begin(
    lifeline: Connection, threads: int, gpu: int | None, begin: Callable[..., None] | None, arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process that wants the work decides
    threading.Thread(target=lambda: (wait_for([lifeline]), os._exit(1)), daemon=True).start()  # its other end is closed
    torch.set_num_threads(threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    if begin is not None:
        begin(*arguments)
