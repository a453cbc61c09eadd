"""A cell of one's own behind the gate: the plain RNN, h = tanh(W x + b + U h + b_h).

python examples/own_cell.py
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skiprnn import SkipRNN, used_samples
from skiprnn.cells import GatedCell


class RNNState(NamedTuple):
    """What a stack carries from step to step."""

    h: Tensor  # (num_layers, B, H)
    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


class RNNCell(GatedCell):
    State, num_gates = RNNState, 1

    def candidate(self, input_share, state_share, state, weights):
        return (torch.tanh(input_share + state_share),), ()


if __name__ == "__main__":
    rnn = SkipRNN(RNNCell(), input_size=2, hidden_size=16, update_bias=-1.0)
    output, state, update_gate = rnn(torch.randn(50, 8, 2))
    output[-1].sum().backward()
    print(f"{rnn}: {used_samples(update_gate).mean():.1f} of {len(output)} samples used, state {state._fields}")
