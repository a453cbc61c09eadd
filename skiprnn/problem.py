"""What an engine is given and what it returns."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import embedding

from skiprnn.cells import Cell, LayerState
from skiprnn.gate import UNBOUNDED, Bounds, GateState


class Dropout(NamedTuple):
    """What passes from each layer to the next, drawn beforehand, so that all engines have the same draws."""

    kept: Tensor  # (num_layers - 1, T, B, H) bool
    scale: float  # 1 / (1 - p)


class Problem(NamedTuple):
    """A batch of sequences to run through a stack of cells behind one update gate."""

    cell: Cell
    layers: Sequence[Any]
    """A ``cell.Weights`` a layer; layer l reads what ``dropout`` leaves of layer l-1's candidate h̃ of the same step."""
    update_weight: Tensor  # (H,), w_p
    update_bias: Tensor  # (1,), b_p
    x: Tensor  # (T, B, D), or with numbers (N, D)
    states: Sequence[LayerState]
    """A tuple a layer of (B, H) tensors."""
    gate: GateState
    """(B,) tensors p and acc, at least float32."""
    lengths: Tensor | None = None
    """(B,) integers; from step ``lengths[b]`` on, sequence b keeps its state and its gate is 0."""
    gate_grad_clip: float | None = None
    """dL/du_t, of each sequence and step, used or skipped, is clamped to ± this; None: the paper's."""
    every_step: bool = True
    """Whether the output of every step is wanted."""
    bounds: Bounds = UNBOUNDED
    """Of p̃ = low + (high - low) · sigmoid(w_p · top + b_p)."""
    dropout: Dropout | None = None
    """Between the layers; None: everything passes."""
    draws: Tensor | None = None
    """(T, B) float32 in [0, 1), what the gate's sums are compared with; None: 0.5."""
    numbers: Tensor | None = None
    """(T, B) integers: the samples are these rows of x. Engines that do not say they take them get ``looked_up``."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All that may be differentiated by: x, update_weight, update_bias, p, acc, the states, the weights."""
        groups = (self.gate, *self.states, *self.layers)
        return (self.x, self.update_weight, self.update_bias, *(tensor for group in groups for tensor in group))

    def with_tensors(self, tensors: Sequence[Any]) -> Self:
        """The same problem with other ``tensors``."""
        x, update_weight, update_bias, p, acc, *others = tensors
        split = len(self.states) * self.cell.num_states
        states = grouped(others[:split], self.cell.num_states)
        layers = [self.cell.Weights(*weights) for weights in grouped(others[split:], len(self.cell.Weights._fields))]
        return self._replace(
            x=x,
            update_weight=update_weight,
            update_bias=update_bias,
            gate=GateState(p, acc),
            states=states,
            layers=layers,
        )

    def bare(self) -> Self:
        """The same problem without its ``tensors``, for a function of autograd to keep."""
        return self.with_tensors([None] * len(self.tensors()))

    def passed(self, below: Tensor, k: int, t: Any, rows: Any = slice(None)) -> Tensor:
        """What dropout leaves layer k of its input at steps t of sequences ``rows``; going back, of the gradient."""
        if k == 0 or self.dropout is None:
            return below
        kept, scale = self.dropout
        return torch.where(kept[k - 1, t, rows], below * scale, 0)

    def looked_up(self) -> Self:
        """The same problem with the samples themselves."""
        return self if self.numbers is None else self._replace(x=embedding(self.numbers, self.x), numbers=None)

    def widened(self) -> Self:
        """The same problem with float32 samples where another module, under autocast, made them bfloat16."""
        is_made = self.x.dtype is torch.bfloat16 and torch.is_autocast_enabled(self.x.device.type)
        return self._replace(x=self.x.float()) if is_made else self

    @property
    def differentiable(self) -> bool:
        """Whether anything will be differentiated."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors())

    @property
    def size(self) -> torch.Size:
        """Steps and sequences, (T, B)."""
        return self.x.shape[:2] if self.numbers is None else self.numbers.shape

    def ends(self) -> Tensor:
        """The length of each sequence, (B,) int64."""
        steps, batch = self.size
        if self.lengths is None:
            return torch.full((batch,), steps, device=self.x.device)
        return self.lengths.long().clamp(0, steps)


class Solution(NamedTuple):
    """What comes of a problem."""

    output: Tensor  # (T, B, H), the last layer's h after each step; anything where that is not wanted
    states: Sequence[LayerState]
    gate: GateState
    update_gate: Tensor  # (T, B)

    @classmethod
    def of_tensors(cls, problem: Problem, tensors: Sequence[Tensor]) -> Self:
        """From what the engines' functions of autograd return: output, update_gate, p, acc and the states."""
        output, update_gate, p, acc, *states = tensors
        return cls(output, grouped(states, problem.cell.num_states), GateState(p, acc), update_gate)


def grouped(tensors: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    """So many at a time."""
    return [tuple(tensors[start : start + size]) for start in range(0, len(tensors), size)]


def transformed() -> str | None:
    """Why a function of autograd with a hand-written backward pass cannot run now; None if it can."""
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "it is differentiated by autograd, backward, not by torch.func or forward"
    return None


def refuse_double_backward() -> None:
    """Raise where autograd wants to differentiate a hand-written backward pass, by ``create_graph=True``."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the event-driven engine cannot be differentiated twice; make the module with engine='reference' for that"
            " (RandomSkipLSTM and RandomSkipGRU: engine='torch')"
        )
