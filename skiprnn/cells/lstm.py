"""The LSTM."""

from typing import NamedTuple

import torch
from torch import Tensor, sigmoid, tanh

from skiprnn.cells.cell import GatedCell, Gradients, LayerState, LayerWeights, gradients_of_gates


class LSTMState(NamedTuple):
    """All that an LSTM stack carries from one step to the next."""

    h: Tensor  # (num_layers, B, H)
    c: Tensor  # (num_layers, B, H)
    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


class LSTMCell(GatedCell):
    State = LSTMState
    num_gates = 4
    opened = (1, 2)
    keeps, writes = 1, 0

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
        return gradients_of_gates(
            gates, (gates @ weights.weight_hh, grad_c * f), gates.T @ h, gates, below, weights, needs_below
        )


LSTM = LSTMCell()
