"""Cells: the step that leads from a layer's state to its candidate state, what the state becomes if the gate opens.

A cell says what its parameters are and how they begin, what a state consists of, and its candidate step. It may bring a
backward pass of its own; otherwise it is autograd's. States are tuples of (B, H) tensors: the first is the layer's
output, h, and the last layer's last feeds the update gate: c for the LSTM, h for the GRU.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

LayerState = tuple[Tensor, ...]


class LayerWeights(NamedTuple):
    """One layer's parameters, named and shaped as in ``torch.nn.LSTM`` and ``torch.nn.GRU`` (G gates)."""

    weight_ih: Any  # (G*H, D)
    weight_hh: Any  # (G*H, H)
    bias_ih: Any  # (G*H,)
    bias_hh: Any  # (G*H,)


class Gradients(NamedTuple):
    """Gradients that leave a cell's step."""

    below: Tensor | None  # (B, D), by the layer's input; None where nobody wants it
    state: LayerState
    weights: tuple[Tensor, ...]


class Cell:
    """A kind of recurrent layer.

    The candidate is computed from a share of the input and a share of the state: steps that start from one state, as
    skipped ones do, have the latter in common.
    """

    State: ClassVar[Any]
    """A named tuple of a stack's state: the tensors of a layer's, then ``update_prob`` and ``cum_update_prob``."""
    Weights: ClassVar[Any] = LayerWeights
    """A named tuple of a layer's parameters."""

    @property
    def num_states(self) -> int:
        """Tensors in a layer's state."""
        return len(self.State._fields) - 2

    def shapes(self, input_size: int, hidden_size: int) -> Any:
        """``Weights`` of the parameters' shapes."""
        raise NotImplementedError(f"{type(self).__name__} does not say its shapes")

    def initialize(self, weights: Any) -> None:
        """Give a layer's parameters their initial values, in place."""
        raise NotImplementedError(f"{type(self).__name__} does not say its initial values")

    @property
    def can_remember(self) -> bool:
        """Whether ``remember`` is there."""
        return type(self).remember is not Cell.remember

    def remember(self, weights: Any, steps: int) -> None:
        """Draw the initial biases, in place, for units that keep their state for 2 to ``steps`` updates."""
        raise NotImplementedError(f"{type(self).__name__} has no gate whose bias says how long it keeps its state")

    def input_share(self, below: Tensor, weights: Any) -> Tensor:
        """What the candidate needs of the layer's input, (..., D) -> (..., K)."""
        return below

    def state_share(self, state: LayerState, weights: Any) -> Tensor:
        """What the candidate needs of the state alone, (B, H) -> (B, K)."""
        return state[0]

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: Any
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        """The candidate state, and what ``backward`` needs besides."""
        raise NotImplementedError(f"{type(self).__name__} does not say its candidate")

    def step(self, below: Tensor, state: LayerState, weights: Any) -> LayerState:
        """The candidate state, from the layer's input, (B, D), and its state."""
        shares = self.input_share(below, weights), self.state_share(state, weights)
        return self.candidate(*shares, state, weights)[0]

    def backward(
        self,
        grad: LayerState,
        saved: tuple[Tensor, ...],
        below: Tensor,
        state: LayerState,
        weights: Any,
        needs_below: bool,
    ) -> Gradients:
        """Gradients of the step that led from ``state`` to a candidate with gradient ``grad``: autograd's."""
        kind, count = below.device.type, len(state)
        given = [tensor.detach().requires_grad_() for tensor in (below, *state, *weights)]
        given[0].requires_grad_(needs_below)
        with torch.enable_grad(), torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            after = self.step(given[0], tuple(given[1 : 1 + count]), type(weights)(*given[1 + count :]))
            wanted = given if needs_below else given[1:]
            grads = list(torch.autograd.grad(after, wanted, grad, materialize_grads=True))
        return Gradients(grads.pop(0) if needs_below else None, tuple(grads[:count]), tuple(grads[count:]))


class GatedCell(Cell):
    """A cell whose gates are sums of a product with the input and one with h, parameters as in ``torch.nn``."""

    num_gates: ClassVar[int]
    opened: ClassVar[tuple[int, int]] = (0, 0)
    """The gates, from the first to before the second, whose bias begins at 1."""
    keeps: ClassVar[int | None] = None
    """The gate that multiplies the state before; None: there is none."""
    writes: ClassVar[int | None] = None
    """The gate that multiplies what is new, where that is another."""

    def shapes(self, input_size: int, hidden_size: int) -> Any:
        size = self.num_gates * hidden_size
        return LayerWeights((size, input_size), (size, hidden_size), (size,), (size,))

    def initialize(self, weights: Any) -> None:
        """Xavier uniform weights; biases 1 where a gate should be open at first, else 0."""
        first, last = (gate * weights.weight_hh.shape[1] for gate in self.opened)
        nn.init.xavier_uniform_(weights.weight_ih)
        nn.init.xavier_uniform_(weights.weight_hh)
        nn.init.zeros_(weights.bias_hh)
        nn.init.zeros_(weights.bias_ih)
        nn.init.ones_(weights.bias_ih[first:last])

    @property
    def can_remember(self) -> bool:
        return self.keeps is not None or type(self).remember is not GatedCell.remember

    @torch.no_grad()
    def remember(self, weights: Any, steps: int) -> None:
        if self.keeps is None:
            return super().remember(weights, steps)
        biases = weights.bias_ih.unflatten(0, (self.num_gates, -1))
        wide = torch.promote_types(biases.dtype, torch.float32)
        drawn = torch.empty_like(biases[self.keeps], dtype=wide).uniform_(1, steps - 1).log_()
        biases[self.keeps] = drawn
        if self.writes is not None:
            biases[self.writes] = -drawn
        return None

    def input_share(self, below: Tensor, weights: Any) -> Tensor:
        return linear(below, weights.weight_ih, weights.bias_ih)

    def state_share(self, state: LayerState, weights: Any) -> Tensor:
        return linear(state[0], weights.weight_hh, weights.bias_hh)


def gradients_of_gates(
    gates: Tensor, state: LayerState, weight_hh: Tensor, hidden: Tensor, below: Tensor,
    weights: LayerWeights, needs_below: bool,
) -> Gradients:  # fmt: skip
    """A step's gradients, of a cell whose shares of the gates are ``GatedCell``'s.

    Args:
        gates: gradient by the input's share of the gates, (B, G*H).
        state: gradients by the state before.
        weight_hh: gradient by ``weight_hh``, (G*H, H).
        hidden: gradient by the state's share of the gates, (B, G*H).
        below: the layer's input, (B, D).
        weights: the layer's parameters.
        needs_below: whether somebody wants the gradient by ``below``.
    """
    own = LayerWeights(gates.T @ below, weight_hh, gates.sum(0), hidden.sum(0))
    return Gradients(gates @ weights.weight_ih if needs_below else None, state, own)
