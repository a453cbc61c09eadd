"""Cells ready for use, and what one's own are made of: see docs/cells.md."""

from skiprnn.cells.cell import Cell, GatedCell, Gradients, LayerState, LayerWeights, gradients_of_gates
from skiprnn.cells.gru import GRU, GRU_RESET_BEFORE, GRUCell, GRUResetBeforeCell, GRUState
from skiprnn.cells.layer_norm import LAYER_NORM_GRU, LAYER_NORM_LSTM, LayerNormGRUCell, LayerNormLSTMCell
from skiprnn.cells.lstm import LSTM, LSTMCell, LSTMState
from skiprnn.cells.rnn import RNN, RNN_RELU, RNNCell, RNNState

CELLS: dict[str, Cell] = {
    "lstm": LSTM,
    "gru": GRU,
    "rnn": RNN,
    "rnn-relu": RNN_RELU,
    "ln-lstm": LAYER_NORM_LSTM,
    "ln-gru": LAYER_NORM_GRU,
}
"""By the names that runs have of them."""

__all__ = [
    "CELLS",
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
    "cell_named",
    "gradients_of_gates",
]


def cell_named(name: str, *, reset_after: bool = True) -> Cell | None:
    """One of ``CELLS``, or without ``reset_after`` the other GRU; None: it is not one of them."""
    return GRU_RESET_BEFORE if name == "gru" and not reset_after else CELLS.get(name)
