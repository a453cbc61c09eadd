"""Tasks from one's own sequences: a class, labels or numbers to each of them, or to each of their steps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from pipelines.data.sequences import Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import FINITE, ClassificationTask, RegressionTask, Task, Usage, check_classes
from pipelines.tasks.measures import (
    constant,
    hits,
    is_step,
    items,
    macro_f1,
    mean_average_precision,
    mean_of_steps,
    sums_of_steps,
)
from skiprnn.answers import Labels, Numbers
from skiprnn.networks import Standardize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LARGEST_TARGET = 1e18  # whose differences have squares that float32 holds


def check_names(names: Sequence[str], what: str) -> None:
    """Refuse what are not the names of one thing or more, all different."""
    if len(set(names)) < max(len(names), 1):
        raise SkipRNNError(f"{what} must be one name or more, all different")


@dataclass(frozen=True)
class _Own(Task):
    features: int = 1
    mean: tuple[float, ...] = (0.0,)  # of each feature, over the training split
    std: tuple[float, ...] = (1.0,)
    columns: tuple[str, ...] = ()  # names of the features, where they have names
    label_columns: tuple[str, ...] = ()  # names of labels of the steps, where they have names

    as_json: ClassVar[tuple[str, ...]] = ("mean", "std", "columns", "label_columns")
    signal_name = "feature 0"
    drawn_feature = 0

    def __post_init__(self) -> None:
        if not all(abs(number) < FINITE for number in (*self.mean, *self.std)):
            raise SkipRNNError("mean and std must be finite numbers")
        if not len(self.mean) == len(self.std) == self.features or not all(value > 0 for value in self.std):
            raise SkipRNNError(f"mean and std, above 0, must have a number for each of the {self.features} features")
        if self.columns and not len(set(self.columns)) == len(self.columns) == self.features:
            raise SkipRNNError(f"columns must be {self.features} different names, one for each feature")

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Self:
        return super().from_attributes({"columns": "[]", "label_columns": "[]", **attributes})  # of before

    @property
    def input_size(self) -> int:
        """Features of a step."""
        return self.features

    def embedding(self) -> nn.Module:
        return Standardize(self.mean, self.std)

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.mean, self.std

    def with_padding(self, sequences: Split) -> Split:
        return sequences  # one's own sequences end where they end

    def signal(self, x: Tensor) -> Tensor:
        return x[:, 0]


@dataclass(frozen=True)
class OwnClasses(ClassificationTask, _Own):
    """Which class is a sequence of? Cross-entropy and accuracy."""

    classes: tuple[str, ...] = ("0", "1")  # their names

    name = "own-classes"
    as_json = (*_Own.as_json, "classes")
    meaning = ("features", "classes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)


@dataclass(frozen=True)
class OwnTags(OwnClasses):
    """Which class is each step of? Cross-entropy, and accuracy over all steps."""

    name = "own-tags"
    each_step = True

    def loss(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return mean_of_steps(cross_entropy(prediction.transpose(1, 2), target, reduction="none"), lengths).mean()

    def scores(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return sums_of_steps((prediction.argmax(2) == target).to(prediction.dtype), lengths)

    def metric(self, scores: Tensor) -> Tensor:
        return _ratio(scores)

    def other_metrics(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
        said, true = (
            one_hot(items(found, lengths, True), self.output_size) for found in (prediction.argmax(2), target)
        )
        return {"macro F1": macro_f1(hits(said, true).sum(0)).item()}

    def chance(self, target: Tensor, lengths: Tensor | None = None) -> float:
        return super().chance(items(target, lengths, True))

    def draw_usage(self, usage: Usage) -> "Figure":
        from pipelines.tasks.timelines import bands

        said = usage.outputs.argmax(2)
        return bands(usage, self.classes, {"label": usage.sequences.y, "predicted": said})

    def verdict(self, output: Tensor, target: Tensor, end: int) -> str:
        right = (output.argmax(1) == target)[:end].sum()
        return f"{int(right)} of {end} steps right"


@dataclass(frozen=True)
class OwnLabels(_Own):
    """Which of several labels, any number of them, hold for a sequence, or for each step?

    The loss is the mean binary cross-entropy of the labels; the metric is the mean of their F1, a label being said
    where its probability is above a half.
    """

    labels: tuple[str, ...] = ("label 0",)  # their names
    each_step: bool = False

    name = "own-labels"
    metric_name = "macro F1"
    higher_is_better = True
    as_json = (*_Own.as_json, "labels")
    meaning = ("features", "labels", "each_step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.labels, "labels")

    @property
    def answers(self) -> Labels:
        return Labels(self.labels)

    @property
    def target_shape(self) -> tuple[int, ...]:
        return (len(self.labels),)

    def check(self, sequences: Split) -> None:
        super().check(sequences)
        if sequences.y.dtype != torch.uint8 or sequences.y.max() > 1:
            raise SkipRNNError("y must hold bytes of 0 and 1")

    def loss(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        losses = binary_cross_entropy_with_logits(prediction, target.to(prediction.dtype), reduction="none").mean(-1)
        return (mean_of_steps(losses, lengths) if self.each_step else losses).mean()

    def scores(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        counts = hits(prediction > 0, target)
        if not self.each_step:
            return counts
        return counts.where(is_step(target, lengths)[..., None], 0).sum(1)

    def metric(self, scores: Tensor) -> Tensor:
        return macro_f1(scores.double().sum(0))

    def other_metrics(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
        said, true = (items(found, lengths, self.each_step) for found in (prediction, target))
        right = ((said > 0) == true.bool()).double().mean().item()
        return {"mean average precision": mean_average_precision(said, true), "accuracy of a label": right}

    def chance(self, target: Tensor, lengths: Tensor | None = None) -> float:
        share = items(target, lengths, self.each_step).double().mean(0)
        share = share[share > 0]  # F1 of a label that is always said
        return (2 * share / (1 + share)).mean().item() if len(share) else 0.0

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        (said,), probabilities = self.answers.values(prediction[None]), self.answers.readout(prediction).tolist()
        return {"labels": said, "probabilities": dict(zip(self.labels, probabilities, strict=True))}

    def truth(self, target: Tensor) -> dict[str, Any]:
        return {"labels": [name for name, holds in zip(self.labels, target.tolist(), strict=True) if holds]}

    def verdict(self, output: Tensor, target: Tensor, end: int) -> str:
        if not self.each_step:
            return super().verdict(output, target, end)
        right = ((output > 0) == target.bool())[:end]
        return f"{int(right.sum())} of {right.numel()} labels right"

    def draw_usage(self, usage: Usage) -> "Figure":
        if not self.each_step:
            return super().draw_usage(usage)
        from pipelines.tasks.timelines import label_rows

        return label_rows(usage, self.labels, usage.outputs > 0)


@dataclass(frozen=True)
class OwnNumbers(RegressionTask, _Own):
    """What number goes with a sequence, or with each step, or what several numbers?

    The loss is half the mean squared error of the numbers, each standardised; the metric has their own units.
    """

    names: tuple[str, ...] = ("value",)
    each_step: bool = False
    target_mean: tuple[float, ...] = (0.0,)  # of each number, over the training split
    target_std: tuple[float, ...] = (1.0,)

    name = "own-numbers"
    as_json = (*_Own.as_json, "names", "target_mean", "target_std")
    meaning = ("features", "names", "each_step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.names, "names")
        if not len(self.names) == len(self.target_mean) == len(self.target_std):
            raise SkipRNNError(f"target_mean and target_std must have a number for each of the {len(self.names)} names")
        if not all(abs(m) < FINITE and 0 < s < FINITE for m, s in zip(self.target_mean, self.target_std, strict=True)):
            raise SkipRNNError("target_mean and target_std, above 0, must be finite")

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Self:
        given = {"names": '["value"]', "each_step": False, **attributes}  # files of before hold one number a sequence
        for name in ("target_mean", "target_std"):
            if isinstance(given.get(name), float):
                given[name] = json.dumps([given[name]])
        return super().from_attributes(given)

    @property
    def answers(self) -> Numbers:
        return Numbers(self.names, self.target_mean, self.target_std)

    @property
    def target_shape(self) -> tuple[int, ...]:
        return (len(self.names),) if len(self.names) > 1 else ()

    def check(self, sequences: Split) -> None:
        super().check(sequences)
        if sequences.y.abs().max() > LARGEST_TARGET:
            raise SkipRNNError(f"y holds numbers beyond {LARGEST_TARGET:g}, whose squares float32 does not hold")

    def loss(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        std = constant(self.target_std, prediction.dtype, prediction.device)
        losses = (self._errors(prediction, target) / (2 * std.square())).mean(-1)
        return (mean_of_steps(losses, lengths) if self.each_step else losses).mean()

    def scores(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        errors = self._errors(prediction, target).mean(-1)
        return sums_of_steps(errors, lengths) if self.each_step else errors

    def metric(self, scores: Tensor) -> Tensor:
        return _ratio(scores) if self.each_step else super().metric(scores)

    def other_metrics(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
        if len(self.names) == 1:
            return {}
        means = items(self._errors(prediction, target), lengths, self.each_step).double().mean(0)
        return {f"MSE of {name}": value for name, value in zip(self.names, means.tolist(), strict=True)}

    def chance(self, target: Tensor, lengths: Tensor | None = None) -> float:
        return super().chance(items(target, lengths, self.each_step))

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        return dict(zip(self.names, self.answers.readout(prediction).tolist(), strict=True))

    def truth(self, target: Tensor) -> dict[str, Any]:
        return dict(zip(self.names, target.reshape(-1).tolist(), strict=True))

    def verdict(self, output: Tensor, target: Tensor, end: int) -> str:
        if not self.each_step:
            return super().verdict(output, target, end)
        return f"MSE {self._errors(output, target)[:end].mean():.3g}"

    def draw_usage(self, usage: Usage) -> "Figure":
        if not self.each_step:
            return super().draw_usage(usage)
        from pipelines.tasks.timelines import curves

        y = usage.sequences.y.cpu().reshape(*usage.outputs.shape)
        return curves(usage, self.names, y, self.answers.readout(usage.outputs))

    def _errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        units = (self.target_mean, self.target_std)
        mean, std = (constant(values, prediction.dtype, prediction.device) for values in units)
        return (prediction * std + mean - target.reshape(prediction.shape)).square()


def _ratio(scores: Tensor) -> Tensor:
    """A metric of all steps, from sums over each sequence's and their numbers, (B, 2)."""
    sums: Tensor = scores.double().sum(0)
    return sums[0] / sums[1].clamp(min=1)
