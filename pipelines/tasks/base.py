"""What a task is: its data, the head's size, loss, metric, and when it counts as solved."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipelines.data.doors import parse_json
from pipelines.data.fields import check_fields
from pipelines.data.samples import ARRAYS, Source, open_sources
from pipelines.data.sequences import Sequences, Split
from pipelines.errors import SkipRNNError
from skiprnn.answers import Answers, Classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")  # of figures
PAGE = ".html"
FINITE = 3e38  # float32's largest number is a little more
LONGEST = 2**31  # steps of a sequence that is drawn
TABLES = (".csv", ".tsv", ".txt", ".dat")  # of files with a sample a row
LIKELIEST = 5  # classes of an answer, by name
SHORT = 24  # characters of a name in a title
SHOWN, SEEN = 3, 5e-4  # classes that are said in words, and how likely they must be


def check_classes(names: Sequence[str]) -> None:
    """Refuse what are not the names of two different classes or more."""
    if len(set(names)) < max(len(names), 2):
        raise SkipRNNError("classes must be two different names or more")


def in_words(answer: dict[str, Any]) -> str:
    """What an answer or a truth says, on one line: a class with its probability and the next ones, or else by name."""
    if "likeliest" in answer:
        first, *others = [f"{name} ({100 * p:.1f} %)" for name, p in answer["likeliest"].items() if p >= SEEN][:SHOWN]
        return f"class {first}" + (f", then {', '.join(others)}" if others else "")
    return _by_name(answer, 6)


def in_short(answer: dict[str, Any]) -> str:
    """An answer or a truth for a title: a class without its name, and with its probability if there is one."""
    if "class" in answer:
        name = str(answer["class"])
        name = name if len(name) <= SHORT else name[: SHORT - 1] + "…"
        return f"{name} ({100 * answer['probability']:.0f} %)" if "probability" in answer else name
    return _by_name(answer, 3)


def _by_name(answer: dict[str, Any], digits: int) -> str:
    texts = ((name, value_in_words(value, digits)) for name, value in answer.items())
    return ", ".join(f"{name} {text}" for name, text in texts if text is not None)


def value_in_words(value: Any, digits: int = 6) -> str | None:
    """A number or text, or a list of texts; None of all else."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " + ".join(value) or "none"
    if isinstance(value, list | dict):
        return None
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


@dataclass
class Reading:
    """How a trained run reads what it is asked about."""

    run: Path
    words: Callable[[], list[str]]  # its vocabulary
    true_lengths: bool
    device: torch.device
    weights: str | None = None  # of the network that looks at frames; None: where they came from
    dataset: str | None = None  # of a file that holds several
    header: bool | None = None  # whether a CSV file begins with one; None: by the rule
    kept: dict[str, Any] = field(default_factory=dict)
    """What takes long to make, kept by the task from one file to the next."""


@dataclass(frozen=True)
class Usage:
    """What a model made of some sequences of a split."""

    title: str  # what the model is
    whole: Split  # the split
    rows: list[int]  # which of its sequences
    sequences: Sequences  # these
    used: Tensor  # (N, T) bool, on the CPU
    outputs: Tensor  # (N, output_size), or (N, T, output_size) of answers to each step, on the CPU
    shown: int  # how many of them are to be drawn, the first ones
    data: Path  # the data file
    split: str  # its name
    words: Callable[[], list[str]]  # the run's vocabulary
    videos: Path | None  # where the user says that they are
    signal: Callable[[Tensor], Tensor]  # what is drawn over time: (T, D) -> (T,)
    signal_name: str  # with its unit
    said: list[str]  # of each of those shown, what the model says and what is true


