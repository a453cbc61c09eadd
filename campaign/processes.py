"""Commands in processes forked from one that has imported everything: started in milliseconds, watched, and ended."""

import codecs
import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import pkgutil
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

HANG = 20.0  # s
MEMORY = 2 * 2**30  # bytes above the start
POLL = 0.02  # s between looks at a command's memory
SHOWN = 1_000_000  # bytes kept of an output
NOBODY = 65534
CLOSED = "closed"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str
    seconds: float
    peak: int  # bytes above the start
    hung: bool = False


def warm() -> None:
    """Import what commands import, with one thread each: a pool of threads would not live through a fork."""
    import matplotlib as mpl
    import torch
    from PIL import Image

    import pipelines
    import skiprnn_cli

    mpl.use("Agg")
    for package in (pipelines, skiprnn_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in ("utf-8-sig", "idna", "ascii", "latin-1"):
        codecs.lookup(name)  # which another user could not import from here
    Image.init()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # pages that the collector does not touch stay shared
    _join_pages()


def _join_pages() -> None:
    """Keep the process's memory in large pages, where the kernel can: a fork then has a tenth of the tables to copy."""
    size = 2**21
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_, inode = line.split(maxsplit=5)[:5]
        first, last = (int(end, 16) for end in place.split("-"))
        first, last = -(-first // size) * size, last // size * size
        if rights.startswith("rw") and inode == "0" and first < last:
            for advice in (14, 25):  # MADV_HUGEPAGE, MADV_COLLAPSE
                madvise(first, last - first, advice)


class Running:
    """A command at work.

    Args:
        arguments: of ``skiprnn``.
        folder: where it runs.
        stdin: what it reads.
        stdout: a file instead of memory, or CLOSED.
        file_limit: bytes a file may grow to, which stands in for a full disk.
        user: to run as.
        gate: the reading end of a pipe, at whose end it starts.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        stdin: bytes = b"",
        stdout: str | int | None = None,
        file_limit: int | None = None,
        user: int | None = None,
        gate: tuple[int, int] | None = None,
    ) -> None:
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        self._files[0].write(stdin)
        self._files[0].seek(0)
        self._start = _memory(os.getpid())
        self._began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_command(arguments, folder, self._files, stdout, file_limit, user, gate)

    def wait(self, *, seconds: float = HANG, memory: int = MEMORY, kill_after: float | None = None) -> Done:
        """Wait for its end, or end it; ``kill_after`` so many seconds by SIGKILL, alone, as the kernel would."""
        limit = seconds if kill_after is None else kill_after
        hung, peak = False, 0
        watch = os.pidfd_open(self.pid)
        try:
            while True:
                left = limit - (time.monotonic() - self._began)
                if select.select([watch], [], [], max(min(POLL, left), 0))[0]:
                    break
                peak = max(peak, _memory(self.pid) - self._start)
                if left <= 0 or peak > memory:
                    hung = left <= 0 and kill_after is None
                    break
        finally:
            os.close(watch)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
            _end_group(self.pid, patience=5 if kill_after is not None else 0)
        peak = max(peak, usage.ru_maxrss * 1024 - self._start)
        out, err = (_text(file) for file in self._files[1:])
        return Done(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self._began, peak, hung)


def run(arguments: Sequence[str], folder: Path, *, seconds: float = HANG, **how: Any) -> Done:
    """Run a command to its end."""
    return Running(arguments, folder, **how).wait(seconds=seconds)


def together(commands: Sequence[Sequence[str]], folder: Path) -> list[Done]:
    """Run commands that all start at one moment."""
    gate = os.pipe()
    started = [Running(arguments, folder, gate=gate) for arguments in commands]
    for end in gate:
        os.close(end)
    return [one.wait() for one in started]


def _be_the_command(
    arguments: Sequence[str],
    folder: Path,
    files: list[IO[bytes]],
    stdout: str | int | None,
    file_limit: int | None,
    user: int | None,
    gate: tuple[int, int] | None,
) -> None:
    """What the forked process does; it never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        if stdout == CLOSED:
            os.close(1)
        elif stdout is not None:
            os.dup2(os.open(stdout, os.O_WRONLY) if isinstance(stdout, str) else stdout, 1)
        sys.stdin, sys.stderr = _stream(0, "r", "surrogateescape"), _stream(2, "w", "backslashreplace")
        sys.stdout = None if stdout == CLOSED else _stream(1, "w", "strict")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        if gate is not None:
            os.close(gate[1])
            os.read(gate[0], 1)
        from skiprnn_cli.main import cli

        sys.argv = ["skiprnn", *arguments]
        try:
            cli.main(list(arguments), prog_name="skiprnn")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError as error:  # as the interpreter says at its end
                print(f"Exception ignored: {error!r}", file=sys.stderr)
                code = 120
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _stream(number: int, mode: str, errors: str) -> TextIO:
    """A standard stream as the interpreter opens it where the locale is one of UTF-8."""
    return cast(TextIO, open(number, mode, encoding="utf-8", errors=errors, closefd=False))


def _memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _end_group(pid: int, patience: float) -> None:
    """Let what the command started end by itself, and end it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        late = time.monotonic() + patience
        while time.monotonic() < late:
            os.killpg(pid, 0)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(SHOWN).decode("utf-8", errors="replace")


def in_lanes(work: Callable[[T], R], items: Sequence[T], lanes: int) -> Iterator[tuple[T, R]]:
    """The results of a function as they come, worked out by so many forked processes."""
    context, waiting = multiprocessing.get_context("fork"), list(enumerate(items))[::-1]
    ends: dict[Connection, Any] = {}
    for _ in range(min(lanes, len(items))):
        ours, theirs = context.Pipe()
        process = context.Process(target=_lane, args=(theirs, [ours, *ends], work, items))
        process.start()
        theirs.close()
        ends[ours] = process
        ours.send(waiting.pop()[0])
    busy = set(ends)
    try:
        while busy:
            ready = wait(list(busy))
            for end in [end for end in busy if end in ready]:
                number, result, failure = end.recv()
                if failure:
                    raise RuntimeError(f"the campaign itself failed at {items[number]}:\n{failure}")
                if waiting:
                    end.send(waiting.pop()[0])
                else:
                    busy.discard(end)
                yield items[number], result
    finally:
        for end, process in ends.items():
            end.close()
            process.join(2 * HANG)


def _lane(end: Connection, others: list[Connection], work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    for other in others:
        other.close()  # so that the end of the campaign is the end of the lane
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            number = end.recv()
            try:
                end.send((number, work(items[number]), ""))
            except Exception:
                end.send((number, None, traceback.format_exc()))
