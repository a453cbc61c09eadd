"""The paper's baselines: the plain cells, and the plain cells whose updates are skipped at random."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skiprnn.cells import GRU, LSTM, LayerState
from skiprnn.reference import GateState, forced_gate_rnn
from skiprnn.stack import RecurrentStack


class _RandomSkip(RecurrentStack):
    p_skip: float

    def _setup(self, p_skip: float, learn_initial_state: bool) -> None:
        if not 0 <= p_skip <= 1:
            raise ValueError(f"p_skip must lie in 0..1, got {p_skip}")
        self.p_skip = p_skip
        self._register_initial_state(learn_initial_state)
        self._initialize()

    def _run(
        self, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None
    ) -> tuple[Tensor, Sequence[LayerState], GateState, Tensor]:
        steps, batch, _ = x.shape
        update_gate = torch.ones(steps, batch, device=x.device, dtype=gate.update_prob.dtype)
        if self.p_skip == 0 and lengths is None and steps > 0:
            output, states = self._run_fused(x, states)
            return output, states, gate, update_gate
        if self.p_skip:
            update_gate = torch.bernoulli(update_gate * (1 - self.p_skip))
        if lengths is not None:
            valid = torch.arange(steps, device=x.device)[:, None] < lengths
            x, update_gate = x.masked_fill(~valid[..., None], 0), update_gate * valid
        output, states = forced_gate_rnn(self.cell, x, self.layers(), states, update_gate)
        return output, states, gate, update_gate

    def _run_fused(self, x: Tensor, states: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p_skip={self.p_skip}"


class RandomSkipLSTM(_RandomSkip, nn.LSTM):  # type: ignore[misc]  # forward takes and returns more
    """An LSTM that copies its state with probability ``p_skip`` at each step; with 0, the plain LSTM at full speed.

    Initial values, ``forward`` and its result are those of ``SkipLSTM``; the gate learns nothing. Steps are skipped at
    random in evaluation too, as in the paper's tables.

    Args:
        input_size, hidden_size, num_layers, batch_first, learn_initial_state, device, dtype: as for ``SkipLSTM``.
        p_skip: probability of skipping a step.

    Raises:
        ValueError: ``p_skip`` outside 0..1.
    """

    cell = LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        p_skip: float = 0.0,
        batch_first: bool = False,
        learn_initial_state: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.LSTM.__init__(self, input_size, hidden_size, num_layers, batch_first=batch_first, device=device, dtype=dtype)
        self._setup(p_skip, learn_initial_state)

    def _run_fused(self, x: Tensor, states: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        h, c = (torch.stack(tensors) for tensors in zip(*states, strict=True))
        output, last = nn.LSTM.forward(self, x.transpose(0, 1) if self.batch_first else x, (h, c))
        h, c = last[0].to(h.dtype), last[1].to(c.dtype)  # autocast gives bfloat16
        return output.transpose(0, 1) if self.batch_first else output, list(zip(h, c, strict=True))


class RandomSkipGRU(_RandomSkip, nn.GRU):  # type: ignore[misc]  # forward takes and returns more
    """A GRU that copies its state with probability ``p_skip`` at each step; with 0, the plain GRU at full speed.

    Initial values, ``forward`` and its result are those of ``SkipGRU`` (``reset_after=True``); the gate learns nothing.
    Steps are skipped at random in evaluation too, as in the paper's tables.

    Args:
        input_size, hidden_size, num_layers, batch_first, learn_initial_state, device, dtype: as for ``SkipLSTM``.
        p_skip: probability of skipping a step.

    Raises:
        ValueError: ``p_skip`` outside 0..1.
    """

    cell = GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        p_skip: float = 0.0,
        batch_first: bool = False,
        learn_initial_state: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.GRU.__init__(self, input_size, hidden_size, num_layers, batch_first=batch_first, device=device, dtype=dtype)
        self._setup(p_skip, learn_initial_state)

    def _run_fused(self, x: Tensor, states: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        (h,) = (torch.stack(tensors) for tensors in zip(*states, strict=True))
        output, last = nn.GRU.forward(self, x.transpose(0, 1) if self.batch_first else x, h)
        return output.transpose(0, 1) if self.batch_first else output, [(layer,) for layer in last.to(h.dtype)]
