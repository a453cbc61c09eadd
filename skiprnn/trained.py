"""Trained runs, used from Python: ``load`` reads the directory that ``skiprnn train`` made.

config.json       the options of training; those of the network are read here
task.json         the task, with what it takes to prepare samples and to name answers
words.txt         where sequences are words: the vocabulary, a word a line, in the order of their numbers
checkpoints/      best.json and last.json, which name a safetensors file and hold config.json and task.json as
                  they were; in the file the network's tensors begin with ``model.``, the stack's with ``model.rnn.``
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skiprnn.cells import Cell, cell_named
from skiprnn.networks import Scale, SequenceModel, Standardize, ToFloat, recurrent_stack
from skiprnn.words import PADDING, TOKENIZER, digest_of_words, numbers_of_text

SCHEMA = "skiprnn-checkpoint"
SCHEMA_VERSION = 1
PREFIX = "model."  # of the network's tensors in a checkpoint; others are the optimizer's
OF_THE_STACK = ("skip", "p_skip", "min_skip", "max_skip", "gate")  # options in config.json, as ``recurrent_stack`` has


@dataclass(frozen=True)
class Classes:
    """One of several classes."""

    names: Sequence[str | int]

    def probabilities(self, output: Tensor) -> Tensor | None:
        """(..., K) -> (..., K), which sum to 1."""
        return output.softmax(-1)

    def values(self, output: Tensor) -> list[str | int]:
        """(N, K) -> the likeliest class of each."""
        return [self.names[best] for best in output.argmax(-1).tolist()]


@dataclass(frozen=True)
class Labels:
    """Any number of several labels."""

    names: Sequence[str]

    def probabilities(self, output: Tensor) -> Tensor | None:
        """(..., K) -> (..., K), each on its own."""
        return output.sigmoid()

    def values(self, output: Tensor) -> list[list[str]]:
        """(N, K) -> of each, the labels that are likelier than not."""
        return [[self.names[k] for k in row.nonzero()[:, 0].tolist()] for row in output > 0]


@dataclass(frozen=True)
class Numbers:
    """One number or several, in their own units."""

    names: Sequence[str]
    mean: Sequence[float] = (0.0,)  # the head's output is (number - mean) / std
    std: Sequence[float] = (1.0,)

    def probabilities(self, output: Tensor) -> Tensor | None:
        """Numbers have none."""
        return None

    def values(self, output: Tensor) -> list[Any]:
        """(N, K) -> numbers, by name where there are several."""
        rows = (output * output.new_tensor(self.std) + output.new_tensor(self.mean)).tolist()
        return [row[0] if len(self.names) == 1 else dict(zip(self.names, row, strict=True)) for row in rows]


class Predicted(NamedTuple):
    """What a model says of a sequence; of a model with ``each_step``, values and probabilities of each of its steps."""

    value: Any  # a class; a list of labels; a number, or numbers by name. With each_step, a list of T of these
    probabilities: Tensor | None  # (K,) or (T, K), in the order of the model's names; None of numbers
    used: Tensor  # (T,) bool: the samples that were used


class LoadedModel(SequenceModel):
    """A trained network: called with raw samples, (B, T, D), it returns ``(output, update_gate)``.

    Attributes:
        rnn: the recurrent stack, a ``SkipRNN`` or a baseline, ``batch_first``.
        head: the linear layer on its h.
        embedding: what is done to raw samples first: ``Standardize`` of one's own data, with ``mean`` and ``std``,
            ``Scale`` of bytes, an ``nn.Embedding`` of words, ``nn.Identity``.
        each_step: whether each step has an answer, instead of the sequence.
        task: the name of the task.
        answers: what outputs mean: ``Classes``, ``Labels`` or ``Numbers``. With another head, set another.
        step: updates of the weights at the checkpoint.
    """

    def __init__(self, *network: Any, task: str, answers: Classes | Labels | Numbers, step: int) -> None:
        super().__init__(*network)
        self.task = task
        self.answers = answers
        self.step = step
        self._text: dict[str, Any] | None = None  # the further arguments of numbers_of_text, where there are words

    @property
    def names(self) -> list[str | int]:
        """Names of classes, of labels or of numbers, in the order of the outputs."""
        return list(self.answers.names)

    @torch.no_grad()
    def predict(self, sequences: Any, *, batch_size: int = 256) -> list[Predicted]:
        """What the model says of each sequence, as ``skiprnn predict`` does.

        Args:
            sequences: raw samples, as they were before training: an array or tensor (N, T, D), or (T, D) of one
                sequence; or a list of (T, D) of different lengths. D may be left out if it is 1: (N, T), or (T,) of
                one. Of a model that reads words, their numbers likewise; or a text, or a list of texts.
            batch_size: sequences computed at once.

        Returns:
            An item for each sequence, also where there is one.

        Raises:
            ValueError: a shape does not fit, or a sample holds NaN, infinity or no number of a word.
        """
        found = [self._checked(x, number) for number, x in enumerate(self._separate(sequences))]
        if self.head.out_features != len(self.answers.names):
            raise ValueError(
                f"the head has {self.head.out_features} outputs, answers {len(self.answers.names)} names; set "
                "model.answers, such as skiprnn.trained.Classes([...])"
            )
        training, said = self.training, []
        self.eval()
        try:
            for start in range(0, len(found), batch_size):
                said += self._predicted(found[start : start + batch_size])
        finally:
            self.train(training)
        return said

    def _predicted(self, batch: list[Tensor]) -> list[Predicted]:
        lengths = torch.tensor([len(x) for x in batch])
        device = self.head.weight.device
        x = pad_sequence(batch, batch_first=True).to(device)
        output, update_gate = self(x, None if (lengths == x.shape[1]).all() else lengths.to(device))
        said = []
        for row, gate, length in zip(output.cpu(), update_gate.cpu(), lengths.tolist(), strict=True):
            of_steps = row[:length] if self.each_step else row[None]
            values, p = self.answers.values(of_steps), self.answers.probabilities(of_steps)
            used = gate[:length] > 0
            if self.each_step:
                said.append(Predicted(values, p, used))
            else:
                said.append(Predicted(values[0], None if p is None else p[0], used))
        return said

    def _separate(self, given: Any) -> Iterable[Any]:
        if isinstance(given, str):
            return [given]
        if not isinstance(given, Tensor | np.ndarray):
            return list(given)
        one_number = self._sample_size == 1
        several = given.ndim == 3 or (given.ndim == 2 and one_number and given.shape[1] != 1)
        return list(given) if several else [given]

    @property
    def _sample_size(self) -> int:
        return 1 if isinstance(self.embedding, nn.Embedding) else self.rnn.input_size

    def _checked(self, given: Any, number: int) -> Tensor:
        """A sequence as the network takes it, on the CPU: (T, D) float32, or (T,) numbers of words."""
        if isinstance(given, str):
            return self._numbers(given, number)
        words, size = isinstance(self.embedding, nn.Embedding), self._sample_size
        x = torch.as_tensor(np.array(given) if not isinstance(given, Tensor) else given.detach().cpu())
        if x.dim() not in ((1, 2) if size == 1 else (2,)) or x.shape[1:] not in ((), (size,)):
            raise ValueError(f"sequence {number} has shape {tuple(x.shape)}; {self.task} takes (T, {size})")
        x = x.to(torch.int32 if words else torch.float32).reshape((-1,) if words else (-1, size))
        wrong = ~x.isfinite() if not isinstance(self.embedding, nn.Embedding) else ~_within(x, self.embedding)
        if wrong.any():
            what = "no number of a word" if words else "NaN or infinity"
            raise ValueError(f"sequence {number}, step {int(wrong.nonzero()[0, 0])}: {what}; drop or fill it")
        return x

    def _numbers(self, text: str, number: int) -> Tensor:
        if self._text is None:
            raise ValueError(f"sequence {number} is a text; this run reads numbers, or lacks its words.txt")
        x = numbers_of_text(text, **self._text)
        if not len(x):
            raise ValueError(f"sequence {number} holds no words")
        return x


def load(run: str | Path, *, cell: Cell | type[Cell] | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """Load what ``skiprnn train`` trained, without its data, in eval mode.

    Args:
        run: a run directory, of which the best checkpoint is taken; or one of its checkpoints,
            ``RUN/checkpoints/last.json`` or a safetensors file beside it.
        cell: of a run with a cell of one's own, that cell: no code is imported because a file names it.
        device: where to put it.

    Returns:
        The model. Of videos it reads features of frames: ``skiprnn predict`` makes these of a video file.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: a file is damaged or of another version, or the run has a cell of one's own.
    """
    folder, checkpoint = _found(Path(run))
    saved, weights = _read_checkpoint(checkpoint)
    # As they were in training: those beside it may have been edited. Runs of the first versions have only those.
    config = saved["numbers"].get("config") or _read_json(folder / "config.json")
    task = saved["numbers"].get("task") or _read_json(folder / "task.json")
    try:
        options = {name: config[name] for name in OF_THE_STACK if name in config}
        network = _network(task)
        sizes = (network.input_size, config["hidden_size"], config["num_layers"])
        rnn = recurrent_stack(_cell_of(config, cell, folder), *sizes, **options)
        model = LoadedModel(
            rnn, len(network.answers.names), network.embedding, config["dropout"], network.each_step,
            task=task["task"], answers=network.answers, step=saved["numbers"]["step"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} does not describe its network: {error!r}; train the run again") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit the run: {' '.join(str(error).split())}") from error
    if isinstance(model.embedding, nn.Embedding) and (folder / "words.txt").exists():
        model._text = _vocabulary(folder / "words.txt", task, pads=not config.get("true_lengths", False))
    return model.to(device).eval()


def _found(path: Path) -> tuple[Path, Path]:
    """The run directory, and the JSON file of the checkpoint, that ``load`` was asked for."""
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(f"{path} is not a run directory (it has no config.json); `skiprnn train` makes one")
        return path, path / "checkpoints" / "best.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run or checkpoint {path}; `skiprnn train` makes one")
    if path.suffix == ".json":
        return path.parent.parent, path
    naming = [other for other in path.parent.glob("*.json") if _read_json(other).get("tensors") == path.name]
    if not naming:
        raise ValueError(f"no checkpoint beside {path} names it; give the run directory that it is of")
    return path.parent.parent, naming[0]


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint's JSON file holds, and the network's tensors."""
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
        tensors = tensors_of(data)
    except Exception as error:
        raise ValueError(f"cannot read {path}: {error}; take another checkpoint, or train the run again") from error
    return content, tensors_of_network(tensors)


