"""SkipRNN, SkipLSTM and SkipGRU: their parameters, and what an engine is given of them."""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skiprnn import gate
from skiprnn.cells import GRU, GRU_RESET_BEFORE, LSTM, Cell, LayerState
from skiprnn.engines import ENGINES, solve
from skiprnn.gate import GateState
from skiprnn.problem import Problem, Solution
from skiprnn.stack import RecurrentStack, State


class StepOutput(NamedTuple):
    """What ``step`` returns."""

    output: Tensor  # (B, H)
    state: Any  # LSTMState, GRUState, or what the cell has
    skip_next: Tensor  # (B,) int64; skiprnn.gate.NEVER where no sample will be used any more


class SkipRNN(RecurrentStack):
    """A stack of any cell, behind a gate that learns at which steps to update its state, and copies it at all others.

    Args:
        cell: one of ``skiprnn.cells``, or one's own.
        input_size, hidden_size, num_layers, batch_first, update_bias, learn_initial_state, gate_grad_clip, min_skip,
            max_skip, engine, device, dtype: as for ``SkipLSTM``; the gate is computed from the last tensor of the last
            layer's candidate.

    Raises:
        ValueError: a size below 1, a bound of 0 or less, skips that contradict each other, or an unknown engine.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        update_bias: float = 1.0,
        learn_initial_state: bool = True,
        gate_grad_clip: float | None = None,
        min_skip: int = 0,
        max_skip: int | None = None,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}; choose {' or '.join(ENGINES)}")
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.engine = engine
        self.gate_grad_clip = gate_grad_clip
        self._check_bound()
        self.min_skip = min_skip
        self.max_skip = max_skip
        self.bounds = gate.bounds_of_skips(min_skip, max_skip)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        for k in range(num_layers):
            for name, shape in cell.shapes(hidden_size if k else input_size, hidden_size)._asdict().items():
                self.register_parameter(f"{name}_l{k}", parameter(*shape))
        self.update_weight = parameter(hidden_size)
        self.update_bias = parameter(1)
        self._register_initial_state(learn_initial_state)

        self._initialize()
        nn.init.xavier_uniform_(self.update_weight[None])
        nn.init.constant_(self.update_bias, update_bias)

    def _run(
        self, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None, every_step: bool
    ) -> Solution:
        self._check_bound()
        weights = (self.layers(), self.update_weight, self.update_bias)
        options = (self.gate_grad_clip, every_step, self.bounds)
        return solve(self.engine, Problem(self.cell, *weights, x, states, gate, lengths, *options))

    def _check_bound(self) -> None:
        if self.gate_grad_clip is not None and not self.gate_grad_clip > 0:
            raise ValueError(f"gate_grad_clip must be a positive number, or None, got {self.gate_grad_clip}")

    def step(self, x: Tensor, state: State | None = None) -> StepOutput:
        """Run one step of each sequence of a batch, as ``forward`` would.

        Args:
            x: (B, D), the next samples.
            state: what the last step returned; None starts from the initial state.

        Returns:
            ``(output, state, skip_next)``: the last layer's h, (B, H); the state to go on from; and how many of the
            following samples each sequence will not use, (B,) int64, so that nobody need fetch them: ``advance`` lets
            them pass. For one sequence on the CPU, ``Stream`` does all of this in compiled code.

        Raises:
            ValueError: an argument has the wrong shape, type or range.
        """
        if x.dim() != 2:
            raise ValueError(f"x must be (B, D) with D = {self.input_size}, got shape {tuple(x.shape)}")
        output, state, _ = self(x[:, None] if self.batch_first else x[None], state, every_step=False)
        skip_next = gate.skipped_steps(state.update_prob, state.cum_update_prob)
        return StepOutput(output, state, skip_next)

    def advance(self, state: State, n: int) -> State:
        """The state after ``n`` more steps, in all of which every sequence skips its sample.

        Raises:
            ValueError: a sequence needs one of the samples, or ``state`` has the wrong shape or range.
        """
        n = operator.index(n)
        self._check_state(state, len(state.update_prob))
        skips = gate.skipped_steps(state.update_prob, state.cum_update_prob)
        most = int(skips.min()) if len(skips) else n
        if not 0 <= n <= most:
            raise ValueError(f"cannot advance by {n} steps: the samples of the next {most} are all that is skipped")
        return state._replace(cum_update_prob=gate.advance(state.update_prob, state.cum_update_prob, n))

    def extra_repr(self) -> str:
        bound = "" if self.gate_grad_clip is None else f", gate_grad_clip={self.gate_grad_clip:g}"
        skips = "" if self.bounds == gate.UNBOUNDED else f", min_skip={self.min_skip}, max_skip={self.max_skip}"
        return f"{super().extra_repr()}{bound}{skips}, engine={self.engine!r}"


class SkipLSTM(SkipRNN):
    """An LSTM that learns at which steps to update its state, and copies it at all others.

    Parameters are named as in ``torch.nn.LSTM``, whose state_dict loads with ``strict=False``; added are
    ``update_weight`` (H,), ``update_bias`` (1,), and ``initial_h`` and ``initial_c`` (num_layers, H) if learned.

    Args:
        input_size: features of a sample, D.
        hidden_size: units of a layer, H.
        num_layers: layers of the stack. One gate, computed from the last layer's c̃, updates or copies them all.
        batch_first: take and return (B, T, ...) instead of (T, B, ...).
        update_bias: initial bias of the update probability; at 1 (nearly) every sample is used at first.
        learn_initial_state: learn the initial state, drawn from N(0, 1); otherwise it is zero.
        gate_grad_clip: the loss's gradient by the gate is clamped to ± this at every step of every sequence, used or
            skipped; an attribute, which may be changed at any time. None is the paper's gradient, which may explode in
            a single sequence and shut the gate for good. Where the loss is a mean over B sequences, 1 / B is a good
            bound: one sequence's whole loss, which stops only such explosions.
        min_skip: samples skipped after each that is used, at least.
        max_skip: samples skipped in a row, at most; None: any number. Between the two the gate learns as ever: its
            probability is scaled to where it skips so many.
        engine: ``"reference"``, the definition, computes every step; ``"events"`` computes updates and, in the
            backward pass, candidates of skipped steps, with the same results; ``"triton"`` does so in one GPU kernel
            each way, for one layer of up to 128 float32 units; ``"auto"`` is events where that can
            run, else the reference: see the README. A named engine that cannot run raises ``RuntimeError``.
        device: where the parameters lie.
        dtype: of the parameters; the gate is computed in float32 or better whatever it is, under autocast too.

    Raises:
        ValueError: a size below 1, a bound of 0 or less, skips that contradict each other, or an unknown engine.

    Source: Campos et al., "Skip RNN: Learning to Skip State Updates in Recurrent Neural Networks", ICLR 2018.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        update_bias: float = 1.0,
        learn_initial_state: bool = True,
        gate_grad_clip: float | None = None,
        min_skip: int = 0,
        max_skip: int | None = None,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            LSTM, input_size, hidden_size, num_layers, batch_first=batch_first, update_bias=update_bias,
            learn_initial_state=learn_initial_state, gate_grad_clip=gate_grad_clip, min_skip=min_skip,
            max_skip=max_skip, engine=engine, device=device, dtype=dtype,
        )  # fmt: skip


