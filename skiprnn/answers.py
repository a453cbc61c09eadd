"""What the outputs of a network's head mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """One of several classes."""

    names: Sequence[str | int]
    kind: ClassVar[str] = "classes"

    def readout(self, output: Tensor) -> Tensor:
        """(..., K) -> (..., K), probabilities, which sum to 1."""
        return output.softmax(-1)

    probabilities = readout

    def values(self, output: Tensor) -> list[str | int]:
        """(N, K) -> the likeliest class of each."""
        return [self.names[best] for best in output.argmax(-1).tolist()]


@dataclass(frozen=True)
class Labels:
    """Any number of several labels."""

    names: Sequence[str]
    kind: ClassVar[str] = "labels"

    def readout(self, output: Tensor) -> Tensor:
        """(..., K) -> (..., K), probabilities, each on its own."""
        return output.sigmoid()

    probabilities = readout

    def values(self, output: Tensor) -> list[list[str]]:
        """(N, K) -> of each, the labels that are likelier than not."""
        return [[self.names[k] for k in row.nonzero()[:, 0].tolist()] for row in output > 0]


@dataclass(frozen=True)
class Numbers:
    """One number or several, in their own units."""

    names: Sequence[str]
    mean: Sequence[float] = (0.0,)  # the head's output is (number - mean) / std
    std: Sequence[float] = (1.0,)
    kind: ClassVar[str] = "numbers"

    def readout(self, output: Tensor) -> Tensor:
        """(..., K) -> (..., K), in their own units."""
        return output * output.new_tensor(self.std) + output.new_tensor(self.mean)

    def probabilities(self, output: Tensor) -> Tensor | None:
        """Numbers have none."""
        return None

    def values(self, output: Tensor) -> list[Any]:
        """(N, K) -> numbers, by name where there are several."""
        rows = self.readout(output).tolist()
        return [row[0] if len(self.names) == 1 else dict(zip(self.names, row, strict=True)) for row in rows]


Answers = Classes | Labels | Numbers
