"""The batches of training: a function of the seed and the step alone, so that a resumed run sees what it would have."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.data.features import FlatSequences
from pipelines.data.sequences import Sequences, Split, sent
from pipelines.errors import SkipRNNError
from pipelines.parallel.team import ALONE, Team
from pipelines.runs.config import TrainConfig
from pipelines.seeds import derive_seed, generator
from pipelines.tasks import SyntheticTask, Task

LOADERS = 2  # processes that read batches from a file too large for memory


def batches_after(
    step: int, config: TrainConfig, task: Task, splits: Mapping[str, Split], device: torch.device, team: Team = ALONE
) -> Iterator[Sequences]:
    """The batches that follow ``step``, without end, this process's part of each.

    Raises:
        SkipRNNError: batches are to be drawn, and the task cannot.
    """
    if config.fresh_batches:
        if not isinstance(task, SyntheticTask):
            raise SkipRNNError(
                f"the task {task.name} has no generator to draw fresh batches from; train on its data file"
            )
        while True:
            step += 1
            joint = task.sample(config.batch_size, generator(config.seed, "batch", step, device=device))
            yield joint if team.size == 1 else joint.take(team.part(config.batch_size))
    split, cpu = splits["train"], torch.device("cpu")
    if isinstance(split, FlatSequences) and split.streams:  # from the file, ahead of the step that needs them
        loader: DataLoader[Sequences] = DataLoader(
            replace(split, device=cpu),  # type: ignore[arg-type]
            sampler=_rows_after(step, len(split), config, team, cpu),
            batch_size=None,
            num_workers=LOADERS,
            multiprocessing_context="spawn",
            pin_memory=device.type == "cuda",
        )
        yield from (batch.sent(device) for batch in loader)
    else:
        yield from map(split.take, _rows_after(step, len(split), config, team, device))


def _rows_after(step: int, size: int, config: TrainConfig, team: Team, device: torch.device) -> Iterator[Tensor]:
    """The row numbers of the batches that follow ``step``, without end, an epoch's sent to a device at once."""
    while True:
        epoch, done = divmod(step, math.ceil(size / config.batch_size))
        order = np.random.default_rng(derive_seed(config.seed, "epoch", epoch)).permutation(size)
        for rows in torch.split(sent(torch.from_numpy(order), device), config.batch_size)[done:]:
            yield rows[team.part(len(rows))]
            step += 1
