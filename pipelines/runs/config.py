"""The configuration of a training run, and a named preset for each experiment."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import SkipRNNError


def dear_feature(text: str) -> tuple[int, float]:
    """A feature's number and cost, from "2=5".

    Raises:
        SkipRNNError: it says no such thing.
    """
    feature, _, cost = text.partition("=")
    try:
        number, price = int(feature), float(cost)
    except ValueError:
        number, price = -1, 0.0
    if number < 0 or not 0 < price < math.inf:
        raise SkipRNNError(
            f"a feature's cost is FEATURE=COST, such as 2=5, a number from 0 and one above, got {text!r}"
        )
    return number, price


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run's result, saved whole as the run's ``config.json``."""

    task: str = "adding"
    preset: str = "quick"
    data: str = ""  # path of the data file
    fresh_batches: bool = False  # draw every batch anew instead of reading the train split
    cell: str = "lstm"  # or another of CHOICES, or one's own, "package.module:Cell"
    reset_after: bool = True  # which Skip GRU: torch's; false: the one the paper's authors trained
    skip: bool = True  # false: the plain cell
    p_skip: float | None = None  # skip at random instead of learning to
    true_lengths: bool = False  # sequences end where they end, instead of after their padding
    hidden_size: int = 110
    num_layers: int = 1
    dropout: float = 0.0  # before the head
    memory: int | None = None  # updates for which cells keep their state at first, at most; None: biases begin at 1
    engine: str = "auto"
    cuda_graph: bool = False  # capture a step's loss and gradients as a CUDA graph, where that can be
    gate: str = "round"  # or "bernoulli", which draws in training
    min_skip: int = 0  # samples skipped after each that is used, at least
    max_skip: int | None = None  # samples skipped in a row, at most
    lam: float = 0.0  # budget: cost_per_sample
    lam_warmup: int = 0  # steps over which λ rises from 0 to lam
    cost_growth: float = 0.0  # how much dearer each step makes a sample, in units of λ
    feature_cost: str = ""  # what features cost on top, in units of λ, where they are not 0: "2=5,4=0.5"
    keep: float | None = None  # λ is found: the metric that is to be kept with as few samples as can be
    target_usage: float | None = None  # λ is found: the share of the samples that is to be used
    lr: float = 1e-4
    lr_schedule: str = "constant"  # or "cosine" or "linear": falls to 0 by the last step
    decay_from: float = 0.0  # share of training after which the rate begins to fall
    warmup: int = 0  # steps over which the rate rises from lr / warmup to lr
    grad_clip: float = 1.0  # global norm
    gate_clip: float | None = None  # bound of the gate's gradient, a sequence and step, in units of its own loss
    batch_size: int = 256
    steps: int | None = None  # updates of the weights
    epochs: int | None = None  # or passes over the train split
    eval_every: int = 300  # steps between evaluations, each with a checkpoint
    patience: int | None = None  # evaluations without a better one before stopping
    on_collapse: str = "warn"  # where the gate shuts; or "stop", or "rewind": back to the best, at half the rate
    seed: int = 0
    device: str = "auto"
    amp: str = "off"  # or "bf16"

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            least = LEAST.get(name, 1)
            if value is not None and value < least:
                raise SkipRNNError(f"{name} must be at least {least}, got {value}")
            if value is not None and value > most:
                raise SkipRNNError(f"{name} must be at most {most:,}, got {value:,}")
        for name in ("lr", "grad_clip", "gate_clip", "keep", "target_usage"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SkipRNNError(f"{name} must be a positive number, got {value}")
        for name in ("warmup", "lam_warmup"):
            if not 0 <= getattr(self, name) <= MOST["steps"]:
                raise SkipRNNError(f"{name} must lie in 0..{MOST['steps']:,} steps, got {getattr(self, name):,}")
        if not 0 <= self.decay_from < 1:
            raise SkipRNNError(f"decay_from must lie in 0..1, 1 excluded, got {self.decay_from}")
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise SkipRNNError(f"lam must be zero or a positive number, got {self.lam}")
        if not (math.isfinite(self.cost_growth) and self.cost_growth >= 0):
            raise SkipRNNError(f"cost_growth must be zero or a positive number, got {self.cost_growth}")
        if len(self.dear_features) < self.feature_cost.count("="):
            raise SkipRNNError(f"feature_cost names a feature twice: {self.feature_cost}")
        if self.has_prices and not self.lam:
            raise SkipRNNError("cost_growth and feature_cost are in units of lam, which is 0; give that too")
        if self.has_prices and (self.keep or self.target_usage):
            raise SkipRNNError(
                "keep and target_usage count samples, whatever they cost; drop cost_growth, feature_cost"
            )
        if self.keep is not None and self.target_usage is not None:
            raise SkipRNNError("keep and target_usage ask for different numbers of samples; give one of them")
        if self.keep is not None and self.keep > 1 and METRICS.get(self.task, "MSE") != "MSE":
            raise SkipRNNError(f"keep is what the {METRICS[self.task]} is to be, which is at most 1, got {self.keep:g}")
        if self.target_usage is not None and self.target_usage > 1:
            raise SkipRNNError(f"target_usage is a share of the samples, 1 at most, got {self.target_usage}")
        if not 0 <= self.dropout < 1:
            raise SkipRNNError(f"dropout must lie in 0..1, 1 excluded, got {self.dropout}")
        if self.task in OWN_TASKS and not self.true_lengths:
            raise SkipRNNError("one's own sequences always end where they end; drop --padded")
        if self.p_skip is not None and not 0 <= self.p_skip <= 1:
            raise SkipRNNError(f"p_skip must lie in 0..1, got {self.p_skip}")
        if (self.steps is None) == (self.epochs is None):
            raise SkipRNNError("give the length of training either in steps or in epochs")
        if self.fresh_batches and self.epochs is not None:
            raise SkipRNNError("fresh batches have no epochs; give the length of training in steps")
        if self.skip and self.p_skip is not None:
            raise SkipRNNError("p_skip is a baseline without a learned gate; it needs skip = false")
        if (self.min_skip or self.max_skip is not None) and not self.skip:
            raise SkipRNNError("min_skip and max_skip bound a learned gate; they need skip = true")
        if self.gate != "round" and (not self.skip or self.min_skip or self.max_skip is not None):
            raise SkipRNNError(f"the gate {self.gate!r} needs skip = true, and no min_skip or max_skip")
        if not 0 <= self.min_skip <= (MOST["max_skip"] if self.max_skip is None else self.max_skip):
            raise SkipRNNError(f"0 <= min_skip <= max_skip is asked for, got {self.min_skip} and {self.max_skip}")
        if not (self.reset_after or (self.cell == "gru" and self.skip)):
            raise SkipRNNError("reset_after = false is a Skip GRU; other models have no such choice")
        if self.memory is not None and self.cell in CHOICES["cell"] and self.cell not in WITH_MEMORY:
            raise SkipRNNError(f"memory is drawn into a gate that keeps the state; {self.cell} has none")
        if (self.lam or self.keep or self.target_usage) and not self.skip:
            raise SkipRNNError(
                "lam, keep and target_usage have nothing to act on where the gate is not learned; they need skip = true"
            )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "cell" and is_own_cell(value)):
                more = ", or one of your own, package.module:Cell" if name == "cell" else ""
                raise SkipRNNError(f"unknown {name} {value!r}; choose {' or '.join(choices)}{more}")
        if not self.skip and self.cell not in WITH_BASELINES:
            raise SkipRNNError(
                f"the baselines, the plain cell and skipping at random, are of {' and '.join(WITH_BASELINES)} alone; "
                f"{self.cell} needs skip = true, in a sweep a --lam other than none"
            )

    @property
    def dear_features(self) -> dict[int, float]:
        """What features cost, by their number, on top of their sample, in units of λ."""
        return dict(map(dear_feature, filter(None, self.feature_cost.split(","))))

    @property
    def has_prices(self) -> bool:
        """Whether samples differ in what they cost."""
        return bool(self.cost_growth or self.dear_features)

    @property
    def model_name(self) -> str:
        """The paper's name of the model; a GRU that resets before the product, as the paper's did, says so."""
        cell = self.cell if is_own_cell(self.cell) else self.cell.upper()
        if self.skip:
            kinds = [] if self.reset_after else ["reset before"]
            kinds += [] if self.gate == "round" else [f"{self.gate} gate"]
            return f"Skip {cell} ({', '.join(kinds)})" if kinds else f"Skip {cell}"
        return cell if self.p_skip is None else f"{cell} p_skip={self.p_skip:g}"

    @property
    def budget_name(self) -> str:
        """What is asked of a Skip RNN's number of samples."""
        if self.keep is not None:
            return f"keeping {self.keep:g}"
        if self.target_usage is not None:
            return f"towards {self.target_usage:.3g} of the samples"
        return f"λ={self.lam:g}"

    @property
    def file_name(self) -> str:
        """The model's name as part of a file's."""
        return self.model_name.lower().translate(str.maketrans(" :", "-.", "=()"))


