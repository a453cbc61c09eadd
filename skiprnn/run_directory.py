"""What ``skiprnn.load`` reads of the directory that ``skiprnn train`` made.

config.json       the options of training; those of the network are read here
task.json         the task, with what it takes to prepare samples and to name answers
words.txt         where sequences are words: the vocabulary, a word a line, in the order of their numbers
checkpoints/      best.json and last.json, which name a safetensors file and hold config.json and task.json as they
                  were; names of the network's tensors begin with ``model.``, of its stack's with ``model.rnn.``
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from skiprnn.answers import Answers, Classes, Labels, Numbers
from skiprnn.models import run_or_model
from skiprnn.networks import Scale, Standardize, ToFloat
from skiprnn.words import PADDING, TOKENIZER, digest_of_words

SCHEMA = "skiprnn-checkpoint"
SCHEMA_VERSION = 1
PREFIX = "model."  # of the network's tensors in a checkpoint; others are the optimizer's


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run directory, and the JSON file of the checkpoint, that ``load`` was given a path of.

    All that ``load`` takes passes through here, names of models too.

    Raises:
        FileNotFoundError, ValueError: there is none.
    """
    path = run_or_model(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(f"{path} is not a run directory (it has no config.json); `skiprnn train` makes one")
        return path, path / "checkpoints" / "best.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run or checkpoint {path}; `skiprnn train` makes one")
    if path.suffix == ".json":
        return path.parent.parent, path
    naming = [other for other in path.parent.glob("*.json") if read_json(other).get("tensors") == path.name]
    if not naming:
        raise ValueError(f"no checkpoint beside {path} names it; give the run directory that it is of")
    return path.parent.parent, naming[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The numbers of a checkpoint, and the network's tensors."""
    from safetensors.torch import load as tensors_of

    try:
        content, data = _read_pair(path)
    except FileNotFoundError:  # a training that goes on may have just replaced it
        content, data = _read_pair(path)
    try:
        schema = content["schema"], content["schema_version"]
        if schema != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(f"it has schema {schema[0]} {schema[1]}, this skiprnn reads {SCHEMA} {SCHEMA_VERSION}")
        if hashlib.sha256(data).hexdigest() != content["tensors_sha256"]:
            raise ValueError(f"{content['tensors']} does not match its checksum")
        numbers, tensors = dict(content["numbers"]), tensors_of(data)
    except Exception as error:
        raise ValueError(f"cannot read {path}: {error}; take another checkpoint, or train the run again") from error
    return numbers, tensors_of_network(tensors)


def tensors_of_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors that ``SequenceModel.load_state_dict`` takes."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def _read_pair(path: Path) -> tuple[dict[str, Any], bytes]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent.parent} has no checkpoint {path.stem!r} yet; train it with `skiprnn train --resume "
            f"{path.parent.parent}`"
        )
    content = read_json(path)
    tensors = path.parent / Path(str(content.get("tensors"))).name
    if tensors.is_dir():
        raise ValueError(f"cannot read {path}: it names no file of tensors; train the run again")
    return content, tensors.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: there is none in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: truncated, damaged or not JSON; train the run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read {path}: it holds no object; train the run again")
    return content


class Network(NamedTuple):
    """What a task's network reads and says."""

    input_size: int
    answers: Answers
    embedding: nn.Module | None = None
    each_step: bool = False
    columns: tuple[str, ...] = ()  # names of the features, where the data has them


def network_of_task(task: Mapping[str, Any]) -> Network:
    """The same of the contents of task.json."""
    name = task["task"]
    if name == "adding":
        return Network(2, Numbers(("sum",)))
    if name == "sine":
        return Network(1, Classes((0, 1)))
    if name == "mnist":
        return Network(1, Classes(tuple(task["digits"])), Scale())
    if name == "imdb":
        words = nn.Embedding(task["vocabulary"], task["dimensions"], padding_idx=PADDING)
        return Network(task["dimensions"], Classes(("negative", "positive")), words)
    if name in ("ucf101", "videos"):
        return Network(task["features"], Classes(_listed(task["classes"])), ToFloat())
    if not str(name).startswith("own-"):
        raise ValueError(f"the run is of the unknown task {name}; install a newer skiprnn")
    answers: Answers
    if name == "own-labels":
        answers = Labels(_listed(task["labels"]))
    elif name == "own-numbers":  # of the first versions, one a sequence, without a name
        mean, std = _listed(task["target_mean"]), _listed(task["target_std"])
        answers = Numbers(_listed(task.get("names", '["value"]')), mean, std)
    else:
        answers = Classes(_listed(task["classes"]))
    standardize = Standardize(_listed(task["mean"]), _listed(task["std"]))
    each_step, columns = name == "own-tags" or task.get("each_step", False), tuple(_listed(task.get("columns", "[]")))
    return Network(task["features"], answers, standardize, each_step, columns)


def _listed(value: Any) -> list[Any]:
    """A list as task.json has it, as JSON in a text; or a single number."""
    return list(json.loads(value)) if isinstance(value, str) else [value]


def read_vocabulary(path: Path, task: Mapping[str, Any], *, pads: bool) -> dict[str, Any]:
    words = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")[:-1]
    if task["tokenizer"] != TOKENIZER:
        raise ValueError(f"unknown tokeniser {task['tokenizer']}; install a newer skiprnn")
    if digest_of_words(words) != task["vocabulary_sha256"]:
        raise ValueError(f"{path} was edited since the run was trained; restore it")
    numbers = {word: number for number, word in enumerate(words) if word}
    return {"numbers": numbers, "length": task["length"], "pads": pads}
