"""A trained run: its network with the weights of one of its checkpoints, with or without a split of its data."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.parallel.devices import choose_device
from pipelines.runs.checkpoints import check_tensors, load_checkpoint
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import load_config, load_task
from pipelines.runs.edits import edits_of_config, refuse_edits
from pipelines.runs.model import build_model
from pipelines.tasks import Task, load_data, task_of_attributes
from skiprnn.engines import ON_GPUS
from skiprnn.networks import SequenceModel
from skiprnn.run_directory import tensors_of_network


@dataclass(frozen=True)
class TrainedModel:
    """A run's network with the weights of one of its checkpoints."""

    config: TrainConfig
    task: Task
    model: SequenceModel
    device: torch.device
    step: int
    data_digest: str  # of the data it was trained on


@dataclass(frozen=True)
class TrainedRun(TrainedModel):
    """The same with a split of its data."""

    sequences: Split  # on the device
    reordered: bool  # whether its columns stand in another order in the data file


def load_model(run: Path, *, checkpoint: str = "best", device: str | None = None) -> TrainedModel:
    """Load a trained network, without its data. Arguments and errors as for ``load_run``."""
    config = load_config(run)  # first of all, is it a run?
    saved = load_checkpoint(run, checkpoint)
    refuse_edits(run, edits_of_config(config, saved.progress))
    path = Path(run) / "task.json"
    attributes = load_task(run)
    task = task_of_attributes(attributes, path, config.task)  # which checks the types too
    if saved.progress.task not in (None, attributes):
        raise SkipRNNError(f"{path} was edited since the run was trained; `skiprnn train --resume {run}` restores it")
    where = choose_device(device or config.device)
    anywhere = config if where.type == "cuda" or config.engine not in ON_GPUS else replace(config, engine="auto")
    model = build_model(anywhere, task)
    weights = tensors_of_network(saved.tensors)
    check_tensors(weights, model.state_dict(), f"the checkpoint {checkpoint!r} of {run}")
    model.load_state_dict(weights)
    progress = saved.progress
    return TrainedModel(config, task, model.to(where).eval(), where, progress.step, progress.data_digest)


def load_run(
    run: Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    device: str | None = None,
) -> TrainedRun:
    """Load a trained network and a split of its data.

    Args:
        run: the run directory.
        split: "train", "val" or "test".
        checkpoint: "best" or "last".
        data: a data file instead of the run's own.
        device: a device instead of the run's own.

    Raises:
        SkipRNNError: the run, its checkpoint or its data cannot be read.
    """
    loaded = load_model(run, checkpoint=checkpoint, device=device)
    config, path = loaded.config, Path(data or loaded.config.data)
    _, file = load_data(path, loaded.task, (split,), true_lengths=config.true_lengths)
    if data is None and file.attributes["digest"] != loaded.data_digest:
        raise SkipRNNError(f"{path} was made anew since {run} was trained on it; to use it even so, pass --data {path}")
    return TrainedRun(**vars(loaded), sequences=file.splits[split].to(loaded.device), reordered=file.reordered)
