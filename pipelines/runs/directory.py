"""The run directory: who holds it, what it was asked to do, on what machine, and how it went.

config.json       the TrainConfig
task.json         the task, with the parameters of the data it was trained on
words.txt         where sequences are words: the vocabulary, a word a line, in the order of their numbers
environment.json  versions, device and command of each session of training, and what was edited by hand before it
metrics.jsonl     a line an evaluation
outcome.json      once training has ended: how
logs.json         what W&B or MLflow call the run, where it is logged there
result.json       after a sweep: the evaluation of the run
error.txt         in a sweep that an unforeseen error stopped: the traceback
checkpoints/      see checkpoints.py
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.data.doors import parse_json, read_json, read_text, reading
from pipelines.data.fields import check_fields
from pipelines.data.files import write_json, write_text
from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig

if sys.platform != "win32":
    import fcntl

CONFIG_SCHEMA = 1
CONTENTS = {
    "config.json", "task.json", "words.txt", "environment.json", "environment.json.damaged", "metrics.jsonl",
    "outcome.json", "result.json", "error.txt", "checkpoints", "tensorboard", "wandb", "logs.json", "usage.png",
    "usage.html", "model.onnx", "model.pt2", ".lock",
}  # fmt: skip
JSON_BYTES = 2**24  # of a JSON file in a run, at most
PATIENCE = 0.2  # s to wait for a lock, which is_held has for an instant


@dataclass(frozen=True)
class Record:
    """A line of metrics.jsonl: an evaluation."""

    step: int
    seconds: float
    train: dict[str, float]
    val: dict[str, float]
    epoch: float | None = None  # passes over the train split, where the length of training was given in them
    collapsed: bool = False  # the gate is shut and the metric lost, not for the first time
    rewound_to: int | None = None  # the step whose weights training goes on with
    lam: float | None = None  # where it is found while training; at most, where usage is to be near a target


@dataclass(frozen=True)
class Ending:
    """How training ended: outcome.json."""

    reason: str
    step: int
    best_step: int


def create_run(path: Path, config: TrainConfig, *, overwrite: bool = False) -> Path:
    """Make a run directory with its configuration; it appears whole or not at all.

    Args:
        path: the directory.
        config: from ``config.configure``; its data file need not be there yet.
        overwrite: replace a run that is there.

    Returns:
        ``path``.

    Raises:
        SkipRNNError: ``path`` exists and is not a run that may be overwritten, or it cannot be written.
    """
    check_run_path(path, overwrite=overwrite)
    target = Path(path).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True)
        with hidden as work:
            new, old = Path(work) / "new", Path(work) / "old"
            new.mkdir()
            write_json(new / "config.json", {"schema": CONFIG_SCHEMA, **asdict(config)})
            try:
                if target.exists():
                    with lock_run(target):
                        target.rename(old)
                new.rename(target)
            finally:
                if old.exists() and not target.exists():
                    old.rename(target)
    except OSError as error:
        raise SkipRNNError(f"cannot make the run directory {path}: {error.strerror}; choose another --out") from error
    return Path(path)


def check_run_path(path: Path, *, overwrite: bool) -> None:
    """Refuse a path where ``create_run`` could not make a run without harm.

    Raises:
        SkipRNNError: ``path`` exists and may not be overwritten, or holds more than a run.
    """
    path = Path(path)
    if not path.exists():
        return
    if not overwrite:
        raise SkipRNNError(
            f"{path} exists already; continue it with --resume {path}, pass --overwrite or choose another --out"
        )
    try:
        load_config(path)
    except SkipRNNError as error:
        raise SkipRNNError(f"{path} exists and is no run to overwrite ({error}); choose another --out") from error
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in CONTENTS)
    if foreign:
        raise SkipRNNError(f"{path} holds more than its run ({', '.join(foreign)}); move that or choose another --out")


def default_run_path(config: TrainConfig, root: Path) -> Path:
    """A new name under ``root`` that says what was trained, and when."""
    lam = f"-lam{config.lam:g}" if config.lam else ""
    stem = f"{config.task}-{config.file_name}{lam}-seed{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = root / stem, 1
    while path.exists():
        count += 1
        path = root / f"{stem}-{count}"
    return path


def newest_run(root: Path) -> Path:
    """The run under ``root`` that was trained last.

    Raises:
        SkipRNNError: there is none.
    """
    written = [(state.stat().st_mtime_ns, state.parent.parent) for state in root.glob("*/checkpoints/last.json")]
    if not written:
        raise SkipRNNError(
            f"no run with a checkpoint in {root}/; make one with `skiprnn train` or name a run directory"
        )
    return max(written)[1]


def load_config(run: Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
        SkipRNNError: ``run`` is no run directory, or its configuration is damaged or from another schema.
    """
    path = Path(run) / "config.json"
    if not os.path.lexists(path):
        raise SkipRNNError(f"{run} is not a run directory (it has no config.json); make one with `skiprnn train`")
    remedy = "restore it, or train the run again"
    options = read_json(path, dict, remedy, limit=JSON_BYTES)
    with reading(path, "a run's configuration", remedy):
        if "schema" not in options:
            raise ValueError("it lacks schema")
        schema = options.pop("schema")
        if schema != CONFIG_SCHEMA:
            raise SkipRNNError(f"{path} has schema {schema!r:.60}, this skiprnn reads {CONFIG_SCHEMA}; {remedy}")
        check_fields(TrainConfig, options)
        try:
            return TrainConfig(**options)  # a field that came later has its default; edits.py sees what was taken out
        except SkipRNNError as error:
            raise ValueError(str(error)) from error