# While a run is trained; of the data the path, not the content.
MAY_CHANGE = ("data", "device", "steps", "epochs", "patience", "on_collapse")
# More is a slip of the hand, which would take all memory or never end.
MOST = {
    "hidden_size": 2**15, "num_layers": 2**8, "batch_size": 2**20, "steps": 10**12, "epochs": 10**9,
    "eval_every": 10**12, "patience": 10**12, "max_skip": 4096, "memory": 10**9,
}  # fmt: skip
LEAST = {"max_skip": 0, "memory": 3}  # of the same, where it is not 1
TASK_NAMES = (
    "adding", "sine", "mnist", "imdb", "ucf101", "videos", "own-classes", "own-tags", "own-labels", "own-numbers",
)  # fmt: skip
OWN_TASKS = tuple(name for name in TASK_NAMES if name.startswith("own-"))
CHOICES = {
    "task": TASK_NAMES,
    "preset": ("quick", "settled", "paper"),
    "cell": ("lstm", "gru", "rnn", "rnn-relu", "ln-lstm", "ln-gru"),
    "gate": ("round", "bernoulli"),
    "engine": ("auto", "events", "reference", "cuda", "graph"),
    "lr_schedule": ("constant", "cosine", "linear"),
    "on_collapse": ("warn", "stop", "rewind"),
    "device": ("auto", "cpu", "cuda"),
    "amp": ("off", "bf16"),
}
LOGS = ("tensorboard", "wandb", "mlflow")  # of logs.KINDS
# What tasks call their metric, for whom importing the tasks takes too long.
METRICS = {
    **dict.fromkeys(TASK_NAMES, "accuracy"), "adding": "MSE", "own-numbers": "MSE", "own-labels": "macro F1",
}  # fmt: skip
WITH_BASELINES = ("lstm", "gru")
WITH_MEMORY = ("lstm", "gru", "ln-lstm", "ln-gru")  # cells with a gate that keeps the state
_OWN_CELL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

