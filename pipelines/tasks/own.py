"""A task from one's own sequences: classes or a number to each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import FINITE, ClassificationTask, RegressionTask, Task, class_names, finite_numbers


class Standardize(nn.Module):
    """(x - mean) / std of each feature, as the training split has them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class _Own(Task):
    """Fields are JSON texts where HDF5 attributes would not hold them."""

    features: int = 1
    mean: str = "[0.0]"  # of each feature, over the training split
    std: str = "[1.0]"

    def __post_init__(self) -> None:
        mean, std = finite_numbers(self.mean), finite_numbers(self.std)
        if not len(mean) == len(std) == self.features or not all(value > 0 for value in std):
            raise SkipRNNError(f"mean and std, above 0, must have a number for each of the {self.features} features")

    @property
    def input_size(self) -> int:
        """Features of a step."""
        return self.features

    def embedding(self) -> nn.Module:
        return Standardize(finite_numbers(self.mean), finite_numbers(self.std))

    def with_padding(self, sequences: Split) -> Split:
        return sequences  # one's own sequences end where they end

    def signal(self, x: Tensor) -> Tensor:
        return x[:, 0]


@dataclass(frozen=True)
class OwnClasses(ClassificationTask, _Own):
    """Which class is a sequence of? Cross-entropy and accuracy."""

    classes: str = '["0", "1"]'  # their names

    name = "own-classes"
    signal_name = "feature 0"
    meaning = ("features", "classes")

    def __post_init__(self) -> None:
        super().__post_init__()
        class_names(self.classes)

    @property
    def output_size(self) -> int:
        """Classes."""
        return len(class_names(self.classes))

    def class_name(self, index: int) -> str:
        return class_names(self.classes)[index]


@dataclass(frozen=True)
class OwnNumbers(RegressionTask, _Own):
    """What number goes with a sequence? The loss is half the mean squared error of the standardised number."""

    target_mean: float = 0.0  # over the training split
    target_std: float = 1.0

    name = "own-numbers"
    signal_name = "feature 0"
    meaning = ("features",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (abs(self.target_mean) < FINITE and 0 < self.target_std < FINITE):
            raise SkipRNNError("target_mean and target_std, above 0, must be finite")

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.scores(prediction, target).mean() / (2 * self.target_std**2)

    def scores(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (self._value(prediction[:, 0]) - target).square()

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        return {"value": float(self._value(prediction[0]))}

    def _value(self, output: Tensor) -> Tensor:
        return output * self.target_std + self.target_mean
