"""What was edited by hand in a run: its config.json and metrics.jsonl held against what its checkpoints say of them."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.errors import SkipRNNError
from pipelines.runs.checkpoints import NAMES, Progress, load_checkpoint, save_checkpoint
from pipelines.runs.config import MAY_CHANGE, TrainConfig
from pipelines.runs.directory import metrics_digest

LOG = "metrics.jsonl"

Edits = dict[str, tuple[Any, Any]]
"""What was and what is, by the field's name; digests for LOG."""


def edits_of_config(config: TrainConfig, progress: Progress) -> Edits:
    """Fields that are not as the checkpoint was trained with, those that may change left out."""
    now = asdict(config)
    was = {name: value for name, value in (progress.config or {}).items() if name not in MAY_CHANGE}
    return {name: (value, now.get(name)) for name, value in was.items() if value != now.get(name)}


def edits_of_run(run: Path, config: TrainConfig, progress: Progress) -> Edits:
    """The same, and whether the log up to the checkpoint is another.

    Raises:
        SkipRNNError: the log cannot be read.
    """
    edits = edits_of_config(config, progress)
    digest = metrics_digest(run, progress.step)
    if progress.config is not None and digest != progress.metrics_digest:
        edits[LOG] = progress.metrics_digest, digest
    return edits


def refuse_edits(run: Path, edits: Edits) -> None:
    """Refuse to go on with what was edited.

    Raises:
        SkipRNNError: there is something, which the message names.
    """
    said = [f"{name} in config.json was {was!r}, now {now!r}" for name, (was, now) in edits.items() if name != LOG]
    if LOG in edits:
        said.append(f"{LOG} has other lines than training wrote")
    if said:
        raise SkipRNNError(
            f"{run} was edited since it was trained ({'; '.join(said)}); put it back, or take it as it is with "
            f"`skiprnn train --resume {run} --accept-edits`"
        )


def accept_edits(run: Path, config: TrainConfig) -> None:
    """Make the checkpoints say that they were trained with what config.json and metrics.jsonl say now."""
    for name in NAMES:
        try:
            saved = load_checkpoint(run, name)
        except SkipRNNError:
            continue  # there is no best one yet, or it is damaged
        digest = metrics_digest(run, saved.progress.step)
        progress = replace(saved.progress, config=asdict(config), metrics_digest=digest)
        save_checkpoint(run, (name,), replace(saved, progress=progress))