NONE = "none"  # what people say to switch off an option that a preset has
DATA = Path("data")  # where data files go by default

# Sequences a data file holds unless told otherwise.
DEFAULT_SIZES = {"train": 100_000, "val": 5_000, "test": 10_000}

# What all presets of a name have in common. Where the gate's gradient has no bound, a single sequence of a batch may
# turn a step so that the gate shuts, for good; while the rate does not fall, the number of used samples goes on moving.
# On sine single batches still have gradients a hundred times as large as others, unless their norm is clipped lower.
_FALLING = {"gate_clip": 1.0, "lr": 1e-3, "lr_schedule": "linear", "decay_from": 0.3}
COMMON: dict[str, dict[str, Any]] = {"quick": _FALLING, "settled": _FALLING, "paper": {}}


def _preset(task: str, preset: str, **options: Any) -> TrainConfig:
    return TrainConfig(task=task, preset=preset, **{**COMMON[preset], **options})


_MNIST: dict[str, Any] = {
    "lr_schedule": "cosine", "decay_from": 0.0, "gate_clip": None, "batch_size": 128, "eval_every": 215,
}  # fmt: skip
# The paper trains on fresh batches without end; how long is not said. 100,000 steps at its learning rate let the number
# of used samples settle. The quick presets find such solutions in minutes on two CPU cores; on adding, batches of half
# the paper's size do as well for an LSTM, in half the time. The settled ones are for the paper's tables, as far as CPUs
# carry.
PRESETS = {
    "adding": {
        "quick": _preset(
            "adding", "quick",
            lr=2e-3, decay_from=0.5, gate_clip=0.1, batch_size=128, steps=4_000, eval_every=100,
        ),
        "settled": _preset(
            "adding", "settled", fresh_batches=True, decay_from=0.6, gate_clip=0.1, steps=6_000, eval_every=200
        ),
        "paper": _preset("adding", "paper", fresh_batches=True, steps=100_000),
    },
    "sine": {
        "quick": _preset("sine", "quick", gate_clip=0.2, steps=4_000, eval_every=100),
        "settled": _preset(
            "sine", "settled", fresh_batches=True, grad_clip=0.1, steps=9_000, eval_every=250, on_collapse="rewind"
        ),
        "paper": _preset("sine", "paper", fresh_batches=True, steps=100_000),
    },
    # The paper trains for 600 epochs at its learning rate. Quick: some ten minutes on two CPU cores. Settled: 20 epochs
    # of all digits. Over 784 steps a bound cuts what calls for samples and not the budget, which asks for fewer: the
    # gate shuts. So it may where a price is asked before anything is learned, which takes long without a memory.
    "mnist": {
        "quick": _preset("mnist", "quick", **_MNIST, epochs=10),
        "settled": _preset(
            "mnist", "settled", **_MNIST, steps=8_600, memory=784, lam_warmup=3_000, on_collapse="rewind"
        ),
        "paper": _preset("mnist", "paper", epochs=600, eval_every=215),
    },
    **{
        task: {
            "quick": _preset(
                task, "quick", true_lengths=True, batch_size=64, epochs=30, eval_every=50, patience=20
            ),
            "paper": _preset(task, "paper", true_lengths=True, epochs=300, eval_every=100),
        }
        for task in OWN_TASKS
    },
    # The paper trains for some 300 epochs. Quick: a few classes in minutes on two CPU cores.
    **{
        task: {
            **{
                preset: _preset(
                    task, preset, hidden_size=512, num_layers=2, dropout=0.5, batch_size=32, epochs=30, eval_every=25
                )
                for preset in ("quick", "settled")
            },
            "paper": _preset(task, "paper", hidden_size=512, num_layers=2, epochs=300, eval_every=38),
        }
        for task in ("ucf101", "videos")
    },
    # The paper stops early on the validation split. At ten times its learning rate more epochs only overfit. λ rises
    # over the first two: with the full price from the start few words are used before it is known which. A bound cuts
    # what calls for words, as on MNIST: with one of 1, λ=1e-3 and 400 words, 40 are used at an accuracy of 0.80.
    "imdb": {
        **{
            preset: _preset(
                "imdb", preset,
                gate_clip=None, hidden_size=128, dropout=0.2, epochs=6, eval_every=42, lam_warmup=168,
            )
            for preset in ("quick", "settled")
        },
        "paper": _preset("imdb", "paper", hidden_size=128, dropout=0.2, epochs=100, eval_every=84, patience=5),
    },
}  # fmt: skip
# Where a cell wants other options than the preset's, on a task or (None) on all. A GRU's gate opens at every step for
# longer than an LSTM's. The paper's GRU resets before the product.
FOR_CELL: dict[tuple[str | None, str, str], dict[str, Any]] = {
    ("adding", "quick", "gru"): {"batch_size": 256},
    ("adding", "settled", "gru"): {"lr": 2e-3},
    ("mnist", "quick", "gru"): {"lr": 2e-3},
    ("sine", "quick", "gru"): {"gate_clip": 1.0},
    # At 1e-3 an LSTM lost sine for good within 1,500 steps, at 1 ms with λ=1e-5 and at 0.5 ms with 1e-4.
    ("sine", "settled", "lstm"): {"lr": 7e-4},
    # A GRU learns sine late; with the full price from the start its gate shuts before it has learned anything.
    ("sine", "settled", "gru"): {"gate_clip": 5.0, "lam_warmup": 2_000},
    **{(None, preset, "gru"): {"reset_after": False} for preset in ("settled", "paper")},
}
# Without a gate, of a cell or (None) of all, no number of used samples has to settle, nor to come down. With a memory
# they solve sine within a thousand steps, where one that learns to skip would go on using every sample (at 2e-3 one of
# three LSTMs lost it for good at 0.5 ms). A GRU learns MNIST sooner without one.
FOR_PLAIN: dict[tuple[str, str, str | None], dict[str, Any]] = {
    ("adding", "settled", None): {"lr": 1e-3},
    ("sine", "settled", None): {"lr": 1e-3, "batch_size": 128, "memory": 100, "steps": 1_500},
    ("sine", "settled", "gru"): {"lr": 2e-3},
    ("mnist", "settled", "gru"): {"lr": 2e-3, "memory": None},
}


