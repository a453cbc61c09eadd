"""The candidate step of each cell: what the state becomes if the gate opens.

A cell maps the input's share of the gates and the layer's state to the layer's candidate state. States are tuples whose
last entry feeds the update gate: ``(h, c)`` for the LSTM, ``(h,)`` for the GRU.
"""

from collections.abc import Callable
from typing import NamedTuple

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


def lstm(input_gates: Tensor, state: LayerState, weights: LayerWeights) -> LayerState:
    h, c = state
    gates = input_gates + linear(h, weights.weight_hh, weights.bias_hh)
    i, f, g, o = gates.to(c.dtype).chunk(4, dim=-1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru(input_gates: Tensor, state: LayerState, weights: LayerWeights) -> LayerState:
    (h,) = state
    input_r, input_z, input_n = input_gates.to(h.dtype).chunk(3, dim=-1)
    hidden_r, hidden_z, hidden_n = linear(h, weights.weight_hh, weights.bias_hh).to(h.dtype).chunk(3, dim=-1)
    r = sigmoid(input_r + hidden_r)
    z = sigmoid(input_z + hidden_z)
    n = tanh(input_n + r * hidden_n)
    return ((1 - z) * n + z * h,)


def gru_reset_before(input_gates: Tensor, state: LayerState, weights: LayerWeights) -> LayerState:
    """The authors' GRU (Keras: ``reset_after=False``), which resets h before the recurrent product."""
    (h,) = state
    hidden = h.shape[-1]
    weight_rz, weight_n = weights.weight_hh.tensor_split([2 * hidden])
    bias_rz, bias_n = weights.bias_hh.tensor_split([2 * hidden])
    input_rz, input_n = input_gates.to(h.dtype).tensor_split([2 * hidden], dim=-1)
    r, z = sigmoid(input_rz + linear(h, weight_rz, bias_rz).to(h.dtype)).chunk(2, dim=-1)
    n = tanh(input_n + linear(r * h, weight_n, bias_n).to(h.dtype))
    return ((1 - z) * n + z * h,)


class Cell(NamedTuple):
    """A candidate step and the sizes that follow from it."""

    step: Callable[[Tensor, LayerState, LayerWeights], LayerState]
    num_gates: int
    num_states: int  # tensors in a layer's state


LSTM = Cell(lstm, num_gates=4, num_states=2)
GRU = Cell(gru, num_gates=3, num_states=1)
GRU_RESET_BEFORE = Cell(gru_reset_before, num_gates=3, num_states=1)