def record_task(run: Path, attributes: dict[str, Any]) -> None:
    """Write ``task.json``, so that the run can be used without its data."""
    write_json(Path(run) / "task.json", attributes)


def load_task(run: Path) -> dict[str, Any]:
    """The contents of ``task.json``, in the shape of a data file's attributes.

    Raises:
        SkipRNNError: there is none, or it is damaged.
    """
    return read_json(Path(run) / "task.json", dict, f"`skiprnn train --resume {run}` writes it", limit=JSON_BYTES)


def record_words(run: Path, words: Iterable[str]) -> None:
    """Write ``words.txt``."""
    write_text(Path(run) / "words.txt", "".join(word + "\n" for word in words))


def load_words(run: Path) -> list[str]:
    """The vocabulary of a run.

    Raises:
        SkipRNNError: it has none.
    """
    path = Path(run) / "words.txt"
    return read_text(path, "UTF-8 text", f"`skiprnn train --resume {run}` writes it").split("\n")[:-1]


def extend_run(run: Path, **options: Any) -> TrainConfig:
    """Change how long, or where, a run goes on training."""
    config = replace(load_config(run), **options)
    write_json(Path(run) / "config.json", {"schema": CONFIG_SCHEMA, **asdict(config)})
    return config


def record_outcome(run: Path, outcome: dict[str, Any]) -> None:
    """Write ``outcome.json``."""
    write_json(Path(run) / "outcome.json", outcome)


def load_outcome(run: Path) -> dict[str, Any] | None:
    """The contents of ``outcome.json``; None where training has not ended."""
    path, remedy = Path(run) / "outcome.json", f"`skiprnn train --resume {run}` mends it"
    if not os.path.lexists(path):
        return None
    outcome = read_json(path, dict, remedy, limit=JSON_BYTES)
    with reading(path, "the end of a training", remedy):
        check_fields(Ending, outcome)
    return outcome


