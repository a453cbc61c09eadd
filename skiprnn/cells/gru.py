"""The GRU, in both of its definitions."""

from typing import NamedTuple

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

from skiprnn.cells.cell import GatedCell, Gradients, LayerState, LayerWeights, gradients_of_gates


class GRUState(NamedTuple):
    """All that a GRU stack carries from one step to the next."""

    h: Tensor  # (num_layers, B, H)
    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


class GRUCell(GatedCell):
    """n = tanh(W x + b + r⊙(U h + b_h)), h = (1 - z)⊙n + z⊙h: ``torch.nn.GRU``, Keras's ``reset_after=True``."""

    State = GRUState
    num_gates = 3
    opened = (0, 2)
    keeps = 1

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
        return gradients_of_gates(
            gates, (grad_h * z + hidden @ weights.weight_hh,), hidden.T @ h, hidden, below, weights, needs_below
        )


class GRUResetBeforeCell(GatedCell):
    """n = tanh(W x + b + U (r⊙h) + b_h): the authors' GRU, Keras's ``reset_after=False``."""

    State = GRUState
    num_gates = 3
    opened = (0, 2)
    keeps = 1

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
        return gradients_of_gates(
            gates, (grad_h * z + grad_reset * r + grad_rz @ weight_rz,), weight_hh, gates, below, weights, needs_below
        )


GRU = GRUCell()
GRU_RESET_BEFORE = GRUResetBeforeCell()
