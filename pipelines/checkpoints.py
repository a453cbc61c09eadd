"""Checkpoints: tensors as safetensors, the rest as JSON, never a pickle.

    checkpoints/step-00001200-89abcdef.safetensors   weights and optimizer state, named by step and SHA-256
    checkpoints/last.json, best.json                 the step's numbers, the tensor file's name and SHA-256

The tensors are written first and the JSON that names them after, each atomically, so that a process killed at any
moment leaves the former checkpoint or the new one.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipelines.errors import SkipRNNError
from pipelines.storage import atomic_path, write_text

SCHEMA = "skiprnn-checkpoint"
SCHEMA_VERSION = 1
NAMES = ("last", "best")


@dataclass(frozen=True)
class Checkpoint:
    """A saved moment of training."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]  # JSON, with the step


def save_checkpoint(run: Path, names: tuple[str, ...], checkpoint: Checkpoint) -> None:
    """Save a checkpoint as each of ``names``, "last" or "best", and drop tensor files that no name needs.

    Raises:
        SkipRNNError: it cannot be written; what was saved before is intact.
    """
    folder = Path(run) / "checkpoints"
    data = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    tensor_file = folder / f"step-{checkpoint.numbers['step']:08d}-{digest[:8]}.safetensors"
    with atomic_path(tensor_file) as temporary:
        temporary.write_bytes(data)
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "tensors": tensor_file.name,
        "tensors_sha256": digest,
        "numbers": checkpoint.numbers,
    }
    for name in names:
        write_text(folder / f"{name}.json", json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")
    try:
        needed = {_read(path)["tensors"] for name in NAMES if (path := folder / f"{name}.json").exists()}
    except (OSError, ValueError, KeyError):
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
        SkipRNNError: it is missing, damaged, of another schema, or not safetensors.
    """
    path = Path(run) / "checkpoints" / f"{name}.json"
    if not path.exists():
        raise SkipRNNError(f"{run} has no checkpoint {name!r} yet; train it with `skiprnn train --resume {run}`")
    try:
        try:
            return _load(path)
        except FileNotFoundError:  # a training that goes on has just replaced it
            return _load(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        other = "best" if name == "last" else "last"
        raise SkipRNNError(
            f"cannot load the checkpoint {path}: truncated or damaged ({error}); evaluate with --checkpoint {other} "
            "or train the run again"
        ) from error


def _load(path: Path) -> Checkpoint:
    content = _read(path)
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
    data = (path.parent / content["tensors"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != content["tensors_sha256"]:
        raise ValueError(f"{content['tensors']} does not match its checksum")
    if not isinstance(content["numbers"]["step"], int):
        raise ValueError("it does not say its step")
    return Checkpoint(load(data), content["numbers"])


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