def is_own_cell(name: str) -> bool:
    """Whether a cell's name is one of one's own, ``package.module:Cell``."""
    return _OWN_CELL.fullmatch(name) is not None


def preset_of(task: str, preset: str) -> TrainConfig:
    """A task's preset.

    Raises:
        SkipRNNError: the task has none of that name.
    """
    if preset not in PRESETS[task]:
        having = [name for name, presets in PRESETS.items() if preset in presets]
        raise SkipRNNError(f"the preset {preset} is for {', '.join(having)}; {task} has {' and '.join(PRESETS[task])}")
    return PRESETS[task][preset]


def configure(task: str, preset: str, **options: object) -> TrainConfig:
    """A preset with the options that were given, those that are not None, put in its place; NONE stands for None.

    Args:
        task: one of ``TASK_NAMES``.
        preset: quick, settled or paper.
        options: fields of ``TrainConfig``, such as ``data="data/adding.h5"``, ``lam=1e-5``.

    Raises:
        SkipRNNError: the task has no such preset, or an option is out of range, or contradicts another.
    """
    config = preset_of(task, preset)
    given = {name: None if value == NONE else value for name, value in options.items() if value is not None}
    cell = str(given.get("cell", config.cell))
    changes = FOR_CELL.get((None, preset, cell), {}) | FOR_CELL.get((task, preset, cell), {})
    if cell not in WITH_MEMORY:
        changes["memory"] = None
    if given.get("skip", config.skip) is False:  # the plain cell is of torch's kind
        changes.pop("reset_after", None)
        changes |= FOR_PLAIN.get((task, preset, None), {}) | FOR_PLAIN.get((task, preset, cell), {})
    if "steps" in given:
        given.setdefault("epochs", None)
    elif "epochs" in given:
        given["steps"] = None
    return replace(config, **{**changes, **given})