def tensors_of_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors that ``SequenceModel.load_state_dict`` takes."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def _read_pair(path: Path) -> tuple[dict[str, Any], bytes]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent.parent} has no checkpoint {path.stem!r} yet; train it with `skiprnn train --resume "
            f"{path.parent.parent}`"
        )
    content = _read_json(path)
    return content, (path.parent / Path(str(content.get("tensors"))).name).read_bytes()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: truncated, damaged or not JSON; train the run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read {path}: it holds no object; train the run again")
    return content


def _cell_of(config: Mapping[str, Any], given: Cell | type[Cell] | None, folder: Path) -> Cell:
    named = cell_named(config["cell"], reset_after=config.get("reset_after", True))
    if given is None and named is None:
        raise ValueError(f"{folder} has a cell of one's own, {config['cell']}; pass it: skiprnn.load(run, cell=...)")
    if given is not None and named is not None:
        raise ValueError(f"{folder} has the cell {config['cell']}, which is ready; pass no other")
    cell = given() if isinstance(given, type) else named or given
    assert cell is not None
    return cell


class _Network(NamedTuple):
    """What a task's network reads and says."""

    input_size: int
    answers: Classes | Labels | Numbers
    embedding: nn.Module | None = None
    each_step: bool = False


def _network(task: Mapping[str, Any]) -> _Network:
    """The same of the contents of task.json."""
    name = task["task"]
    if name == "adding":
        return _Network(2, Numbers(("sum",)))
    if name == "sine":
        return _Network(1, Classes((0, 1)))
    if name == "mnist":
        return _Network(1, Classes(tuple(task["digits"])), Scale())
    if name == "imdb":
        words = nn.Embedding(task["vocabulary"], task["dimensions"], padding_idx=PADDING)
        return _Network(task["dimensions"], Classes(("negative", "positive")), words)
    if name in ("ucf101", "videos"):
        return _Network(task["features"], Classes(_listed(task["classes"])), ToFloat())
    if not str(name).startswith("own-"):
        raise ValueError(f"the run is of the unknown task {name}; install a newer skiprnn")
    answers: Classes | Labels | Numbers
    if name == "own-labels":
        answers = Labels(_listed(task["labels"]))
    elif name == "own-numbers":  # of the first versions, one a sequence, without a name
        mean, std = _listed(task["target_mean"]), _listed(task["target_std"])
        answers = Numbers(_listed(task.get("names", '["value"]')), mean, std)
    else:
        answers = Classes(_listed(task["classes"]))
    standardize = Standardize(_listed(task["mean"]), _listed(task["std"]))
    return _Network(task["features"], answers, standardize, name == "own-tags" or task.get("each_step", False))


def _listed(value: Any) -> list[Any]:
    """A list as task.json has it, as JSON in a text; or a single number."""
    return list(json.loads(value)) if isinstance(value, str) else [value]


def _vocabulary(path: Path, task: Mapping[str, Any], *, pads: bool) -> dict[str, Any]:
    words = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")[:-1]
    if task["tokenizer"] != TOKENIZER:
        raise ValueError(f"unknown tokeniser {task['tokenizer']}; install a newer skiprnn")
    if digest_of_words(words) != task["vocabulary_sha256"]:
        raise ValueError(f"{path} was edited since the run was trained; restore it")
    numbers = {word: number for number, word in enumerate(words) if word}
    return {"numbers": numbers, "length": task["length"], "pads": pads}


def _within(x: Tensor, embedding: nn.Embedding) -> Tensor:
    return (x >= 0) & (x < embedding.num_embeddings)