class SkipGRU(SkipRNN):
    """A GRU that learns at which steps to update its state, and copies it at all others.

    Parameters are named as in ``torch.nn.GRU``, whose state_dict loads with ``strict=False``; added are
    ``update_weight`` (H,), ``update_bias`` (1,), and ``initial_h`` (num_layers, H) if learned.

    Args:
        input_size, hidden_size, num_layers, batch_first, update_bias, learn_initial_state, gate_grad_clip, min_skip,
            max_skip, engine, device, dtype: as for ``SkipLSTM``; the gate is computed from the last layer's h̃.
        reset_after: the candidate is tanh(W x + b + r⊙(U h + b_h)), as in ``torch.nn.GRU`` and cuDNN; if False,
            tanh(W x + b + U (r⊙h) + b_h), as the paper's authors trained.

    Raises:
        ValueError: a size below 1, a bound of 0 or less, skips that contradict each other, or an unknown engine.

    Source: Campos et al., "Skip RNN: Learning to Skip State Updates in Recurrent Neural Networks", ICLR 2018.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        batch_first: bool = False,
        update_bias: float = 1.0,
        learn_initial_state: bool = True,
        gate_grad_clip: float | None = None,
        min_skip: int = 0,
        max_skip: int | None = None,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        cell = GRU if reset_after else GRU_RESET_BEFORE
        super().__init__(
            cell, input_size, hidden_size, num_layers, batch_first=batch_first, update_bias=update_bias,
            learn_initial_state=learn_initial_state, gate_grad_clip=gate_grad_clip, min_skip=min_skip,
            max_skip=max_skip, engine=engine, device=device, dtype=dtype,
        )  # fmt: skip