def forget_outcome(run: Path) -> None:
    """Remove ``outcome.json``: training goes on."""
    path = Path(run) / "outcome.json"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SkipRNNError(f"cannot remove {path}: {error.strerror}; remove it yourself") from error


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold a run directory; the lock falls with the process, however it ends.

    Raises:
        SkipRNNError: another process holds it, or it cannot be written.
    """
    if not os.path.isdir(run):  # which some versions of filelock would make
        raise SkipRNNError(f"{run} is not a run directory; make one with `skiprnn train`")
    try:
        lock = FileLock(Path(run) / ".lock").acquire(timeout=PATIENCE, poll_interval=PATIENCE / 20)
    except Timeout as error:
        raise SkipRNNError(f"{run} is in use by another process; wait for it or choose another --out") from error
    except OSError as error:
        raise SkipRNNError(f"cannot write in {run}: {error.strerror}; check its permissions") from error
    with lock:
        yield


def is_held(run: Path) -> bool:
    """Whether a process of this machine holds a run directory."""
    if sys.platform == "win32":
        return False
    try:
        handle = os.open(Path(run) / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def record_environment(run: Path, config: TrainConfig, step: int, edits: dict[str, Any]) -> None:
    """Add to ``environment.json`` where training goes on from ``step``, and what was edited by hand before.

    What cannot be read is kept beside it, as ``environment.json.damaged``: it is a note, which no training waits for.
    """
    import torch

    import skiprnn

    path = Path(run) / "environment.json"
    sessions: list[Any] = []
    try:
        if os.path.lexists(path):
            sessions = read_json(path, list, "", limit=JSON_BYTES)
    except SkipRNNError:
        try:
            path.replace(path.with_name("environment.json.damaged"))
        except OSError as error:
            raise SkipRNNError(f"cannot move {path}, which is damaged: {error.strerror}; remove it") from error
    session = {
        "from_step": step,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "skiprnn": skiprnn.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if config.device != "cpu" and torch.cuda.is_available() else None,
        **({"accepted_edits": edits} if edits else {}),
    }
    write_json(path, [*sessions, session])


def remove_leftovers(run: Path) -> None:
    """Remove the temporary files of a process that was killed."""
    for folder in (Path(run), Path(run) / "checkpoints"):
        for kind in ("*.json", "*.jsonl", "step-*.safetensors", "words.txt", "usage.*", "model.*"):
            for path in folder.glob(f".{kind}.*"):
                path.unlink(missing_ok=True)


def append_metrics(run: Path, record: dict[str, Any], digest: str = "") -> str:
    """Add a line to ``metrics.jsonl``; from the digest of the lines before, return that of all."""
    path, line = Path(run) / "metrics.jsonl", json.dumps(record)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SkipRNNError(f"cannot write {path}: {error.strerror}; check permissions and free space") from error
    return _with_line(digest, line)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without one that a killed process left half-written.

    Raises:
        SkipRNNError: a line is no evaluation.
    """
    return [record for _, record in _lines(run)]


def metrics_digest(run: Path, step: int) -> str:
    """The digest of the lines of ``metrics.jsonl`` up to ``step``. Errors as for ``read_metrics``."""
    digest = ""
    for line, record in _lines(run):
        if record["step"] <= step:
            digest = _with_line(digest, line)
    return digest


def rewind_metrics(run: Path, step: int) -> None:
    """Forget what was logged after ``step``: training goes on from there. Errors as for ``read_metrics``."""
    kept = "".join(line + "\n" for line, record in _lines(run) if record["step"] <= step)
    write_text(Path(run) / "metrics.jsonl", kept)


def _lines(run: Path) -> list[tuple[str, dict[str, Any]]]:
    path, found = Path(run) / "metrics.jsonl", []
    if not os.path.lexists(path):
        return []
    remedy = f"restore it, or remove it and `skiprnn train --resume {run} --accept-edits`"
    for number, line in enumerate(read_text(path, "UTF-8 text", remedy).split("\n")[:-1], start=1):
        with reading(path, f"a log of evaluations, in line {number}", remedy):
            record = parse_json(line, dict)
            check_fields(Record, record)
            if missing := {"metric", "used_mean"} - record["val"].keys():
                raise ValueError(f"val lacks {min(missing)}")
            found.append((line, record))
    return found


def _with_line(digest: str, line: str) -> str:
    return hashlib.sha256(f"{digest}{line}\n".encode()).hexdigest()
