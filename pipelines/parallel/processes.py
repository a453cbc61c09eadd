"""Processes of this machine that do jobs, any of which may bring its process down without harm to the others."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any, Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    workers: int,
    work: Callable[[J], R],
    jobs: Iterator[J],
    *,
    ahead: int = 1,
    threads: int = 1,
    gpus: int = 0,
    begin: Callable[[], object] | None = None,
) -> Generator[tuple[J, R | Exception], None, None]:
    """Yield each job with what comes of it, or with the error of a process that died with it twice.

    The processes end with the generator, or when this process is killed.

    Args:
        workers: how many.
        work: what to do with a job; a function of a module.
        jobs: taken when a worker is free.
        ahead: jobs that a worker has in hand.
        threads: of torch in each.
        gpus: of this machine, shared out among them.
        begin: called in each process before its first job.
    """
    pool = [_Worker(work, (threads, number % gpus if gpus else None, begin)) for number in range(workers)]
    again: list[J] = []  # jobs whose process died, and those that waited behind them
    died: list[J] = []
    try:
        while True:
            for worker in pool:
                while len(worker.queue) < ahead:
                    job = again.pop() if again else next(jobs, None)
                    if job is None:
                        break
                    if not worker.take(job):
                        again.append(job)
                        break
            busy = [worker for worker in pool if worker.queue]
            if not busy:
                return
            done = wait([worker.queue[0][0] for worker in busy], return_when=FIRST_COMPLETED).done
            for worker in busy:
                future, job = worker.queue[0]
                if future not in done:
                    continue
                try:
                    result: R | Exception = future.result()
                    worker.queue.popleft()
                except BrokenProcessPool as error:
                    again += worker.restart()[1:]
                    if not any(job is other for other in died):
                        died.append(job)
                        again.append(job)
                        continue
                    result = error
                yield job, result
    except BaseException:  # also that nobody wants the rest
        for worker in pool:
            worker.lifeline.close()
        raise
    finally:
        for worker in pool:
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
            self._submit(job)
        except BrokenProcessPool:
            if self.queue:
                return False
            self.restart()  # it died idle
            self._submit(job)
        return True

    def _submit(self, job: J) -> None:
        with _interrupts_held():  # the first job starts the process
            self.queue.append((self._executor.submit(self._work, job), job))

    def restart(self) -> list[J]:
        """Start anew with an empty queue; the jobs that were in it are returned."""
        left = [job for _, job in self.queue]
        self.queue.clear()
        self.end()
        self._start()
        return left

    def end(self) -> None:
        """End the process when it has done what it is at."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self.lifeline.close()

    def _start(self) -> None:
        import torch.multiprocessing

        context = torch.multiprocessing.get_context("spawn")
        theirs, self.lifeline = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(theirs, *self._arguments))


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and never reaches a process that is started in it, imports included."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(lifeline: Connection, threads: int, gpu: int | None, begin: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process that wants the work decides
    threading.Thread(target=lambda: (wait_for([lifeline]), os._exit(1)), daemon=True).start()  # its other end is closed
    import torch  # takes seconds, in which the process must already end with its parent

    torch.set_num_threads(threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    if begin is not None:
        begin()
