"""Cells: the step that leads from a layer's state to its candidate state, what the state becomes if the gate opens.

A cell says what its parameters are and how they begin, what a state consists of, and its candidate step. It may bring a
backward pass of its own; otherwise it is autograd's. States are tuples of (B, H) tensors: the first is the layer's
output, h, and the last layer's last feeds the update gate: c for the LSTM, h for the GRU.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn.functional import linear

LayerState = tuple[Tensor, ...]


class LSTMState(NamedTuple):
    """All that an LSTM stack carries from one step to the next."""

    h: Tensor  # (num_layers, B, H)
    c: Tensor  # (num_layers, B, H)
    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


class GRUState(NamedTuple):
    """All that a GRU stack carries from one step to the next."""

    h: Tensor  # (num_layers, B, H)
    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


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
        raise NotImplementedError

    def initialize(self, weights: Any) -> None:
        """Give a layer's parameters their initial values, in place."""
        raise NotImplementedError

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
        raise NotImplementedError

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

    def shapes(self, input_size: int, hidden_size: int) -> LayerWeights:
        size = self.num_gates * hidden_size
        return LayerWeights((size, input_size), (size, hidden_size), (size,), (size,))

    def initialize(self, weights: LayerWeights) -> None:
        """Xavier uniform weights; biases 1 where a gate should be open at first, else 0."""
        first, last = (gate * weights.weight_hh.shape[1] for gate in self.opened)
        nn.init.xavier_uniform_(weights.weight_ih)
        nn.init.xavier_uniform_(weights.weight_hh)
        nn.init.zeros_(weights.bias_hh)
        nn.init.zeros_(weights.bias_ih)
        nn.init.ones_(weights.bias_ih[first:last])

    def input_share(self, below: Tensor, weights: LayerWeights) -> Tensor:
        return linear(below, weights.weight_ih, weights.bias_ih)

    def state_share(self, state: LayerState, weights: LayerWeights) -> Tensor:
        return linear(state[0], weights.weight_hh, weights.bias_hh)


class LSTMCell(GatedCell):
    State = LSTMState
    num_gates = 4
    opened = (1, 2)

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        c = state[1]
        i, f, g, o = (input_share.to(c.dtype) + state_share.to(c.dtype)).chunk(4, dim=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * c + i * g
        tanh_c = tanh(c)
        return (o * tanh_c, c), (i, f, g, o, tanh_c)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], below: Tensor, state: LayerState,
        weights: LayerWeights, needs_below: bool,
    ) -> Gradients:  # fmt: skip
        grad_h, grad_c = grad
        i, f, g, o, tanh_c = saved
        h, c = state
        grad_c = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
        gates = torch.cat(
            [
                grad_c * g * i * (1 - i),
                grad_c * c * f * (1 - f),
                grad_c * i * (1 - g * g),
                grad_h * tanh_c * o * (1 - o),
            ],
            dim=-1,
        )
        return _gradients(
            gates, (gates @ weights.weight_hh, grad_c * f), gates.T @ h, gates, below, weights, needs_below
        )


class GRUCell(GatedCell):
    """n = tanh(W x + b + r⊙(U h + b_h)), h = (1 - z)⊙n + z⊙h: ``torch.nn.GRU``, Keras's ``reset_after=True``."""

    State = GRUState
    num_gates = 3
    opened = (0, 2)

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        (h,) = state
        input_r, input_z, input_n = input_share.to(h.dtype).chunk(3, dim=-1)
        hidden_r, hidden_z, hidden_n = state_share.to(h.dtype).chunk(3, dim=-1)
        r = sigmoid(input_r + hidden_r)
        z = sigmoid(input_z + hidden_z)
        n = tanh(input_n + r * hidden_n)
        return ((1 - z) * n + z * h,), (r, z, n, hidden_n)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], below: Tensor, state: LayerState,
        weights: LayerWeights, needs_below: bool,
    ) -> Gradients:  # fmt: skip
        (grad_h,), (h,) = grad, state
        r, z, n, hidden_n = saved
        grad_n = grad_h * (1 - z) * (1 - n * n)
        grad_r = grad_n * hidden_n * r * (1 - r)
        grad_z = grad_h * (h - n) * z * (1 - z)
        gates, hidden = (torch.cat([grad_r, grad_z, last], dim=-1) for last in (grad_n, grad_n * r))
        return _gradients(
            gates, (grad_h * z + hidden @ weights.weight_hh,), hidden.T @ h, hidden, below, weights, needs_below
        )


class GRUResetBeforeCell(GatedCell):
    """n = tanh(W x + b + U (r⊙h) + b_h): the authors' GRU, Keras's ``reset_after=False``."""

    State = GRUState
    num_gates = 3
    opened = (0, 2)

    def state_share(self, state: LayerState, weights: LayerWeights) -> Tensor:
        rz = 2 * state[0].shape[-1]
        return linear(state[0], weights.weight_hh[:rz], weights.bias_hh[:rz])

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        (h,) = state
        rz = state_share.shape[-1]
        input_rz, input_n = input_share.to(h.dtype).tensor_split([rz], dim=-1)
        r, z = sigmoid(input_rz + state_share.to(h.dtype)).chunk(2, dim=-1)
        n = tanh(input_n + linear(r * h, weights.weight_hh[rz:], weights.bias_hh[rz:]).to(h.dtype))
        return ((1 - z) * n + z * h,), (r, z, n)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], below: Tensor, state: LayerState,
        weights: LayerWeights, needs_below: bool,
    ) -> Gradients:  # fmt: skip
        (grad_h,), (h,) = grad, state
        r, z, n = saved
        weight_rz, weight_n = weights.weight_hh.tensor_split([2 * h.shape[-1]])
        grad_n = grad_h * (1 - z) * (1 - n * n)
        grad_reset = grad_n @ weight_n  # with respect to r⊙h
        grad_r = grad_reset * h * r * (1 - r)
        grad_z = grad_h * (h - n) * z * (1 - z)
        grad_rz = torch.cat([grad_r, grad_z], dim=-1)
        gates = torch.cat([grad_rz, grad_n], dim=-1)
        weight_hh = torch.cat([grad_rz.T @ h, grad_n.T @ (r * h)])
        return _gradients(
            gates, (grad_h * z + grad_reset * r + grad_rz @ weight_rz,), weight_hh, gates, below, weights, needs_below
        )


def _gradients(
    gates: Tensor, state: LayerState, weight_hh: Tensor, hidden: Tensor, below: Tensor,
    weights: LayerWeights, needs_below: bool,
) -> Gradients:  # fmt: skip
    """From those by the input's share of the gates and by the state's, (B, G*H) each."""
    own = LayerWeights(gates.T @ below, weight_hh, gates.sum(0), hidden.sum(0))
    return Gradients(gates @ weights.weight_ih if needs_below else None, state, own)


LSTM = LSTMCell()
GRU = GRUCell()
GRU_RESET_BEFORE = GRUResetBeforeCell()
