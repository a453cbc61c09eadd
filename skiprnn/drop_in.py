"""A Skip RNN with the call of ``torch.nn.LSTM`` or ``torch.nn.GRU``."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from skiprnn.layout import Input
from skiprnn.modules import SkipRNN, StepOutput
from skiprnn.stack import State


class _LastCall:
    """What a call leaves behind, which no copy of the module takes along."""

    update_gate: Any = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _LastCall, ()


class DropIn(SkipRNN):
    """The same module as the one it is made of, but called as ``torch.nn`` has it: ``SkipLSTM.as_lstm`` makes it.

    It shares all that the module has: parameters under the same names, hooks, options, ``train()`` and ``eval()``.
    ``update_gate`` is what the budget loss needs.

    Between calls there is no memory of the gate. A call without ``hx`` starts from the module's initial state, which is
    learned unless ``learn_initial_state=False``, and one with ``hx`` from that; of both the gate is open at the first
    sample, which is used, as that of a new sequence is. To go on from a state exactly as if the sequence had not been
    cut, gate included, call ``as_skip()`` with the state that it returns.
    """

    def __init__(self, rnn: SkipRNN) -> None:
        _share(rnn, self)
        self._last = _LastCall()

    @property
    def update_gate(self) -> Any:
        """The gate of the last call, in the form of its output, differentiable; None before, and in copies.

        It is (T, B), or (B, T) if ``batch_first``, as ``rnn(x).update_gate`` is. In ``nn.DataParallel`` each replica's
        call overwrites that of another; use ``as_skip()`` there, whose gate is gathered.
        """
        return self._last.update_gate

    def forward(self, input: Input, hx: Any = None) -> Any:  # type: ignore[override]  # as torch.nn has it
        """Run a batch of sequences, a packed batch, or one sequence.

        Args:
            input: as for ``SkipLSTM``.
            hx: ``(h0, c0)`` of an LSTM, h0 of a GRU, (num_layers, B, H) each, twice as many layers if bidirectional,
                or without B for one sequence; None is the initial state.

        Returns:
            ``(output, (h, c))`` of an LSTM, ``(output, h)`` of a GRU.

        Raises:
            ValueError: an argument has the wrong shape, type or range.
        """
        output, state, gate = super().forward(input, hx)
        if not torch.compiler.is_exporting():
            self._last.update_gate = gate
        states = tuple(state[: self.cell.num_states])
        return output, states if len(states) > 1 else states[0]

    def step(self, x: Tensor, state: State | None = None) -> StepOutput:
        """As ``SkipLSTM.step``, gate and all."""
        return self.as_skip().step(x, state)

    def as_skip(self) -> SkipRNN:
        """The same module with the call of a Skip RNN: ``(output, state, update_gate)``."""
        return _share(self, SkipRNN.__new__(SkipRNN))


def _share(rnn: SkipRNN, other: SkipRNN) -> SkipRNN:
    """Make of ``other`` the same module, whose parameters, mode and hooks cannot come apart."""
    if parametrize.is_parametrized(rnn):
        raise ValueError("a parametrized module has one form of call: parametrize what as_lstm() or as_gru() returns")
    other.__dict__ = rnn.__dict__
    return other
