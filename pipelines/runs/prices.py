"""What samples cost, in units of λ: 1 each, or more the later they come, or the more dear features they hold."""

import torch
from torch import Tensor

from pipelines.data.sequences import Sequences, Split
from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig


def prices(config: TrainConfig, x: Tensor) -> Tensor:
    """The price of each sample: 1 + growth·t, and what each dear feature costs whose value is not 0.

    Args:
        config: says which features are dear; 0 stands for one that was not measured.
        x: (B, T, D) as stored, or (B, T).

    Returns:
        (B, T), or (T,) where all sequences have the same, on the device of x.
    """
    price = 1 + config.cost_growth * torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    for feature, cost in config.dear_features.items():
        price = price + cost * (x[..., feature] != 0)
    return price


def check_prices(config: TrainConfig, split: Split) -> None:
    """Refuse prices of features that the data has not.

    Raises:
        SkipRNNError: saying which.
    """
    features = split.x.shape[2] if isinstance(split, Sequences) and split.x.dim() == 3 else 0
    for feature in config.dear_features:
        if feature >= features:
            has = f"features 0 to {features - 1}" if features else "no features that could be dear"
            raise SkipRNNError(f"there is no feature {feature} to have a cost: {config.data} has {has}")
