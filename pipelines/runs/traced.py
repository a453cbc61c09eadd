"""A run's network as ``torch.export`` takes it: one step with its state laid open, or sequences of any length."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.errors import SkipRNNError
from pipelines.runs.directory import load_words
from pipelines.runs.load import TrainedModel
from pipelines.runs.model import with_gate
from pipelines.tasks import Task
from skiprnn import SkipRNN
from skiprnn.engines import native
from skiprnn.networks import SequenceModel

InputForm = Literal["raw", "network"]
"""Samples as ``predict`` takes them, or as the recurrent network reads them, standardised or embedded."""
STEPS = 5  # of the sequences that are traced; programs take any number


class Traced(NamedTuple):
    """A step as ``torch.export`` has it, for any batch size, and the names of what goes in and comes out."""

    program: torch.export.ExportedProgram
    inputs: list[str]
    outputs: list[str]
    initial: dict[str, list[Any]]  # the state before the first step, of one sequence


class _Opened(nn.Module):
    """A model's parts, and what its outputs say."""

    rnn: SkipRNN

    def __init__(self, model: SequenceModel, task: Task, input: InputForm) -> None:
        super().__init__()
        gated = with_gate(model)
        assert isinstance(gated.rnn, SkipRNN)
        self.embedding = gated.embedding if input == "raw" else nn.Identity()
        self.rnn, self.head, self.each_step = gated.rnn, gated.head, gated.each_step
        self.readout = task.answers.readout
        self.rnn.engine = "auto"  # a run may have named one that cannot be traced

    def said(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What a state says: the answer, and the outputs of the head that it is made of, (..., output_size)."""
        output = self.head(h).float()
        return self.readout(output), output

    def example(self, *shape: int) -> Tensor:
        """Samples (*shape, D), or numbers of words, (*shape,)."""
        if isinstance(self.embedding, nn.Embedding):
            return torch.zeros(shape, dtype=torch.int32)
        return torch.zeros(*shape, self.rnn.input_size)


class Step(_Opened):
    """One step of a model, its state laid open."""

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(B, D), or (B,) words, and the fields of the state -> answer, output, the fields again, skip_next (B,)."""
        _, after, skip_next = self.rnn.step(self.embedding(x), self.rnn.cell.State(*state))
        return *self.said(after[0][-1]), *after, skip_next


class Whole(_Opened):
    """A model for whole sequences, of different lengths."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D), or (B, T) words, and lengths (B,) -> answer, output, and update_gate (B, T)."""
        h, _, update_gate = self.rnn(self.embedding(x), lengths=lengths, every_step=self.each_step)
        return *self.said(h), update_gate


def trace_step(model: SequenceModel, task: Task, input: InputForm = "raw") -> Traced:
    """Trace one step of a model, for any batch size."""
    step = Step(model, task, input).cpu().eval()
    state = [tensor.detach() for tensor in step.rnn.initial_state(2)]
    fields = step.rnn.cell.State._fields
    initial = {
        name: (tensor[:, 0] if tensor.dim() == 3 else tensor[0]).tolist()
        for name, tensor in zip(fields, state, strict=True)
    }
    batch = torch.export.Dim("batch")
    of_state = tuple({1: batch} if tensor.dim() == 3 else {0: batch} for tensor in state)
    with torch.no_grad():
        program = torch.export.export(step, (step.example(2), *state), dynamic_shapes=({0: batch}, of_state))
    outputs = ["answer", "output", *(f"{name}_out" for name in fields), "skip_next"]
    return Traced(program, ["x", *fields], outputs, initial)


def trace_sequences(model: SequenceModel, task: Task, input: InputForm = "raw") -> torch.export.ExportedProgram:
    """Trace a model on whole sequences, for any batch size and number of steps, with the compiled engine inside.

    Raises:
        SkipRNNError: that engine does not run the model's cell here, and no other takes any number of steps.
    """
    whole = Whole(model, task, input).cpu().eval().requires_grad_(False)
    if reason := native.unfit(whole.rnn.cell, tuple(whole.rnn.parameters())):
        raise SkipRNNError(
            f"torch takes sequences of any length with the compiled engine only, and {reason}; export a step instead, "
            "with --format onnx"
        )
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
    example = whole.example(2, STEPS), torch.tensor([STEPS, STEPS - 1])
    with torch.no_grad():
        program = torch.export.export(whole, example, dynamic_shapes=({0: batch, 1: steps}, {0: batch}))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def description(run: Path, trained: TrainedModel, input: InputForm) -> dict[str, Any]:
    """All that who has the exported file alone must know to use it, for JSON."""
    task, raw = trained.task, input == "raw"
    mean, std = task.normalization or (None, None)
    known = {
        "task": task.name,
        "input": input,
        "x": _samples(task, raw),
        "features": task.stored_size if raw else task.input_size,
        "columns": list(task.columns) or None,
        "mean": mean,
        "std": std,
        "answers": task.answers.kind,
        "names": [str(name) for name in task.answers.names],
        "each_step": task.each_step,
        "true_lengths": trained.config.true_lengths,
    }
    if task.reads_text:
        words = load_words(run)
        task.check_words(words, Path(run))
        known["words"] = words
    return {**known, "parameters": {name: value for name, value in asdict(task).items() if name not in known}}


def _samples(task: Task, raw: bool) -> str:
    """What stands in x, in words."""
    if task.reads_text:
        return "numbers of words, their places in the list words" if raw else "vectors of words"
    if task.normalization is None:
        return "samples as they are in the data"
    if raw:
        return "samples as they are in the data, standardised inside"
    return "standardised samples, (sample - mean) / std"
