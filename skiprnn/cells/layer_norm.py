"""LSTM and GRU with layer normalization (Ba, Kiros and Hinton, "Layer Normalization", 2016).

LN(a; γ, β) = γ⊙(a - mean(a)) / sqrt(var(a) + 1e-5) + β, over the units of a layer, of each sequence and step by itself.
The products with the input and with the state are normalized apart, each with a gain γ and a bias β of its own, so
that steps that start from one state still have the latter in common.

Of a sample, W x has no bias before it is normalized: what the layer sees is the direction of x, not its length. Of a
single feature that is the sign alone; where its size matters, put a layer with a bias before, such as ``nn.Linear``.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn.functional import layer_norm, linear

from skiprnn.cells.cell import GatedCell, LayerState
from skiprnn.cells.gru import GRUState
from skiprnn.cells.lstm import LSTMState


class LayerNormWeights(NamedTuple):
    """One layer's parameters (G gates)."""

    weight_ih: Any  # (G*H, D)
    weight_hh: Any  # (G*H, H)
    gain_ih: Any  # (G*H,)
    gain_hh: Any  # (G*H,)
    bias_ih: Any  # (G*H,)
    bias_hh: Any  # (G*H,)


class LayerNormLSTMWeights(NamedTuple):
    """One layer's parameters, those of ``LayerNormWeights`` first."""

    weight_ih: Any  # (4*H, D)
    weight_hh: Any  # (4*H, H)
    gain_ih: Any  # (4*H,)
    gain_hh: Any  # (4*H,)
    bias_ih: Any  # (4*H,)
    bias_hh: Any  # (4*H,)
    gain_c: Any  # (H,)
    bias_c: Any  # (H,)


class _LayerNormCell(GatedCell):
    Weights: ClassVar[Any] = LayerNormWeights

    def shapes(self, input_size: int, hidden_size: int) -> Any:
        size = self.num_gates * hidden_size
        return LayerNormWeights((size, input_size), (size, hidden_size), *[(size,)] * 4)

    def initialize(self, weights: Any) -> None:
        """Weights and biases as without normalization, gains 1."""
        super().initialize(weights)
        nn.init.ones_(weights.gain_ih)
        nn.init.ones_(weights.gain_hh)


class LayerNormLSTMCell(_LayerNormCell):
    """The LSTM with layer normalization, eqs. 20 to 22 of Ba et al. without b, which adds to β_x and β_h.

        i, f, g, o = LN(W x; γ_x, β_x) + LN(U h; γ_h, β_h)      each LN over all 4*H
        c' = σ(f)⊙c + σ(i)⊙tanh(g)
        h' = σ(o)⊙tanh(LN(c'; γ_c, β_c))

    The state and the update gate have c' as it is. Parameters: ``LayerNormLSTMWeights``.
    """

    State = LSTMState
    Weights = LayerNormLSTMWeights
    num_gates = 4
    opened = (1, 2)
    keeps, writes = 1, 0

    def shapes(self, input_size: int, hidden_size: int) -> LayerNormLSTMWeights:
        return LayerNormLSTMWeights._make((*super().shapes(input_size, hidden_size), (hidden_size,), (hidden_size,)))

    def initialize(self, weights: LayerNormLSTMWeights) -> None:
        super().initialize(weights)
        nn.init.ones_(weights.gain_c)
        nn.init.zeros_(weights.bias_c)

    def input_share(self, below: Tensor, weights: LayerNormLSTMWeights) -> Tensor:
        return _normalized(linear(below, weights.weight_ih), weights.gain_ih, weights.bias_ih)

    def state_share(self, state: LayerState, weights: LayerNormLSTMWeights) -> Tensor:
        return _normalized(linear(state[0], weights.weight_hh), weights.gain_hh, weights.bias_hh)

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: LayerNormLSTMWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        i, f, g, o = (input_share + state_share).chunk(4, dim=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(_normalized(c, weights.gain_c, weights.bias_c))
        return (h, c), ()


class LayerNormGRUCell(_LayerNormCell):
    """The GRU with layer normalization, as in the supplement of Ba et al.; z keeps the state, as in ``torch.nn.GRU``.

        r, z = LN(W_rz x; γ_x, β_x) + LN(U_rz h; γ_h, β_h)      each LN over both gates, 2*H
        n = tanh(LN(W_n x; γ_x, β_x) + σ(r)⊙LN(U_n h; γ_h, β_h))      each LN over H
        h' = (1 - σ(z))⊙n + σ(z)⊙h

    Parameters: ``LayerNormWeights``, rows in the order r, z, n.
    """

    State = GRUState
    num_gates = 3
    opened = (0, 2)
    keeps = 1

    def input_share(self, below: Tensor, weights: LayerNormWeights) -> Tensor:
        return _normalized_gates(linear(below, weights.weight_ih), weights.gain_ih, weights.bias_ih)

    def state_share(self, state: LayerState, weights: LayerNormWeights) -> Tensor:
        return _normalized_gates(linear(state[0], weights.weight_hh), weights.gain_hh, weights.bias_hh)

    def candidate(
        self, input_share: Tensor, state_share: Tensor, state: LayerState, weights: LayerNormWeights
    ) -> tuple[LayerState, tuple[Tensor, ...]]:
        (h,) = state
        input_r, input_z, input_n = input_share.chunk(3, dim=-1)
        hidden_r, hidden_z, hidden_n = state_share.chunk(3, dim=-1)
        z = sigmoid(input_z + hidden_z)
        n = tanh(input_n + sigmoid(input_r + hidden_r) * hidden_n)
        return ((1 - z) * n + z * h,), ()


def _normalized(a: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """LN over the last dimension, in the precision of the parameters: autocast makes products of less."""
    return layer_norm(a.to(gain.dtype), gain.shape, gain, bias)


def _normalized_gates(a: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """LN over r and z together, and over n."""
    rz = 2 * len(gain) // 3
    parts = (tensor.tensor_split([rz], dim=-1) for tensor in (a, gain, bias))
    return torch.cat([_normalized(*part) for part in zip(*parts, strict=True)], dim=-1)


LAYER_NORM_LSTM = LayerNormLSTMCell()
LAYER_NORM_GRU = LayerNormGRUCell()
