"""Skip RNN (Campos et al., ICLR 2018): recurrent networks that learn which samples to skip."""

from skiprnn.baselines import RandomSkipGRU, RandomSkipLSTM
from skiprnn.budget import (
    MetricCost,
    UsageCost,
    budget_loss,
    growing_budget_loss,
    target_budget_loss,
    used_cost,
    used_samples,
    weighted_budget_loss,
)
from skiprnn.cells import GRUState, LSTMState, RNNState
from skiprnn.drop_in import DropIn
from skiprnn.modules import SkipGRU, SkipLSTM, SkipRNN, StepOutput
from skiprnn.stack import SkipRNNOutput
from skiprnn.streaming import Stream
from skiprnn.trained import LoadedModel, Predicted, load

__version__ = "0.1.0"

__all__ = [
    "DropIn",
    "GRUState",
    "LSTMState",
    "LoadedModel",
    "MetricCost",
    "Predicted",
    "RNNState",
    "RandomSkipGRU",
    "RandomSkipLSTM",
    "SkipGRU",
    "SkipLSTM",
    "SkipRNN",
    "SkipRNNOutput",
    "StepOutput",
    "Stream",
    "UsageCost",
    "budget_loss",
    "growing_budget_loss",
    "load",
    "target_budget_loss",
    "used_cost",
    "used_samples",
    "weighted_budget_loss",
]
