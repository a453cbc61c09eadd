"""The sine task, frequency discrimination: is the period of this wave between 5 and 6 ms?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import LONGEST, ClassificationTask, SyntheticTask


@dataclass(frozen=True)
class Sine(ClassificationTask, SyntheticTask):
    """Samples of sin(2π (t + shift) / period), the shift from U(0, period).

    Class 0 has its period from U(5, 6) ms, class 1 from U(1, 5) ∪ U(6, 100) ms, uniform over the union. The classes
    take turns, so that fresh batches and files are half and half. Solved above 99 % accuracy.

    Source: Campos et al., ICLR 2018, section 4.2.
    """

    sampling_period: float = 1.0  # ms
    duration: float = 100.0  # ms

    name = "sine"
    input_size = 1
    classes = (0, 1)
    solved_at = 0.99
    signal_name = "amplitude"
    feature_names = ("amplitude",)
    drawn_feature = 0

    def __post_init__(self) -> None:
        if not 0 < self.sampling_period <= self.duration < LONGEST * self.sampling_period:
            raise SkipRNNError(
                f"sine needs 0 < sampling period <= duration, and fewer than {LONGEST:,} samples; got "
                f"{self.sampling_period} ms and {self.duration} ms"
            )

    @property
    def length(self) -> int:
        """Steps of a sequence."""
        return math.floor(self.duration / self.sampling_period + 1e-9)  # 0.3 / 0.1 is 2.9999999999999996

    def sample(self, size: int, generator: torch.Generator) -> Sequences:
        label = torch.arange(size, device=generator.device) % 2
        uniform = torch.rand(2, size, generator=generator, device=generator.device, dtype=torch.float64)
        target = 5 + uniform[0]
        distractor = 1 + uniform[0] * (100 - 1 - 1)
        distractor = torch.where(distractor < 5, distractor, distractor + 1)
        period = torch.where(label == 0, target, distractor)[:, None]
        shift = uniform[1][:, None] * period
        t = torch.arange(self.length, device=generator.device) * self.sampling_period
        x = torch.sin(2 * math.pi * ((t + shift) / period))
        return Sequences(x[..., None].float(), label)

    def signal(self, x: Tensor) -> Tensor:
        return x[:, 0]
