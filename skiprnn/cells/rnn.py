"""The plain RNN."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from skiprnn.cells.cell import GatedCell, Gradients, LayerState, LayerWeights, gradients_of_gates


class RNNState(NamedTuple):
    """All that a stack of plain RNNs carries from one step to the next."""

    h: Tensor  # (num_layers, B, H)
    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


class RNNCell(GatedCell):
    """h' = tanh(W x + b + U h + b_h), or with ``nonlinearity="relu"`` max(0, W x + b + U h + b_h): ``torch.nn.RNN``.

    U begins as a random orthogonal matrix, with ReLU as the identity (Le et al., 2015), so that neither the state nor
    its gradient grows or vanishes at first.

    Raises:
        ValueError: an unknown nonlinearity.
    """

    State = RNNState
    num_gates = 1

    def __init__(self, nonlinearity: str = "tanh") -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"unknown nonlinearity {nonlinearity!r}; choose tanh or relu")
        self.nonlinearity = nonlinearity

    def initialize(self, weights: LayerWeights) -> None:
        super().initialize(weights)
        if self.nonlinearity == "relu":
            nn.init.eye_(weights.weight_hh)
        else:  # of which torch computes none in half precision
            wide = torch.promote_types(weights.weight_hh.dtype, torch.float32)
            weights.weight_hh.copy_(nn.init.orthogonal_(torch.empty_like(weights.weight_hh, dtype=wide)))

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: LayerWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        (h,) = state
        total = input_share.to(h.dtype) + state_share.to(h.dtype)
        h = torch.relu(total) if self.nonlinearity == "relu" else torch.tanh(total)
        return (h,), (h,)

    def backward(
        self, grad: LayerState, saved: tuple[Tensor, ...], below: Tensor, state: LayerState,
        weights: LayerWeights, needs_below: bool,
    ) -> Gradients:  # fmt: skip
        (grad_h,), (before,), (h,) = grad, state, saved
        total = grad_h * (h > 0) if self.nonlinearity == "relu" else grad_h * (1 - h * h)
        return gradients_of_gates(
            total, (total @ weights.weight_hh,), total.T @ before, total, below, weights, needs_below
        )


RNN = RNNCell()
RNN_RELU = RNNCell("relu")
