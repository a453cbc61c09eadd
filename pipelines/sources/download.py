"""Files from the network: checked by digest, kept whole or not at all."""

import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from pipelines.data.doors import file_digest
from pipelines.data.files import atomic_path
from pipelines.errors import SkipRNNError

BLOCK = 2**20
TIMEOUT = 60  # seconds without a byte


def download(
    urls: Sequence[str],
    path: Path,
    algorithm: str,
    digest: str,
    on_progress: Callable[[int], None] = lambda size: None,
    remedy: str = "Fetch it by other means and name its folder with --source",
) -> Path:
    """Fetch a file from the first address that gives the right one.

    Args:
        urls: mirrors, in order.
        path: where to put it.
        algorithm, digest: what the file must hash to.
        on_progress: called with the number of bytes just received.
        remedy: what the user can do where none gives it.

    Raises:
        SkipRNNError: no mirror gave the file.
    """
    failures = []
    for url in urls:
        try:
            with atomic_path(path) as temporary:
                with temporary.open("wb") as target:
                    for block in _blocks(url):
                        target.write(block)
                        on_progress(len(block))
                found = file_digest(temporary, algorithm)
                if found != digest:
                    raise ValueError(f"its {algorithm} is {found}, not {digest}")
            return path
        except (ValueError, SkipRNNError) as error:
            failures.append(f"{url}: {error}")
    raise SkipRNNError(f"cannot download {path.name}: {'; '.join(failures)}. {remedy}")


def _blocks(url: str) -> Iterator[bytes]:
    """What lies at an address. What goes wrong there is not what goes wrong with the file."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as source:
            while block := source.read(BLOCK):
                yield block
    except (OSError, HTTPException) as error:
        raise SkipRNNError(str(error)) from error
