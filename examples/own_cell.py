"""A cell of one's own behind the gate: minGRU (Feng et al., 2024), whose gate and candidate see the input alone.

    z, n = W x + b,  h' = (1 - σ(z))⊙h + σ(z)⊙n

python examples/own_cell.py, or skiprnn train --cell examples.own_cell:MinGRUCell from the folder above.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from skiprnn import SkipRNN, used_samples
from skiprnn.cells import Cell, GRUState


class MinGRUWeights(NamedTuple):
    """A layer's parameters."""

    weight: Any  # (2*H, D)
    bias: Any  # (2*H,)


class MinGRUCell(Cell):
    State, Weights = GRUState, MinGRUWeights

    def shapes(self, input_size, hidden_size):
        return MinGRUWeights((2 * hidden_size, input_size), (2 * hidden_size,))

    def initialize(self, weights):
        nn.init.xavier_uniform_(weights.weight)
        nn.init.zeros_(weights.bias)

    def input_share(self, below, weights):
        return nn.functional.linear(below, weights.weight, weights.bias)

    def candidate(self, input_share, state_share, state, weights):
        (h,) = state
        z, n = input_share.to(h.dtype).chunk(2, dim=-1)
        return (torch.lerp(h, n, torch.sigmoid(z)),), ()


if __name__ == "__main__":
    rnn = SkipRNN(MinGRUCell(), input_size=2, hidden_size=16, update_bias=-1.0)
    out = rnn(torch.randn(50, 8, 2))
    out.output[-1].sum().backward()
    print(f"{rnn}: {used_samples(out).mean():.1f} of {len(out.output)} samples used, state {out.state._fields}")
