"""How much memory there is for this process: the machine's, or less where a container or a job has its own limit."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import SkipRNNError

UNLIMITED = 2**60
CGROUPS = Path("/sys/fs/cgroup")
_BOUNDING = threading.Lock()


def available() -> int:
    """Bytes that this process could still take: what is free, within the limits of its control groups."""
    return min(_of_machine(), *_of_groups(), UNLIMITED)


def check_fits(size: int, what: str) -> None:
    """Refuse what memory does not hold.

    Args:
        size: bytes that would be taken.
        what: what would take them, the beginning of the message.

    Raises:
        SkipRNNError: there are not so many.
    """
    free = available()
    if size > free:
        raise SkipRNNError(
            f"{what} takes {in_words(size)} of memory, and {in_words(free)} are free; give it less, or run it where "
            "there is more"
        )


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Let no allocation in the block take the process beyond what it has and ``size`` bytes, where that can be had.

    For libraries that believe the sizes a file claims. Keep it short: it bounds the other threads too, one at a time.
    """
    taken = _address_space()
    if taken is None:
        yield
        return
    import resource

    with _BOUNDING:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = [limit for limit in (taken + size, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    """Bytes that the process has mapped; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def in_words(size: int) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:,.1f} TB"


def _of_machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return UNLIMITED


def _of_groups() -> list[int]:
    """What each control group above this process leaves to it; what it holds of files' pages can be taken back."""
    versions = (  # of control groups: the controller, its limit, what is taken, and what of that is files' pages
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    left = []
    for controller, limit, used, reclaimable in versions:
        for group in _groups(controller):
            with suppress(OSError, ValueError):  # "max": none
                most, now = int((group / limit).read_text()), int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left.append(max(most - now + int(stat.get(reclaimable, 0)), 0))
    return left


def _groups(controller: str) -> list[Path]:
    """The control groups of this process, the innermost first."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                root = CGROUPS / controller
                inner = root / path.lstrip("/")
                return [group for group in (inner, *inner.parents) if group == root or root in group.parents]
    return []
