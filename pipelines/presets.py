"""The configuration of a training run, and a named preset for each experiment."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import SkipRNNError


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run's result, saved whole as the run's ``config.json``."""

    task: str = "adding"
    preset: str = "quick"
    data: str = ""  # path of the data file
    fresh_batches: bool = False  # draw every batch anew instead of reading the train split
    cell: str = "lstm"  # or "gru"
    skip: bool = True  # false: the plain cell
    p_skip: float | None = None  # skip at random instead of learning to
    true_lengths: bool = False  # sequences end where they end, instead of after their padding
    hidden_size: int = 110
    num_layers: int = 1
    dropout: float = 0.0  # before the head
    engine: str = "auto"
    lam: float = 0.0  # budget: cost_per_sample
    lr: float = 1e-4
    lr_schedule: str = "constant"  # or "cosine": falls to 0 by the last step
    grad_clip: float = 1.0  # global norm
    batch_size: int = 256
    steps: int | None = None  # updates of the weights
    epochs: int | None = None  # or passes over the train split
    eval_every: int = 300  # steps between evaluations, each with a checkpoint
    patience: int | None = None  # evaluations without a better one before stopping
    seed: int = 0
    device: str = "auto"
    amp: str = "off"  # or "bf16"

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SkipRNNError(f"{name} must be at least 1, got {value}")
            if value is not None and value > most:
                raise SkipRNNError(f"{name} must be at most {most:,}, got {value:,}")
        for name in ("lr", "grad_clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise SkipRNNError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise SkipRNNError(f"lam must be zero or a positive number, got {self.lam}")
        if not 0 <= self.dropout < 1:
            raise SkipRNNError(f"dropout must lie in 0..1, 1 excluded, got {self.dropout}")
        if self.task.startswith("own-") and not self.true_lengths:
            raise SkipRNNError("one's own sequences always end where they end; drop --padded")
        if self.p_skip is not None and not 0 <= self.p_skip <= 1:
            raise SkipRNNError(f"p_skip must lie in 0..1, got {self.p_skip}")
        if (self.steps is None) == (self.epochs is None):
            raise SkipRNNError("give the length of training either in steps or in epochs")
        if self.fresh_batches and self.epochs is not None:
            raise SkipRNNError("fresh batches have no epochs; give the length of training in steps")
        if self.skip and self.p_skip is not None:
            raise SkipRNNError("p_skip is a baseline without a learned gate; it needs skip = false")
        if self.lam and not self.skip:
            raise SkipRNNError("lam has nothing to act on where the gate is not learned; it needs skip = true")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise SkipRNNError(f"unknown {name} {getattr(self, name)!r}; choose {' or '.join(choices)}")

    @property
    def model_name(self) -> str:
        """The paper's name of the model."""
        cell = self.cell.upper()
        if self.skip:
            return f"Skip {cell}"
        return cell if self.p_skip is None else f"{cell} p_skip={self.p_skip:g}"


MAY_CHANGE = ("data", "device", "steps", "epochs", "patience")  # while a run is trained; the data's content may not
# More is a slip of the hand, which would take all memory or never end.
MOST = {
    "hidden_size": 2**15, "num_layers": 2**8, "batch_size": 2**20, "steps": 10**12, "epochs": 10**9,
    "eval_every": 10**12, "patience": 10**12,
}  # fmt: skip
TASK_NAMES = ("adding", "sine", "mnist", "imdb", "ucf101", "videos", "own-classes", "own-numbers")
CHOICES = {
    "task": TASK_NAMES,
    "preset": ("quick", "paper"),
    "cell": ("lstm", "gru"),
    "engine": ("auto", "events", "reference", "triton"),
    "lr_schedule": ("constant", "cosine"),
    "device": ("auto", "cpu", "cuda"),
    "amp": ("off", "bf16"),
}

NONE = "none"  # what people say to switch off an option that a preset has
DATA = Path("data")  # where data files go by default

# Sequences a data file holds unless told otherwise.
DEFAULT_SIZES = {"train": 100_000, "val": 5_000, "test": 10_000}

# The paper trains on fresh batches without end; how long is not said. 100,000 steps at its learning rate let the number
# of used samples settle. The quick presets find the same solutions in minutes on two CPU cores.
PRESETS = {
    "adding": {
        "quick": TrainConfig(task="adding", preset="quick", lr=1e-3, steps=3_000, eval_every=100),
        "paper": TrainConfig(task="adding", preset="paper", fresh_batches=True, steps=100_000),
    },
    "sine": {
        "quick": TrainConfig(task="sine", preset="quick", lr=5e-4, lr_schedule="cosine", steps=2_500, eval_every=100),
        "paper": TrainConfig(task="sine", preset="paper", fresh_batches=True, steps=100_000),
    },
    # The paper trains for 600 epochs at its learning rate. Quick: some ten minutes on two CPU cores.
    "mnist": {
        "quick": TrainConfig(
            task="mnist", preset="quick", lr=1e-3, lr_schedule="cosine", batch_size=128, epochs=10, eval_every=215
        ),
        "paper": TrainConfig(task="mnist", preset="paper", epochs=600, eval_every=215),
    },
    **{
        task: {
            "quick": TrainConfig(
                task=task, preset="quick", true_lengths=True, lr=1e-3, batch_size=64, epochs=30, eval_every=50,
                patience=20,
            ),
            "paper": TrainConfig(task=task, preset="paper", true_lengths=True, epochs=300, eval_every=100),
        }
        for task in ("own-classes", "own-numbers")
    },
    # The paper trains for some 300 epochs. Quick: a few classes in minutes on two CPU cores.
    **{
        task: {
            "quick": TrainConfig(
                task=task, preset="quick", hidden_size=512, num_layers=2, dropout=0.5, lr=1e-3, batch_size=32,
                epochs=30, eval_every=25,
            ),
            "paper": TrainConfig(task=task, preset="paper", hidden_size=512, num_layers=2, epochs=300, eval_every=38),
        }
        for task in ("ucf101", "videos")
    },
    # The paper stops early on the validation split. Quick: ten times its learning rate, minutes on two CPU cores.
    "imdb": {
        "quick": TrainConfig(
            task="imdb", preset="quick", hidden_size=128, dropout=0.2, lr=1e-3, epochs=8, eval_every=42, patience=6
        ),
        "paper": TrainConfig(
            task="imdb", preset="paper", hidden_size=128, dropout=0.2, epochs=100, eval_every=84, patience=5
        ),
    },
}  # fmt: skip
# Where a cell wants other options than the preset's. A GRU's gate opens at every step for longer than an LSTM's.
FOR_CELL: dict[tuple[str, str, str], dict[str, Any]] = {
    ("adding", "quick", "gru"): {"lr": 2e-3},
    ("mnist", "quick", "gru"): {"lr": 2e-3},
}


def configure(task: str, preset: str, **options: object) -> TrainConfig:
    """A preset with the options that were given, those that are not None, put in its place; NONE stands for None.

    Raises:
        SkipRNNError: an option is out of range, or contradicts another.
    """
    given = {name: None if value == NONE else value for name, value in options.items() if value is not None}
    config = PRESETS[task][preset]
    config = replace(config, **FOR_CELL.get((task, preset, str(given.get("cell", config.cell))), {}))
    if "steps" in given:
        given.setdefault("epochs", None)
    elif "epochs" in given:
        given["steps"] = None
    return replace(config, **given)  # type: ignore[arg-type]
