"""Tasks on videos, whose samples are features of their frames: UCF-101 and one's own."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipelines.data.features import FlatSequences
from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import ClassificationTask, class_names

LARGEST = 2**31  # of sizes


class ToFloat(nn.Module):
    """Features as float32, however they are stored."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@dataclass(frozen=True)
class Videos(ClassificationTask):
    """What is to be seen in a video? A step is the feature vector of a frame, picked at ``fps`` frames a second.

    Videos are cropped to ``steps`` frames. Where they are shorter, the frames that are absent are vectors of zeros,
    read like others, unless the run asks for true lengths.

    Source: Campos et al., ICLR 2018, section 4.5.
    """

    features: int = 2048  # of a frame
    steps: int = 250
    classes: str = '["0", "1"]'  # their names, JSON
    fps: float = 25.0
    seconds: float = 10.0
    network: str = ""  # that computed the features; empty where they were made elsewhere
    weights: str = ""
    weights_sha256: str = ""  # of the tensors
    resize: int = 256  # pixels of a frame's shorter side, before the central 224 x 224 are cut out
    precision: str = "float32"  # of the network's products
    frame_cost: float = 0.0  # multiply-accumulates of a frame's features

    name = "videos"
    signal_name = "change of features since the frame before"
    meaning: ClassVar[tuple[str, ...]] = ("features", "classes", "fps", "network", "weights_sha256", "resize")

    def __post_init__(self) -> None:
        class_names(self.classes)
        sizes = (self.features, self.steps, self.fps, self.seconds, self.resize)
        if not all(0 < size < LARGEST for size in sizes) or not 0 <= self.frame_cost < math.inf:
            raise SkipRNNError(
                f"{self.name} needs 1 feature and 1 step or more, and frames, got {self.features}, {self.steps}, "
                f"{self.fps:g} frames/s for {self.seconds:g} s of {self.resize} pixels"
            )

    @property
    def input_size(self) -> int:
        """Features of a frame."""
        return self.features

    @property
    def sample_cost(self) -> float:
        """Multiply-accumulates of a frame's features."""
        return self.frame_cost

    @property
    def output_size(self) -> int:
        """Classes."""
        return len(class_names(self.classes))

    def embedding(self) -> nn.Module:
        return ToFloat()

    def check(self, sequences: Split) -> None:
        self.check_classes(sequences.y)
        if not isinstance(sequences, FlatSequences) or (sequences.width, sequences.steps) != (
            self.features,
            self.steps,
        ):
            raise SkipRNNError(f"it must hold {self.features} features a frame of up to {self.steps} frames a video")

    def class_name(self, index: int) -> str:
        return class_names(self.classes)[index]

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        said = super().answer(prediction)
        return {**said, "probabilities": dict(zip(class_names(self.classes), said["probabilities"], strict=True))}

    def signal(self, x: Tensor) -> Tensor:
        change = x.float().diff(dim=0).norm(dim=1)
        return torch.cat([change[:1], change]) if len(change) else torch.zeros(len(x))


@dataclass(frozen=True)
class Ucf101(Videos):
    """UCF-101 with its official lists."""

    split: int = 1  # of the three official ones

    name = "ucf101"
    meaning = (*Videos.meaning, "split")
