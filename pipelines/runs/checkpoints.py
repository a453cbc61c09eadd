"""Checkpoints: tensors as safetensors, the rest as JSON, never a pickle.

    checkpoints/step-00001200-89abcdef.safetensors   weights and optimizer state, named by step and SHA-256
    checkpoints/last.json, best.json                 the step's numbers, the tensor file's name and SHA-256

The tensors are written first and the JSON that names them after, each atomically, so that a process killed at any
moment leaves the former checkpoint or the new one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipelines.data.doors import read_bytes, read_json, reading
from pipelines.data.fields import check_fields
from pipelines.data.files import atomic_path, write_json
from pipelines.data.memory import UNLIMITED
from pipelines.errors import SkipRNNError
from pipelines.runs.named import is_model
from skiprnn.run_directory import SCHEMA, SCHEMA_VERSION

NAMES = ("last", "best")
REWINDS = 3  # of a run, to its best checkpoint
JSON_BYTES = 2**24  # of the JSON, at most
MEASURED = ("loss", "task_loss", "budget_loss", "metric", "used", "grad_norm")


@dataclass
class Progress:
    """Where training stands: the numbers of a checkpoint."""

    step: int
    seconds: float = 0.0
    best_objective: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    shut_evaluations: int = 0  # in a row until now, see collapse.py
    shut_since: int = 0  # step of the first of them
    best_metric: float | None = None  # of all evaluations of a Skip RNN
    lost_evaluations: int = 0  # in a row until now that did not keep the metric that is to be kept, see budgets.py
    rewinds: int = 0
    lr_scale: float = 1.0  # halved by each rewind
    lam: float | None = None  # where it is found while training, see budgets.py; None at first
    grad_norm_max: float = 0.0  # since the last evaluation
    sums: list[float] = field(default_factory=lambda: [0.0] * (len(MEASURED) + 1))  # since the last evaluation
    data_digest: str = ""
    config: dict[str, Any] | None = None  # that it was trained with; None in runs from before this was kept
    task: dict[str, Any] | None = None  # the contents of task.json; None as above
    metrics_digest: str = ""  # of the lines of metrics.jsonl up to the step

    def __post_init__(self) -> None:
        best_is_known = math.isfinite(self.best_objective) if self.best_step else self.best_objective == math.inf
        if not (0 <= self.best_step <= self.best_step + self.evaluations_since_best <= self.step and best_is_known):
            raise ValueError("its steps contradict each other")
        if not (0 <= self.shut_evaluations <= self.step and 0 <= self.shut_since <= self.step and self.rewinds >= 0):
            raise ValueError("its counts of a shut gate contradict its step")
        if not 0 <= self.lost_evaluations <= self.step:
            raise ValueError("its count of evaluations that lost the metric contradicts its step")
        if not 0 < self.lr_scale <= 1:
            raise ValueError("its lr_scale must lie in 0..1, 0 excluded")
        if not (0 < (1 if self.lam is None else self.lam) < math.inf):
            raise ValueError("its λ must be a positive number")
        measured = [self.seconds, self.grad_norm_max, self.best_metric or 0.0, *self.sums]
        if len(self.sums) != len(MEASURED) + 1 or not all(map(math.isfinite, measured)):
            raise ValueError(f"its seconds, largest norm, best metric and {len(MEASURED) + 1} sums must be finite")


@dataclass(frozen=True)
class Checkpoint:
    """A saved moment of training."""

    tensors: dict[str, Tensor]
    progress: Progress


def save_checkpoint(run: Path, names: tuple[str, ...], checkpoint: Checkpoint) -> None:
    """Save a checkpoint as each of ``names``, "last" or "best", and drop tensor files that no name needs.

    Raises:
        SkipRNNError: it cannot be written; what was saved before is intact.
    """
    folder = Path(run) / "checkpoints"
    data = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    tensor_file = folder / f"step-{checkpoint.progress.step:08d}-{digest[:8]}.safetensors"
    with atomic_path(tensor_file) as temporary:
        temporary.write_bytes(data)
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "tensors": tensor_file.name,
        "tensors_sha256": digest,
        "numbers": asdict(checkpoint.progress),
    }
    for name in names:
        write_json(folder / f"{name}.json", {**content, "sha256": _digest(content)})
    try:
        needed = {_read(path)["tensors"] for name in NAMES if (path := folder / f"{name}.json").exists()}
    except (SkipRNNError, KeyError, TypeError):
        return  # one of them is damaged: drop nothing
    for path in folder.glob("step-*.safetensors"):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def has_checkpoint(run: Path, name: str) -> bool:
    """Whether the run has a checkpoint of that name."""
    return (Path(run) / "checkpoints" / f"{name}.json").exists()


def load_checkpoint(run: Path, name: str) -> Checkpoint:
    """Load the checkpoint "last" or "best".

    Raises:
        SkipRNNError: it is missing, damaged, of another schema, not safetensors, or too large for memory.
    """
    path = Path(run) / "checkpoints" / f"{name}.json"
    if not path.exists():
        if is_model(run):
            raise SkipRNNError(
                f"{Path(run).name} is a model that is ready, with the checkpoint 'best' alone; ask for that"
            )
        raise SkipRNNError(f"{run} has no checkpoint {name!r} yet; train it with `skiprnn train --resume {run}`")
    try:
        return _load(path)
    except SkipRNNError:  # it is damaged, or a training that goes on has just replaced it
        return _load(path)


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors of a checkpoint whose names, shapes or types are not those wanted, or that are not finite.

    Args:
        found: by name.
        wanted: what they are for.
        what: where they were found, the beginning of the message.

    Raises:
        SkipRNNError: naming the first that is wrong.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            reason = f"it {'lacks' if name in wanted else 'has the unknown'} {name}"
        elif found[name].shape != wanted[name].shape or found[name].dtype != wanted[name].dtype:
            said, asked = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (found[name], wanted[name]))
            reason = f"{name} is {said}, not {asked}"
        elif not torch.isfinite(found[name]).all():
            raise SkipRNNError(f"{what} has NaN or infinity in {name}; train the run again with a lower --lr")
        else:
            continue
        raise SkipRNNError(f"{what} does not fit its config.json: {reason}; restore it, or train the run again")


def _load(path: Path) -> Checkpoint:
    content, remedy = _read(path), _remedy(path)
    with reading(path, "a checkpoint", remedy):
        digest = content.pop("sha256")
        if (content["schema"], content["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
            raise SkipRNNError(
                f"{path} has schema {content['schema']} {content['schema_version']}, this skiprnn reads {SCHEMA} "
                f"{SCHEMA_VERSION}; train the run again"
            )
        if digest != _digest(content):
            raise ValueError("its contents do not match its checksum")
        if Path(content["tensors"]).name != content["tensors"]:
            raise ValueError("it names a tensor file elsewhere")
        data = read_bytes(path.parent / content["tensors"], remedy, limit=UNLIMITED)
        if hashlib.sha256(data).hexdigest() != content["tensors_sha256"]:
            raise ValueError(f"{content['tensors']} does not match its checksum")
        check_fields(Progress, content["numbers"])
        return Checkpoint(load(data), Progress(**content["numbers"]))


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, dict, _remedy(path), limit=JSON_BYTES)


def _remedy(path: Path) -> str:
    return f"evaluate with --checkpoint {'best' if path.stem == 'last' else 'last'}, or train the run again"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
