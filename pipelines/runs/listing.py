"""The runs of a folder at a glance: small files alone are read, and neither torch nor the data is needed."""

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.doors import read_json, read_text
from pipelines.errors import SkipRNNError
from pipelines.runs.config import METRICS
from pipelines.runs.directory import JSON_BYTES, is_held, load_config, load_outcome


@dataclass(frozen=True)
class RunSummary:
    """What a run's files tell of it; None where they do not."""

    run: str  # its directory
    state: str  # "running", "finished", "collapsed", "interrupted", "untrained" or "damaged"
    age: float  # s since its last checkpoint, or since it was made
    task: str | None = None
    model: str | None = None
    budget: str | None = None  # what is asked of the number of samples
    step: int | None = None
    total_steps: int | None = None  # None where epochs are counted and have not come to their end
    epochs: int | None = None
    metric_name: str | None = None
    metric: float | None = None  # of the best checkpoint on the validation split
    used_samples: float | None = None  # a sequence, as above
    best_step: int | None = None


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder, or in its subfolder ``runs`` as sweeps have it, those first that were trained last.

    Args:
        folder: what holds run directories, or a run directory.

    Raises:
        SkipRNNError: it is no folder.
    """
    if not folder.is_dir():
        raise SkipRNNError(f"no folder {folder}; `skiprnn train` makes runs/, or name another folder")
    configs = (path for pattern in ("", "*/", "runs/*/") for path in folder.glob(f"{pattern}config.json"))
    now = time.time()  # one for all, lest those looked at first seem younger
    runs = [summarise(config.parent, now) for config in configs]
    return sorted(runs, key=lambda run: (run.age, run.run))


def summarise(run: Path, now: float | None = None) -> RunSummary:
    """What the files of a run tell at some time; one that cannot be read is "damaged"."""
    age = max((time.time() if now is None else now) - _last_written(run), 0.0)
    try:
        config, outcome = load_config(run), load_outcome(run)
        step, best_step = _steps(run)
        records = _records(run)
    except SkipRNNError:
        return RunSummary(str(run), "damaged", age)
    if is_held(run):
        state = "running"
    elif outcome is not None:
        state = "collapsed" if outcome["reason"] == "collapsed" or _has_collapsed(records) else "finished"
    else:
        state = "untrained" if not step else "interrupted"
    val = records.get(best_step, {}).get("val", {})
    is_whole = outcome is not None and outcome["reason"] == "finished"
    return RunSummary(
        str(run),
        state,
        age,
        config.task,
        config.model_name,
        config.budget_name if config.skip else None,
        step,
        step if config.steps is None and is_whole else config.steps,
        config.epochs,
        METRICS[config.task],
        val.get("metric"),
        val.get("used_mean"),
        best_step or None,
    )


def _last_written(run: Path) -> float:
    times = [0.0]
    for name in ("config.json", "metrics.jsonl", "checkpoints/last.json"):
        with suppress(OSError):
            times.append((run / name).stat().st_mtime)
    return max(times)


def _steps(run: Path) -> tuple[int, int]:
    """The step of the last checkpoint, and that of the best one; 0 where there is none."""
    path = run / "checkpoints" / "last.json"
    if not path.exists():
        return 0, 0
    numbers = read_json(path, dict, "", limit=JSON_BYTES).get("numbers")
    if isinstance(numbers, dict):
        step, best_step = numbers.get("step"), numbers.get("best_step")
        if isinstance(step, int) and isinstance(best_step, int):
            return step, best_step
    raise SkipRNNError(f"{path} has no step")


def _records(run: Path) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by step, checked no more than is needed to show them."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return {}
    try:
        lines = [json.loads(line) for line in read_text(path, "UTF-8 text", "").split("\n")[:-1]]
        found: dict[int, dict[str, Any]] = {
            int(line["step"]): {
                "val": {name: float(line["val"][name]) for name in ("metric", "used_mean")},
                "collapsed": line.get("collapsed") is True,
            }
            for line in lines
        }
        if not all(math.isfinite(value) for record in found.values() for value in record["val"].values()):
            raise ValueError("a value is not finite")
        return found
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError) as error:
        raise SkipRNNError(f"{path} is no log of evaluations") from error


def _has_collapsed(records: dict[int, dict[str, Any]]) -> bool:
    """Whether the last evaluation found the gate shut and the metric lost."""
    return bool(records) and bool(records[max(records)]["collapsed"])
