"""Tasks on videos, whose samples are features of their frames: UCF-101 and one's own."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pipelines.data.features import FlatSequences, read_entries
from pipelines.data.samples import Source
from pipelines.data.schema import read_attributes
from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import ClassificationTask, Reading, Usage, check_classes
from pipelines.video.listing import SUFFIXES
from skiprnn.networks import ToFloat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 2**31  # of sizes


@dataclass(frozen=True)
class Videos(ClassificationTask):
    """What is to be seen in a video? A step is the feature vector of a frame, picked at ``fps`` frames a second.

    Videos are cropped to ``steps`` frames. Where they are shorter, the frames that are absent are vectors of zeros,
    read like others, unless the run asks for true lengths.

    Source: Campos et al., ICLR 2018, section 4.5.
    """

    features: int = 2048  # of a frame
    steps: int = 250
    classes: tuple[str, ...] = ("0", "1")  # their names
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
    as_json = ("classes",)
    shows_videos = True
    file_endings = tuple(sorted(SUFFIXES))
    usage_examples = 3
    meaning: ClassVar[tuple[str, ...]] = ("features", "classes", "fps", "network", "weights_sha256", "resize")

    def __post_init__(self) -> None:
        check_classes(self.classes)
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

    def embedding(self) -> nn.Module:
        return ToFloat()

    def check(self, sequences: Split) -> None:
        self.check_classes(sequences.y)
        sizes = (sequences.width, sequences.steps) if isinstance(sequences, FlatSequences) else None
        if sizes != (self.features, self.steps):
            raise SkipRNNError(f"it must hold {self.features} features a frame of up to {self.steps} frames a video")

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        said = super().answer(prediction)
        return {**said, "probabilities": dict(zip(self.classes, said["probabilities"], strict=True))}

    @contextmanager
    def open(self, path: Path, reading: Reading) -> Iterator[Sequence[Source]]:
        if path.suffix.lower() not in SUFFIXES:
            with super().open(path, reading) as sources:
                yield sources
            return
        from pipelines.video.lookup import network_of, open_video
        from pipelines.video.network import Origin

        if reading.dataset is not None:
            raise SkipRNNError(f"{path} is one video; drop --dataset")
        if "network" not in reading.kept:
            origin = Origin(self.network, self.weights, self.weights_sha256, self.resize, self.precision)
            reading.kept["network"] = network_of(origin, reading.weights, reading.device)
        with open_video(path, self, reading.kept["network"], pads=not reading.true_lengths) as video:
            yield [video]

    def usage_rows(self, count: int, shown: int) -> Tensor:
        return torch.linspace(0, count - 1, min(shown, count)).round().long()  # from all over the split

    def draw_usage(self, usage: Usage) -> "Figure":
        """Videos frame by frame; of features that were made elsewhere, the change from frame to frame."""
        from pipelines.tasks.drawing import SKIPPED, USED
        from pipelines.video.contact_sheet import Sheet, contact_sheets
        from pipelines.video.decode import Sampling
        from pipelines.video.network import FRAME_COST

        attributes = read_attributes(usage.data)
        if self.network not in FRAME_COST and usage.videos is None:
            return super().draw_usage(usage)
        root = usage.videos or Path(attributes["source"])
        if not root.is_dir():
            raise SkipRNNError(f"the videos are no longer in {root}; name their folder with --videos")
        entries = [entry for entry in read_entries(usage.data) if entry.split == usage.split]
        assert isinstance(usage.whole, FlatSequences)
        counts, sheets = usage.whole.counts.tolist(), []
        for row, gate, said in zip(usage.rows, usage.used, usage.said, strict=True):
            entry = entries[row]
            used = gate[: counts[row]].tolist()
            heading = f"#{row}, {entry.name}: {said}; {sum(used)} of {len(used)} frames used"
            sheets.append(Sheet(root / entry.name, heading, used))
        sampling = Sampling(attributes["fps"], attributes["seconds"])
        return contact_sheets(sheets, sampling, usage.title, USED, SKIPPED)

    def signal(self, x: Tensor) -> Tensor:
        change = x.float().diff(dim=0).norm(dim=1)
        return torch.cat([change[:1], change]) if len(change) else torch.zeros(len(x))


@dataclass(frozen=True)
class Ucf101(Videos):
    """UCF-101 with its official lists."""

    split: int = 1  # of the three official ones

    name = "ucf101"
    meaning = (*Videos.meaning, "split")
