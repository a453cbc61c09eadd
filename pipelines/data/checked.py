"""What of a large file was held against its digests, kept in a hidden file beside it: once is enough until it changes.

This is against accidents, not against somebody who can write there: that one can make new digests too.
"""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipelines.data.doors import read_json
from pipelines.data.files import write_text
from pipelines.errors import SkipRNNError

SETTLED = 2.0  # s without a change; clocks of file systems are as coarse as that, and a change within a tick is unseen


class Checked:
    """The parts of a file that were checked since it last changed."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path, self._digest = path, digest
        self._beside = path.with_name(f".{path.name}.checked")
        self._state = self._look()
        self.parts: set[str] = set()
        with suppress(SkipRNNError):
            noted = read_json(self._beside, dict, "")
            parts = noted.pop("parts", None)
            if noted == self._state and isinstance(parts, list):
                self.parts = {part for part in parts if isinstance(part, str)}

    def add(self, parts: Iterable[str]) -> None:
        """Note parts that were just found to be right, if the file is still as it was, and its folder takes notes."""
        self.parts |= set(parts)
        with suppress(OSError, SkipRNNError):
            if self._look() == self._state and time.time() - int(self._state["ctime_ns"]) / 1e9 > SETTLED:
                write_text(self._beside, json.dumps({**self._state, "parts": sorted(self.parts)}))

    def _look(self) -> dict[str, int | str]:
        status = os.stat(self._path)
        return {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "ctime_ns": status.st_ctime_ns,
            "inode": status.st_ino,
            "digest": self._digest,
        }
