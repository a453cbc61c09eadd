"""The network that a run trains: what prepares the samples, a recurrent stack, and a linear head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skiprnn.baselines import RandomSkipGRU, RandomSkipLSTM
from skiprnn.cells import GRU, Cell
from skiprnn.modules import SkipRNN
from skiprnn.problem import transformed
from skiprnn.stack import RecurrentStack
from skiprnn.streaming import Stream

OPEN = 100.0  # bias of a gate that opens at every step


class ModelOutput(NamedTuple):
    """What the network says of a batch."""

    output: Tensor  # (B, output_size), or (B, T, output_size) with each_step, float32
    update_gate: Tensor  # (B, T)


class Standardize(nn.Module):
    """(x - mean) / std of each feature, as the training split has them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Scale(nn.Module):
    """Bytes to [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


class ToFloat(nn.Module):
    """Features as float32, however they are stored."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class SequenceModel(nn.Module):
    """An embedding of the input, a recurrent stack, and a linear head on its last hidden state, or on every one.

    With ``each_step`` what the head says stands through the steps that are skipped, whose state is a copy. It is
    computed there too: the gate's gradient wants the loss of each step by that step's state.

    Args:
        rnn: a ``SkipRNN`` or one of the baselines, with ``batch_first``.
        output_size: outputs of the head.
        embedding: turns x as it is stored, (B, T, D) or (B, T), into what ``rnn`` reads; None: it reads x.
        dropout: in training, the share of the head's inputs that are dropped.
        each_step: every step has an answer of its own, instead of the sequence.
    """

    def __init__(
        self,
        rnn: RecurrentStack,
        output_size: int,
        embedding: nn.Module | None = None,
        dropout: float = 0,
        each_step: bool = False,
    ) -> None:
        super().__init__()
        self.each_step = each_step
        self.embedding = nn.Identity() if embedding is None else embedding
        self.rnn = rnn
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(rnn.hidden_size, output_size)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> ModelOutput:
        """x as the task stores it, (B, T, D) or (B, T), and lengths (B,) -> the output, and the gate (B, T)."""
        table = None
        if self._embeds_numbers() and x.is_cpu and not torch.compiler.is_compiling() and not transformed():
            numbers, x = torch.unique(x, return_inverse=True)  # each word that occurs is embedded once
            table = self.embedding(numbers)
        else:
            x = self.embedding(x)
        h, _, update_gate = self.rnn(x, lengths=lengths, every_step=self.each_step, table=table)
        return ModelOutput(self.head(self.dropout(h)).float(), update_gate)

    def _embeds_numbers(self) -> bool:
        """Whether a number's vector and gradient are the same however often it occurs, and where."""
        return type(self.embedding) is nn.Embedding and not self.embedding.scale_grad_by_freq

    def with_rnn(self, rnn: RecurrentStack) -> "SequenceModel":
        """The same network around another recurrent stack, which takes over the weights it has names for."""
        other = SequenceModel(rnn, self.head.out_features, self.embedding, self.dropout.p, self.each_step)
        other.load_state_dict(self.state_dict(), strict=False)
        return other.to(self.head.weight.device).train(self.training)

    def with_gate(self) -> "SequenceModel":
        """The same function with a Skip RNN inside: of a plain cell, one whose gate is open at every step.

        Raises:
            ValueError: the model skips at random.
        """
        if isinstance(self.rnn, SkipRNN):
            return self
        if getattr(self.rnn, "p_skip", 0):
            raise ValueError("this model skips at random, so nobody can say which samples it needs; use another run")
        return self.with_open_gate()

    def with_open_gate(self) -> "SequenceModel":
        """The same weights behind a gate that is open at every step."""
        rnn = self.rnn
        gated = SkipRNN(rnn.cell, rnn.input_size, rnn.hidden_size, rnn.num_layers, batch_first=True)
        other = self.with_rnn(gated)
        nn.init.zeros_(gated.update_weight)
        nn.init.constant_(gated.update_bias, OPEN)
        return other

    def stream(self) -> Stream:
        """The model following one sequence, whose samples are as the task stores them: raw, not normalised.

        Raises:
            ValueError: the model skips at random, or its weights lie where no stream can be.
        """
        gated = self.with_gate()
        embedding = self.embedding
        device = next(self.rnn.parameters()).device

        def embed(sample: Any) -> Tensor:
            numbers = torch.as_tensor(sample, device=device)
            numbers = numbers.int() if isinstance(embedding, nn.Embedding) else numbers.float()
            with torch.no_grad():
                embedded: Tensor = embedding(numbers)
            return embedded.reshape(-1)

        plain = isinstance(embedding, nn.Identity)
        return Stream(gated.rnn, lambda h: gated.head(h).float(), None if plain else embed)  # type: ignore[arg-type]

    def cost_per_update(self) -> int:
        """Multiply-accumulates that one update takes, the paper's count: one for each number of a weight matrix."""
        return sum(weight.numel() for layer in self.rnn.layers() for weight in layer if weight.dim() > 1)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are made in the block have shapes and no memory."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out draws from normal distributions, which on the device meta import torch's compiler, a second's work."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def recurrent_stack(
    cell: Cell,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    *,
    skip: bool = True,
    p_skip: float | None = None,
    min_skip: int = 0,
    max_skip: int | None = None,
    gate: str = "round",
    engine: str = "auto",
) -> RecurrentStack:
    """What a run's options ask for: a Skip RNN or, without ``skip``, a baseline, batch first.

    Args:
        cell, input_size, hidden_size, num_layers, min_skip, max_skip, gate, engine: as for ``SkipRNN``.
        skip: learn which samples to skip; False: the plain LSTM or GRU.
        p_skip: of those, the probability of skipping at random.
    """
    sizes = (input_size, hidden_size, num_layers)
    if skip:
        return SkipRNN(cell, *sizes, batch_first=True, min_skip=min_skip, max_skip=max_skip, gate=gate, engine=engine)
    plain = RandomSkipGRU if cell is GRU else RandomSkipLSTM
    return plain(*sizes, batch_first=True, p_skip=p_skip or 0.0)
