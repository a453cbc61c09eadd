"""The adding task: sum the two marked values of a sequence."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import LONGEST, RegressionTask, SyntheticTask
from skiprnn.answers import Numbers


@dataclass(frozen=True)
class Adding(RegressionTask, SyntheticTask):
    """Steps of (value, marker), value from U(-0.5, 0.5); the target is the sum of the two values marked 1.

    The first marker is uniform in the first tenth of the sequence, the second in its last half. Solved when the mean
    squared error is at most 1/100 of the target's variance of 1/6.

    Source: Campos et al., ICLR 2018, section 4.1, after Hochreiter and Schmidhuber, 1997.
    """

    length: int = 50  # steps

    name = "adding"
    input_size = 2
    answers = Numbers(("sum",))
    solved_at = 1 / 600  # 1/100 of the variance of the target, 1/6
    signal_name = "marker"
    feature_names = ("value", "marker")
    drawn_feature = 1

    def __post_init__(self) -> None:
        if not 10 <= self.length < LONGEST:
            raise SkipRNNError(
                f"adding needs at least 10 steps, so that a tenth holds a marker, and fewer than {LONGEST:,}; got "
                f"{self.length}"
            )

    @property
    def fewest_samples(self) -> float:
        """All of the first tenth up to its marker, and all of the last half up to its own."""
        return (self.length // 10 + 1) / 2 + (self.length - self.length // 2 + 1) / 2

    def sample(self, size: int, generator: torch.Generator) -> Sequences:
        device, half = generator.device, self.length // 2
        values = torch.rand(size, self.length, generator=generator, device=device) - 0.5
        first = torch.randint(0, self.length // 10, (size, 1), generator=generator, device=device)
        second = torch.randint(half, self.length, (size, 1), generator=generator, device=device)
        markers = torch.zeros_like(values).scatter_(1, first, 1).scatter_(1, second, 1)
        target = values.gather(1, first) + values.gather(1, second)
        return Sequences(torch.stack([values, markers], dim=-1), target[:, 0])

    def loss(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.scores(prediction, target).mean() / 2

    def scores(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return (prediction[:, 0] - target).square()

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        return {"sum": float(prediction[0])}

    def truth(self, target: Tensor) -> dict[str, Any]:
        return {"sum": float(target)}

    def signal(self, x: Tensor) -> Tensor:
        return x[:, 1]
