"""The gradients of a model in two processes of DistributedDataParallel, each with half of the batch."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skiprnn import SkipLSTM, budget_loss


class Model(nn.Module):
    """A Skip LSTM of two layers and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rnn = SkipLSTM(3, 4, 2, update_bias=-1.0, dtype=torch.float64)
        self.head = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, _, update_gate = self.rnn(x)
        return self.head(output[-1]), update_gate


def gradients(model: nn.Module, x: Tensor) -> list[list[float]]:
    """Of the mean loss of the sequences, budget included, by each parameter."""
    prediction, update_gate = model(x)
    (prediction.square().mean() + budget_loss(update_gate, 0.1, batch_first=False)).backward()
    return [parameter.grad.flatten().tolist() for parameter in model.parameters() if parameter.grad is not None]


def batch() -> Tensor:
    """Of six sequences."""
    return torch.randn(15, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients_of_half(rank: int, folder: Path) -> list[list[float]]:
    """What one of two processes that meet in a folder has after both have exchanged their gradients."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model = DistributedDataParallel(Model(seed=rank))  # which takes the weights of the first
        return gradients(model, batch()[:, rank::2])
    finally:
        torch.distributed.destroy_process_group()
