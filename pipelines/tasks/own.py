"""A task from one's own sequences: classes or a number to each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import FINITE, ClassificationTask, RegressionTask, Task, check_classes


class Standardize(nn.Module):
    """(x - mean) / std of each feature, as the training split has them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class _Own(Task):
    features: int = 1
    mean: tuple[float, ...] = (0.0,)  # of each feature, over the training split
    std: tuple[float, ...] = (1.0,)

    as_json: ClassVar[tuple[str, ...]] = ("mean", "std")
    signal_name = "feature 0"

    def __post_init__(self) -> None:
        if not all(abs(number) < FINITE for number in (*self.mean, *self.std)):
            raise SkipRNNError("mean and std must be finite numbers")
        if not len(self.mean) == len(self.std) == self.features or not all(value > 0 for value in self.std):
            raise SkipRNNError(f"mean and std, above 0, must have a number for each of the {self.features} features")

    @property
    def input_size(self) -> int:
        """Features of a step."""
        return self.features

    def embedding(self) -> nn.Module:
        return Standardize(self.mean, self.std)

    def with_padding(self, sequences: Split) -> Split:
        return sequences  # one's own sequences end where they end

    def signal(self, x: Tensor) -> Tensor:
        return x[:, 0]


@dataclass(frozen=True)
class OwnClasses(ClassificationTask, _Own):
    """Which class is a sequence of? Cross-entropy and accuracy."""

    classes: tuple[str, ...] = ("0", "1")  # their names

    name = "own-classes"
    as_json = ("mean", "std", "classes")
    meaning = ("features", "classes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)


@dataclass(frozen=True)
class OwnNumbers(RegressionTask, _Own):
    """What number goes with a sequence? The loss is half the mean squared error of the standardised number."""

    target_mean: float = 0.0  # over the training split
    target_std: float = 1.0

    name = "own-numbers"
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