@dataclass(frozen=True)
class Task(ABC):
    """A task; its fields are the parameters of its data, stored in the data file's attributes."""

    name: ClassVar[str]
    metric_name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    meaning: ClassVar[tuple[str, ...]] = ()
    """Fields that a run and the data it is used on must share, because x or y would say something else."""
    solved_at: ClassVar[float | None] = None
    """The metric that counts as a solution, or that it must exceed; None where the paper has no such rule."""
    signal_name: ClassVar[str]
    """What ``signal`` shows, with its unit."""
    feature_names: ClassVar[tuple[str, ...]] = ()
    """What the features of a step are, where the data file has no names for them."""
    drawn_feature: ClassVar[int | None] = None
    """The feature that ``signal`` shows; None where it is none of them, and none is to be chosen."""
    as_json: ClassVar[tuple[str, ...]] = ()
    """Fields that are tuples, stored as JSON: HDF5's attributes would not hold them."""
    file_endings: ClassVar[tuple[str, ...]] = (*TABLES, *ARRAYS)
    """Of the files in a folder that hold sequences."""
    reads_text: ClassVar[bool] = False
    """Whether a sequence is a text, not rows of numbers."""
    shows_videos: ClassVar[bool] = False
    """Whether the usage figure can show videos."""
    usage_examples: ClassVar[int] = 10
    """Sequences in the usage figure, unless one asks for others."""
    usage_formats: ClassVar[tuple[str, ...]] = FORMATS

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Numbers of a step, as the recurrent network sees them."""

    @property
    def stored_size(self) -> int:
        """Numbers of a step as x is stored."""
        return self.input_size

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers of a step as x is stored; () where they have none."""
        return ()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold labels of the steps beside the samples; () where there are none."""
        return ()

    @property
    @abstractmethod
    def answers(self) -> Answers:
        """What the outputs of the head mean: one of several classes, any of several labels, or numbers."""

    @property
    def output_size(self) -> int:
        """Outputs of the head."""
        return len(self.answers.names)

    @property
    def each_step(self) -> bool:
        """Whether every step has an answer of its own, instead of the sequence."""
        return False

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one answer as y is stored: () or (K,)."""
        return ()

    def embedding(self) -> nn.Module:
        """Turns x as it is stored, (B, T, D) or (B, T), into what the recurrent network reads, (B, T, input_size)."""
        return nn.Identity()

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Of each feature, what the embedding subtracts and then divides by; None: it does no such thing."""
        return None

    def initialize(self, embedding: nn.Module, extra: dict[str, npt.NDArray[Any]]) -> None:
        """Give the embedding the initial values that the data file holds."""
        return

    @property
    def sample_cost(self) -> float:
        """Multiply-accumulates it takes to make a sample, where the paper counts them."""
        return 0.0

    def with_padding(self, sequences: Split) -> Split:
        """The sequences with their padding made part of them; as stored it stands at their ends."""
        return sequences.padded()

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Self:
        """The task a data file was made for.

        Raises:
            ValueError: an attribute is missing, or of another type than the field.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in attributes]:
            raise ValueError(f"it lacks {missing[0]}")
        values = {name: attributes[name] for name in names}
        for name in cls.as_json:
            if not isinstance(values[name], str):
                raise ValueError(f"{name} must be a JSON list, got {values[name]!r:.60}")
            values[name] = tuple(parse_json(values[name], list))
        check_fields(cls, values)
        try:
            return cls(**values)
        except SkipRNNError as error:
            raise ValueError(str(error)) from error

    def parameters(self) -> dict[str, Any]:
        """The parameters of the data, as stored in the file's attributes."""
        return {**asdict(self), **{name: json.dumps(getattr(self, name)) for name in self.as_json}}

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The loss without the budget, mean over the sequences; of answers to each step, over a sequence's steps first.

        Args:
            prediction: (B, output_size); with ``each_step`` (B, T, output_size).
            target: (B, *target_shape); with ``each_step`` (B, T, *target_shape).
            lengths: (B,), with ``each_step`` the steps that count; None: all T.
        """

    @abstractmethod
    def scores(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What each sequence adds to the metric, arguments as for ``loss``: (B, ...)."""

    def metric(self, scores: Tensor) -> Tensor:
        """The metric of sequences whose scores these are, a scalar."""
        return scores.double().mean()

    def other_metrics(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> dict[str, float]:
        """What else is worth knowing about a whole split, by name; arguments as for ``loss``."""
        return {}

    @abstractmethod
    def chance(self, target: Tensor, lengths: Tensor | None = None) -> float:
        """The metric of the constant answer that does best, arguments as for ``loss``."""

    def solved(self, metric: float) -> bool | None:
        """Whether the metric counts as a solution; None where the paper has no such rule."""
        if self.solved_at is None:
            return None
        return metric > self.solved_at if self.higher_is_better else metric <= self.solved_at

    @property
    def fewest_samples(self) -> float | None:
        """Samples of a sequence, on average, that suffice to who knows the task; None where that is not known."""
        return None

    def check(self, sequences: Split) -> None:
        """Refuse sequences this task could not have made.

        Raises:
            SkipRNNError: saying what is wrong with them.
        """
        assert isinstance(sequences, Sequences)
        x = sequences.x
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise SkipRNNError(f"x has {x.shape[-1]} features a step, {self.name} has {self.input_size}")

    @abstractmethod
    def answer(self, prediction: Tensor) -> dict[str, Any]:
        """What a prediction says, by name: (output_size,) -> numbers, strings and lists of them."""

    @abstractmethod
    def truth(self, target: Tensor) -> dict[str, Any]:
        """What one target says, by the names that ``answer`` has: (*target_shape) -> numbers, strings and lists."""

    def labelled(self, label: str) -> dict[str, Any] | None:
        """What a label that stands beside a file says, as ``truth`` does; None where it says nothing."""
        return None

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[Sequence[Source]]:
        """The sequences of a user's file.

        Raises:
            SkipRNNError: it cannot be read, or does not hold what the task takes.
        """
        return open_sources(path, self.stored_size, reading.dataset, reading.header, self.columns, self.label_columns)

    def text(self, text: str, name: str, reading: Reading) -> Source:
        """A text as a sequence, of a task that ``reads_text``."""
        raise NotImplementedError

    def check_words(self, words: list[str], run: Path) -> None:
        """Refuse another vocabulary of a run than it was trained with, of a task that ``reads_text``."""
        raise NotImplementedError

    def verdict(self, output: Tensor, target: Tensor, end: int) -> str:
        """For a title: what a prediction says and what is true; with ``each_step`` how well ``end`` steps agree."""
        truth = self.truth(target)
        true = in_short(truth)
        true = true if len(truth) > 1 else true.removeprefix(f"{next(iter(truth))} ")  # it was named already
        return f"{in_short(self.answer(output))}, true {true}"

    @abstractmethod
    def signal(self, x: Tensor) -> Tensor:
        """What the usage figure draws over time: (T, D) -> (T,)."""

    def usage_rows(self, count: int, shown: int) -> Tensor:
        """Which of ``count`` sequences the usage figure is made of; those ``shown`` come first."""
        return torch.arange(min(shown, count))

    def draw_usage(self, usage: Usage) -> "Figure":
        """The usage figure."""
        from pipelines.tasks.drawing import signals

        return signals(usage)

    def usage_page(self, usage: Usage) -> str:
        """The same as a page of HTML, of a task whose ``usage_formats`` have that."""
        raise NotImplementedError


class SyntheticTask(Task):
    """A task whose sequences are drawn at random."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Steps of a sequence."""

    @abstractmethod
    def sample(self, size: int, generator: torch.Generator) -> Sequences:
        """Draw ``size`` sequences on the generator's device."""


class ClassificationTask(Task):
    """Cross-entropy and accuracy."""

    metric_name = "accuracy"
    higher_is_better = True

    @property
    @abstractmethod
    def classes(self) -> Sequence[str | int]:
        """What to call them."""

    @property
    def answers(self) -> Classes:
        return Classes(self.classes)

    def check(self, sequences: Split) -> None:
        super().check(sequences)
        self.check_classes(sequences.y)

    def check_classes(self, y: Tensor) -> None:
        """Refuse what are no numbers of classes."""
        if y.dtype != torch.int64 or y.min() < 0 or y.max() >= self.output_size:
            raise SkipRNNError(f"y must hold classes from 0 to {self.output_size - 1}")

    def loss(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return cross_entropy(prediction, target)

    def answer(self, prediction: Tensor) -> dict[str, Any]:
        probabilities = self.answers.readout(prediction)
        best = int(probabilities.argmax())
        values, order = probabilities.sort(descending=True, stable=True)
        first = zip(order.tolist()[:LIKELIEST], values.tolist(), strict=False)
        return {
            "class": self.classes[best],
            "probability": float(probabilities[best]),
            "probabilities": probabilities.tolist(),
            "likeliest": {str(self.classes[number]): value for number, value in first},
        }

    def truth(self, target: Tensor) -> dict[str, Any]:
        return {"class": self.classes[int(target)]}

    def labelled(self, label: str) -> dict[str, Any] | None:
        return next(({"class": name} for name in self.classes if str(name) == label), None)

    def scores(self, prediction: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        return (prediction.argmax(1) == target).to(prediction.dtype)

    def chance(self, target: Tensor, lengths: Tensor | None = None) -> float:
        return target.bincount().max().item() / len(target)


class RegressionTask(Task):
    """Numbers and their mean squared error."""

    metric_name = "MSE"
    higher_is_better = False

    def check(self, sequences: Split) -> None:
        super().check(sequences)
        if not sequences.y.is_floating_point():
            raise SkipRNNError("y must hold floats")

    def chance(self, target: Tensor, lengths: Tensor | None = None) -> float:
        return target.double().var(0, correction=0).mean().item()
