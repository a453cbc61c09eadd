"""Files of HDF5: how they are written, so that a full disk or Ctrl-C leaves none behind, and what says what they are.

Attributes of the root: ``schema``, ``schema_version``, ``task``, the task's parameters, ``seed``, ``version`` (of
skiprnn) and ``digest``, of all that the file holds.
"""

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h5py

from pipelines.data.files import atomic_path
from pipelines.data.hdf5 import Hdf5, open_hdf5
from pipelines.errors import SkipRNNError
from skiprnn import __version__

SEQUENCES, FEATURES = "skiprnn-sequences", "skiprnn-features"  # schemas; the second is features.py's
SCHEMA_VERSION = 1  # of both
REMEDY = "generate it again with --overwrite, or name another with --data"


def schema_of(path: Path) -> str | None:
    """Which of the schemas a file is of, in whatever state; None where of none."""
    try:
        with closing(open_hdf5(path, REMEDY)) as file:
            schema = file.attributes().get("schema")
            return str(schema) if schema in (SEQUENCES, FEATURES) else None
    except SkipRNNError:
        return None


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a data file, checked against the schema.

    Raises:
        SkipRNNError: there is no such file, or it is not an intact data file of this schema.
    """
    with open_data(path, SEQUENCES, FEATURES) as file:
        return file.attributes()


@contextmanager
def open_data(path: Path, *schemas: str) -> Iterator[Hdf5]:
    """Open a file of one of the schemas for reading.

    Raises:
        SkipRNNError: it is missing, foreign, or found damaged while it is open.
    """
    if not os.path.exists(path):
        raise SkipRNNError(
            f"no data file {path}; make one with `skiprnn gen-data` or `skiprnn extract-features`, or name another "
            "with --data"
        )
    with closing(open_hdf5(path, REMEDY)) as file:
        attributes = file.attributes()
        if attributes.get("schema") not in schemas:
            raise SkipRNNError(f"{path} is not a skiprnn data file; make one with `skiprnn gen-data`")
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise SkipRNNError(
                f"{path} has schema version {attributes.get('schema_version')}, this skiprnn reads {SCHEMA_VERSION}; "
                "generate it again with `skiprnn gen-data --overwrite`"
            )
        for key in ("task", "digest"):
            if not isinstance(attributes.get(key), str):
                raise SkipRNNError(f"{path} does not say its {key}, so it was never finished; {REMEDY}")
        yield file


@contextmanager
def hdf5_writer(path: Path, *, overwrite: bool) -> Iterator[tuple[h5py.File, "PatientFile"]]:
    """Open a new HDF5 file, which appears at ``path`` whole or not at all, and the file under it, to be checked."""
    with atomic_path(path, overwrite=overwrite) as temporary, PatientFile(temporary, "w+") as disk:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.check()


def describe(file: h5py.File, schema: str, attributes: dict[str, Any]) -> None:
    """Give a new file its attributes."""
    ours = {"schema": schema, "schema_version": SCHEMA_VERSION, "version": __version__}
    for key, value in {**ours, **attributes}.items():
        file.attrs[key] = value


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: what they raise in the midst of HDF5 would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    before = {number: signal.signal(number, lambda n, frame: arrived.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)


class PatientFile(io.FileIO):
    """A file under HDF5, which crashes the process when a write fails: keeps the error for ``check`` to raise.

    What was not written reads as zeros, as HDF5's own drivers have it; h5py's leaves memory as it was, and a crash.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:  # Ctrl-C too must not go through HDF5
            self.error = error
        return size

    def readinto(self, buffer: Any) -> int:
        rest = memoryview(buffer).cast("B")
        size = len(rest)
        while rest and (count := super().readinto(rest)):
            rest = rest[count:]
        rest[:] = bytes(len(rest))
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except BaseException as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        if self.error is not None:
            raise self.error
