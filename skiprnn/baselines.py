"""The paper's baselines: the plain cells, and the plain cells whose updates are skipped at random."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from skiprnn.cells import GRU, LSTM, LayerState
from skiprnn.engines import cuda, native
from skiprnn.gate import GateState
from skiprnn.problem import Problem, Solution
from skiprnn.stack import RecurrentStack


class _RandomSkip(RecurrentStack):
    p_skip: float
    _torch: Any  # nn.LSTM or nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        p_skip: float = 0.0,
        batch_first: bool = False,
        learn_initial_state: bool = True,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        self._torch.__init__(self, *sizes, batch_first=batch_first, device=device, dtype=dtype)
        if not 0 <= p_skip <= 1:
            raise ValueError(f"p_skip must lie in 0..1, got {p_skip}")
        if engine not in ("auto", "torch"):
            raise ValueError(f"unknown engine {engine!r}; choose auto or torch")
        self.p_skip = p_skip
        self.engine = engine
        self._register_initial_state(learn_initial_state)
        self._initialize()

    def _run(
        self, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None, every_step: bool,
        table: Tensor | None,
    ) -> Solution:  # fmt: skip
        steps, batch, _ = x.shape
        taken = partial(self._run_taken, states=states, every_step=every_step, table=table)
        used = torch.rand(steps, batch, device=x.device) >= self.p_skip
        if lengths is not None:
            used &= torch.arange(steps, device=x.device)[:, None] < lengths
        update_gate = used.to(gate.update_prob.dtype)
        if self.p_skip == 0:
            return Solution(*taken(x, lengths=lengths), gate, update_gate)
        counts = used.sum(0)  # the samples used alone, side by side
        longest = int(counts.max()) if counts.numel() else 0
        order = used.int().argsort(dim=0, descending=True, stable=True)[:longest, :, None]
        output, last = taken(x.gather(0, order.expand(-1, -1, x.shape[2])), lengths=counts)
        if every_step:
            output = torch.cat([states[-1][0][None], output.to(states[-1][0].dtype)])
            output = output.gather(0, used.cumsum(0)[..., None].expand(-1, -1, output.shape[2]))
        return Solution(output, last, gate, update_gate)

    def _run_taken(
        self, x: Tensor, states: list[LayerState], lengths: Tensor | None, every_step: bool, table: Tensor | None
    ) -> tuple[Tensor, Sequence[LayerState]]:
        """The plain cell over all of x: a Skip RNN whose gate stays open, where that is compiled, or torch's own."""
        if not x.numel():
            return states[-1][0].expand(*x.shape[:2], -1), states
        batch = x.shape[1]
        x, numbers = (x, None) if table is None else (table, x[..., 0])
        gate = GateState(x.new_ones(batch), x.new_zeros(batch))
        shut, opened = x.new_zeros(self.hidden_size), x.new_full((1,), 100.0)
        problem = Problem(
            self.cell, self.layers(), shut, opened, x, states, gate, lengths, every_step=every_step, numbers=numbers
        )
        if numbers is not None:
            ready = native.with_numbers(problem, reads_all=True) if self.engine == "auto" else None
            problem = ready or problem.looked_up()
            x = problem.x
        if self.engine == "auto":
            solution = None
            if x.is_cpu and native.why_not(problem) is None:
                solution = native.run(problem)
            elif not x.is_cpu and cuda.why_not(problem) is None:
                solution = cuda.run(problem, opens_always=True)
            if solution is not None:
                return solution.output, solution.states
        start = tuple(torch.stack(tensors) for tensors in zip(*states, strict=True))  # (num_layers, B, H) each
        if lengths is None:
            output, last = self._plain(x.transpose(0, 1) if self.batch_first else x, start)
            output = output.transpose(0, 1) if self.batch_first else output
        else:
            packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
            output, last = self._plain(packed, start)
            output, _ = pad_packed_sequence(output, total_length=len(x))
            none = (lengths == 0)[:, None]
            last = tuple(torch.where(none, old, new) for old, new in zip(start, last, strict=True))
            at = torch.arange(len(x), device=x.device)[:, None].minimum(lengths - 1)  # then the last state is repeated
            output = torch.where(none, start[0][-1], output.gather(0, at.clamp(min=0)[..., None].expand_as(output)))
        last = tuple(new.to(old.dtype) for new, old in zip(last, start, strict=True))  # autocast gives bfloat16
        return output, list(zip(*last, strict=True))

    def _plain(self, x: Any, start: LayerState) -> tuple[Any, LayerState]:
        """torch's own cell over a batch or a packed sequence; of two states it takes and returns a tuple."""
        output, last = self._torch.forward(self, x, start if len(start) > 1 else start[0])
        return output, last if isinstance(last, tuple) else (last,)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p_skip={self.p_skip}"


class RandomSkipLSTM(_RandomSkip, nn.LSTM):  # type: ignore[misc]  # forward takes and returns more
    """An LSTM that copies its state with probability ``p_skip`` at each step; with 0, the plain LSTM.

    Initial values, ``forward`` and its result are those of ``SkipLSTM``; the gate learns nothing. Steps are skipped at
    random in evaluation too, as in the paper's tables.

    Args:
        input_size, hidden_size, num_layers, batch_first, learn_initial_state, device, dtype: as for ``SkipLSTM``.
        p_skip: probability of skipping a step.
        engine: ``"torch"`` runs the used samples through torch's own cell; ``"auto"`` through the engine of compiled
            code, or of CUDA, where that can, which is faster.

    Raises:
        ValueError: ``p_skip`` outside 0..1, or an unknown engine.
    """

    cell, _torch = LSTM, nn.LSTM


class RandomSkipGRU(_RandomSkip, nn.GRU):  # type: ignore[misc]  # forward takes and returns more
    """A GRU that copies its state with probability ``p_skip`` at each step; with 0, the plain GRU.

    Initial values, ``forward`` and its result are those of ``SkipGRU`` (``reset_after=True``); the gate learns nothing.
    Steps are skipped at random in evaluation too, as in the paper's tables.

    Args:
        input_size, hidden_size, num_layers, batch_first, learn_initial_state, device, dtype: as for ``SkipLSTM``.
        p_skip: probability of skipping a step.
        engine: ``"torch"`` runs the used samples through torch's own cell; ``"auto"`` through the engine of compiled
            code, or of CUDA, where that can, which is faster.

    Raises:
        ValueError: ``p_skip`` outside 0..1, or an unknown engine.
    """

    cell, _torch = GRU, nn.GRU
