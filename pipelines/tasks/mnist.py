"""The MNIST task: classify a digit read pixel by pixel."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipelines.data.samples import Source
from pipelines.data.sequences import Sequences, Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import ClassificationTask, Reading, Usage
from skiprnn.networks import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AVERAGED = 1_000  # digits over which the use of a pixel is averaged
SIDE = 28  # pixels
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Mnist(ClassificationTask):
    """The 784 pixels of a digit, row by row, one a step, scaled to [0, 1].

    Source: Campos et al., ICLR 2018, section 4.3; LeCun et al., 1998.
    """

    digits: str = "0123456789"  # the classes, in order

    name = "mnist"
    input_size = 1
    signal_name = "pixel"
    meaning = ("digits",)
    file_endings = (*IMAGES, *ClassificationTask.file_endings)

    def __post_init__(self) -> None:
        different = set(self.digits)
        if not different <= set("0123456789") or len(different) != len(self.digits) or len(different) < 2:
            raise SkipRNNError(f"mnist needs two different digits or more, got {self.digits!r}")

    @property
    def classes(self) -> str:
        return self.digits

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]]:
        return (0.0,), (255.0,)

    def embedding(self) -> nn.Module:
        return Scale()

    def check(self, sequences: Split) -> None:
        super().check(sequences)
        assert isinstance(sequences, Sequences)
        if sequences.x.dtype != torch.uint8 or sequences.x.shape[1] != SIDE * SIDE:
            raise SkipRNNError(f"x must hold {SIDE * SIDE} bytes a sequence, the pixels of a digit")

    def signal(self, x: Tensor) -> Tensor:
        return x[:, 0].float() / 255

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[Sequence[Source]]:
        if path.suffix.lower() not in IMAGES:
            return super().open(path, reading)
        from pipelines.data.images import image_source

        return nullcontext([image_source(path, SIDE)])

    def usage_rows(self, count: int, shown: int) -> Tensor:
        return torch.arange(min(max(shown, AVERAGED), count))

    def draw_usage(self, usage: Usage) -> "Figure":
        from pipelines.tasks.drawing import images

        return images(usage, SIDE)
