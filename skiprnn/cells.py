"""The candidate step of each cell, what the state becomes if the gate opens, and its backward.

A cell maps the input's and the hidden state's shares of its gates, and a layer's state, to the candidate state. States
are tuples whose last entry feeds the update gate: ``(h, c)`` for the LSTM, ``(h,)`` for the GRU.
"""

from typing import NamedTuple

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

LayerState = tuple[Tensor, ...]


class LayerWeights(NamedTuple):
    """One layer's parameters, named and shaped as in ``torch.nn.LSTM`` and ``torch.nn.GRU`` (G gates)."""

    weight_ih: Tensor  # (G*H, D)
    weight_hh: Tensor  # (G*H, H)
    bias_ih: Tensor  # (G*H,)
    bias_hh: Tensor  # (G*H,)

    def input_gates(self, x: Tensor) -> Tensor:
        """The input's share of the gates, ``(..., D) -> (..., G*H)``."""
        return linear(x, self.weight_ih, self.bias_ih)


class Backward(NamedTuple):
    """Gradients that leave a cell's step."""

    input_gates: Tensor  # (B, G*H), with respect to the input's share of the gates
    state: LayerState
    weight_hh: Tensor  # (G*H, H)
    bias_hh: Tensor  # (G*H,)


class Cell:
    """A candidate step; ``hidden_gates`` does not depend on the input, so that skipped steps can share it."""

    num_gates: int
    num_states: int  # tensors in a layer's state

    def step(self, input_gates: Tensor, state: LayerState, weights: LayerWeights) -> LayerState:
        """The candidate state, (B, G*H) and (B, H) -> (B, H)."""
        return self.candidate(input_gates, self.hidden_gates(state[0], weights), state, weights)[0]

    def hidden_gates(self, h: Tensor, weights: LayerWeights) -> Tensor:
        """The part of the gates that follows from h alone."""
        return linear(h, weights.weight_hh, weights.bias_hh)

    def candidate(
        self, input_gates: Tensor, hidden_gates: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        """The candidate state, and what ``backward`` needs besides."""
        raise NotImplementedError

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], state: LayerState, weights: LayerWeights
    ) -> Backward:
        """Gradients of the step that led from ``state`` to a state with gradient ``grad``."""
        raise NotImplementedError


class LSTMCell(Cell):
    num_gates = 4
    num_states = 2

    def candidate(
        self, input_gates: Tensor, hidden_gates: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        c = state[1]
        i, f, g, o = (input_gates.to(c.dtype) + hidden_gates.to(c.dtype)).chunk(4, dim=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * c + i * g
        tanh_c = tanh(c)
        return (o * tanh_c, c), (i, f, g, o, tanh_c)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], state: LayerState, weights: LayerWeights
    ) -> Backward:
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
        return Backward(gates, (gates @ weights.weight_hh, grad_c * f), gates.T @ h, gates.sum(0))


class GRUCell(Cell):
    """n = tanh(W x + b + r⊙(U h + b_h)), h = (1 - z)⊙n + z⊙h: ``torch.nn.GRU``, Keras's ``reset_after=True``."""

    num_gates = 3
    num_states = 1

    def candidate(
        self, input_gates: Tensor, hidden_gates: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        (h,) = state
        input_r, input_z, input_n = input_gates.to(h.dtype).chunk(3, dim=-1)
        hidden_r, hidden_z, hidden_n = hidden_gates.to(h.dtype).chunk(3, dim=-1)
        r = sigmoid(input_r + hidden_r)
        z = sigmoid(input_z + hidden_z)
        n = tanh(input_n + r * hidden_n)
        return ((1 - z) * n + z * h,), (r, z, n, hidden_n)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], state: LayerState, weights: LayerWeights
    ) -> Backward:
        (grad_h,), (h,) = grad, state
        r, z, n, hidden_n = saved
        grad_n = grad_h * (1 - z) * (1 - n * n)
        grad_r = grad_n * hidden_n * r * (1 - r)
        grad_z = grad_h * (h - n) * z * (1 - z)
        hidden = torch.cat([grad_r, grad_z, grad_n * r], dim=-1)
        grad_state = grad_h * z + hidden @ weights.weight_hh
        return Backward(torch.cat([grad_r, grad_z, grad_n], dim=-1), (grad_state,), hidden.T @ h, hidden.sum(0))


class GRUResetBeforeCell(Cell):
    """n = tanh(W x + b + U (r⊙h) + b_h): the authors' GRU, Keras's ``reset_after=False``."""

    num_gates = 3
    num_states = 1

    def hidden_gates(self, h: Tensor, weights: LayerWeights) -> Tensor:
        rz = 2 * h.shape[-1]
        return linear(h, weights.weight_hh[:rz], weights.bias_hh[:rz])

    def candidate(
        self, input_gates: Tensor, hidden_gates: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        (h,) = state
        rz = hidden_gates.shape[-1]
        input_rz, input_n = input_gates.to(h.dtype).tensor_split([rz], dim=-1)
        r, z = sigmoid(input_rz + hidden_gates.to(h.dtype)).chunk(2, dim=-1)
        n = tanh(input_n + linear(r * h, weights.weight_hh[rz:], weights.bias_hh[rz:]).to(h.dtype))
        return ((1 - z) * n + z * h,), (r, z, n)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], state: LayerState, weights: LayerWeights
    ) -> Backward:
        (grad_h,), (h,) = grad, state
        r, z, n = saved
        weight_rz, weight_n = weights.weight_hh.tensor_split([2 * h.shape[-1]])
        grad_n = grad_h * (1 - z) * (1 - n * n)
        grad_reset = grad_n @ weight_n  # with respect to r⊙h
        grad_r = grad_reset * h * r * (1 - r)
        grad_z = grad_h * (h - n) * z * (1 - z)
        grad_rz = torch.cat([grad_r, grad_z], dim=-1)
        gates = torch.cat([grad_rz, grad_n], dim=-1)
        grad_state = grad_h * z + grad_reset * r + grad_rz @ weight_rz
        return Backward(gates, (grad_state,), torch.cat([grad_rz.T @ h, grad_n.T @ (r * h)]), gates.sum(0))


LSTM = LSTMCell()
GRU = GRUCell()
GRU_RESET_BEFORE = GRUResetBeforeCell()
