"""One training run in several processes, as torchrun starts them: each does its part of every batch.

Sums of gradients and of what is measured go over all processes, so that the run is the one that a single process would
make of the joint batch; the first process alone writes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.errors import SkipRNNError
from pipelines.parallel.devices import choose_device

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a run; by default this one alone."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process: of several GPUs one each.

        Raises:
            SkipRNNError: there is no such device, or there are fewer GPUs than processes.
        """
        device = choose_device(name)
        if self.size > 1 and device.type == "cuda":
            gpus, number = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
            if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus:
                raise SkipRNNError(
                    f"more processes than this machine's {gpus} GPUs; give torchrun --nproc-per-node {gpus}"
                )
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        return device

    def part(self, size: int) -> slice:
        """This process's rows of so many."""
        return slice(self.rank * size // self.size, (self.rank + 1) * size // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, which each receives."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of all processes; one that has none counts as zero."""
        if self.size == 1:
            return
        given = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in given]
        joint = torch.split(self.sum(torch.cat(grads)), [p.numel() for p in given])
        for parameter, grad in zip(given, joint, strict=True):
            parameter.grad = grad.view_as(parameter)

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, value: T) -> T:
        """The first process's value."""
        return self.gather(value)[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so for any."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Until everyone is here."""
        self.gather(None)


ALONE = Team()


@contextmanager
def team_of_environment() -> Iterator[Team]:
    """The team that torchrun put this process into, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield Team()
        return
    if dist.is_initialized():
        yield Team(dist.get_rank(), dist.get_world_size())
        return
    # First, lest it bind the group as a default argument: a group that outlives destroy_process_group aborts the exit.
    import torch.distributed.nn

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    team = Team(dist.get_rank(), dist.get_world_size())
    try:
        yield team
        team.wait()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()
