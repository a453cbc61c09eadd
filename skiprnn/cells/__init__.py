"""Cells ready for use, and what one's own are made of: see docs/cells.md."""

from skiprnn.cells.cell import Cell, GatedCell, Gradients, LayerState, LayerWeights, gradients_of_gates
from skiprnn.cells.gru import GRU, GRU_RESET_BEFORE, GRUCell, GRUResetBeforeCell, GRUState
from skiprnn.cells.layer_norm import LAYER_NORM_GRU, LAYER_NORM_LSTM, LayerNormGRUCell, LayerNormLSTMCell
from skiprnn.cells.lstm import LSTM, LSTMCell, LSTMState
from skiprnn.cells.rnn import RNN, RNN_RELU, RNNCell, RNNState

__all__ = [
    "GRU",
    "GRU_RESET_BEFORE",
    "LAYER_NORM_GRU",
    "LAYER_NORM_LSTM",
    "LSTM",
    "RNN",
    "RNN_RELU",
    "Cell",
    "GRUCell",
    "GRUResetBeforeCell",
    "GRUState",
    "GatedCell",
    "Gradients",
    "LSTMCell",
    "LSTMState",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerState",
    "LayerWeights",
    "RNNCell",
    "RNNState",
    "gradients_of_gates",
]
