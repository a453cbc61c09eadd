"""Trained runs, used from Python: ``load``."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skiprnn.answers import Answers
from skiprnn.cells import Cell, cell_named
from skiprnn.networks import SequenceModel, recurrent_stack, shapes_only
from skiprnn.run_directory import find_checkpoint, network_of_task, read_checkpoint, read_json, read_vocabulary
from skiprnn.words import numbers_of_text

OF_THE_STACK = ("skip", "p_skip", "min_skip", "max_skip", "gate")  # options in config.json, as ``recurrent_stack`` has


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
            ``Scale`` of bytes, an ``nn.Embedding`` of words, ``ToFloat`` of features of frames, ``nn.Identity``.
        each_step: whether each step has an answer, instead of the sequence.
        columns: names of the features, in the order in which samples hold them; () where the data has none.
        task: the name of the task.
        answers: what outputs mean: ``Classes``, ``Labels`` or ``Numbers``. With another head, set another.
        step: updates of the weights at the checkpoint.
    """

    def __init__(self, *network: Any, task: str, answers: Answers, columns: tuple[str, ...], step: int) -> None:
        super().__init__(*network)
        self.columns = columns
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
        training, said = self.training, []
        self.eval()
        try:
            for start in range(0, len(found), batch_size):
                said += self._predicted(found[start : start + batch_size])
        finally:
            self.train(training)
        return said

    def extra_repr(self) -> str:
        return f"task={self.task!r}"

    def _predicted(self, batch: list[Tensor]) -> list[Predicted]:
        lengths = torch.tensor([len(x) for x in batch])
        device = next(self.rnn.parameters()).device
        x = pad_sequence(batch, batch_first=True).to(device)
        output, update_gate = self(x, None if (lengths == x.shape[1]).all() else lengths.to(device))
        if output.shape[-1] != len(self.answers.names):
            raise ValueError(
                f"the head has {output.shape[-1]} outputs, answers {len(self.answers.names)} names; set model.answers, "
                "such as skiprnn.answers.Classes([...])"
            )
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
        x = x.to(torch.float64 if words else torch.float32).reshape((-1,) if words else (-1, size))
        wrong = ~x.isfinite() if not isinstance(self.embedding, nn.Embedding) else ~_within(x, self.embedding)
        if wrong.any():
            what = "no number of a word" if words else "NaN or infinity"
            raise ValueError(f"sequence {number}, step {int(wrong.nonzero()[0, 0])}: {what}; drop or fill it")
        return x.int() if words else x

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
            ``RUN/checkpoints/last.json`` or a safetensors file beside it; or the name of a model, as `skiprnn models`
            lists them.
        cell: of a run with a cell of one's own, that cell: no code is imported because a file names it.
        device: where to put it.

    Returns:
        The model. Of videos it reads features of frames: ``skiprnn predict`` makes these of a video file.

    Raises:
        FileNotFoundError: there is no such run, checkpoint or model.
        ValueError: a file is damaged or of another version, or the run has a cell of one's own.
    """
    folder, checkpoint = find_checkpoint(Path(run))
    numbers, weights = read_checkpoint(checkpoint)
    # As they were in training: those beside it may have been edited. Runs of the first versions have only those.
    config = numbers.get("config") or read_json(folder / "config.json")
    task = numbers.get("task") or read_json(folder / "task.json")
    cell = _cell_of(config, cell, folder)
    layers = config.get("num_layers", 1)

    def described() -> LoadedModel:
        options = {name: config[name] for name in OF_THE_STACK if name in config}
        network = network_of_task(task)
        sizes = (network.input_size, config["hidden_size"], layers)
        return LoadedModel(
            recurrent_stack(cell, *sizes, **options), len(network.answers.names), network.embedding,
            config.get("dropout", 0.0), network.each_step,
            task=task["task"], answers=network.answers, columns=network.columns, step=numbers["step"],
        )  # fmt: skip

    try:
        if not any(name.endswith(f"_l{layers - 1}") for name in weights):  # before so many are made
            raise ValueError(f"{checkpoint} does not fit the run, which has num_layers {layers}")
        with shapes_only():  # what sizes a file claims takes no memory before they fit
            described().load_state_dict({name: tensor.to("meta") for name, tensor in weights.items()})
        model = described()
        model.load_state_dict(weights)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} does not describe its network: {error!r}; train the run again") from error
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit the run: {' '.join(str(error).split())}") from error
    if isinstance(model.embedding, nn.Embedding) and (folder / "words.txt").exists():
        model._text = read_vocabulary(folder / "words.txt", task, pads=not config.get("true_lengths", False))
    return model.to(device).eval()


def _cell_of(config: Mapping[str, Any], given: Cell | type[Cell] | None, folder: Path) -> Cell:
    if "cell" not in config:
        raise ValueError(f"{folder} does not describe its network: it names no cell; train the run again")
    named = cell_named(config["cell"], reset_after=config.get("reset_after", True))
    if given is None and named is None:
        raise ValueError(f"{folder} has a cell of one's own, {config['cell']}; pass it: skiprnn.load(run, cell=...)")
    if given is not None and named is not None:
        raise ValueError(f"{folder} has the cell {config['cell']}, which is ready; pass no other")
    cell = given() if isinstance(given, type) else named or given
    assert cell is not None
    return cell


def _within(x: Tensor, embedding: nn.Embedding) -> Tensor:
    return (x >= 0) & (x < embedding.num_embeddings) & (x == x.floor())
