"""SkipRNN, SkipLSTM and SkipGRU: their parameters, and what an engine is given of them."""

import operator
import warnings
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from skiprnn.bidirectional import DIRECTIONS, run_both
from skiprnn.cells import GRU, GRU_RESET_BEFORE, LSTM, Cell, LayerState
from skiprnn.engines import ENGINES, solve
from skiprnn.gate import UNBOUNDED, GateState, advance, bounds_of_skips, skipped_steps
from skiprnn.problem import Dropout, Problem, Solution
from skiprnn.stack import RecurrentStack, State

if TYPE_CHECKING:
    from skiprnn.drop_in import DropIn


GATES = ("round", "bernoulli")


class StepOutput(NamedTuple):
    """What ``step`` returns."""

    output: Tensor  # (B, H)
    state: Any  # LSTMState, GRUState, or what the cell has
    skip_next: Tensor  # (B,) int64; skiprnn.gate.NEVER where no sample will be used any more


class SkipRNN(RecurrentStack):
    """A stack of any cell, behind a gate that learns at which steps to update its state, and copies it at all others.

    All arguments but ``cell`` are as for ``SkipLSTM``. The gate is computed from the last tensor of the last layer's
    candidate, and biases are parameters whose names begin with ``bias``.

    Args:
        cell: one of ``skiprnn.cells``, or one's own.

    Raises:
        ValueError: an option is out of its range, skips contradict each other, or the engine is unknown.
    """

    update_weight: nn.Parameter
    update_bias: nn.Parameter
    draws_in_eval = False  # see draw_in_eval

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        update_bias: float = 1.0,
        learn_initial_state: bool = True,
        gate_grad_clip: float | None = None,
        min_skip: int = 0,
        max_skip: int | None = None,
        gate: str = "round",
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
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.engine = engine
        self.gate_grad_clip = gate_grad_clip
        self._update_bias_at_first = update_bias
        self._check_bound()
        self.min_skip = min_skip
        self.max_skip = max_skip
        self.bounds = bounds_of_skips(min_skip, max_skip)
        if gate not in GATES:
            raise ValueError(f"unknown gate {gate!r}; choose {' or '.join(GATES)}")
        if gate == "bernoulli" and self.bounds != UNBOUNDED:
            raise ValueError("min_skip and max_skip are for gate='round': a Bernoulli gate draws how many it skips")
        self.gate = gate
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in 0..1, got {dropout}")
        if dropout and num_layers == 1:
            warnings.warn("dropout acts between layers, of which there is one", stacklevel=2)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        directions = DIRECTIONS[: self.num_directions]
        for k, suffix in product(range(num_layers), directions):
            for name, shape in self._shapes(k)._asdict().items():
                present = bias or not name.startswith("bias")
                self.register_parameter(f"{name}_l{k}{suffix}", parameter(*shape) if present else None)
        for suffix in directions:
            self.register_parameter(f"update_weight{suffix}", parameter(hidden_size))
            self.register_parameter(f"update_bias{suffix}", parameter(1))
        self._register_initial_state(learn_initial_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give all parameters their initial values, as after ``to_empty``."""
        self._initialize()
        for suffix in DIRECTIONS[: self.num_directions]:
            update_weight, update_bias = self._gate_weights(suffix)
            nn.init.xavier_uniform_(update_weight[None])
            nn.init.constant_(update_bias, self._update_bias_at_first)

    def draw_in_eval(self, mode: bool = True) -> Self:
        """Let a Bernoulli gate draw after ``eval()`` too, or round there again.

        Draws are from torch's generator: after the same ``torch.manual_seed`` they are the same.

        Args:
            mode: whether it draws.

        Returns:
            The module itself.

        Raises:
            ValueError: the gate rounds always.
        """
        if mode and self.gate != "bernoulli":
            raise ValueError("a gate that rounds has nothing to draw: make the module with gate='bernoulli'")
        self.draws_in_eval = mode
        return self

    @property
    def draws(self) -> bool:
        """Whether the gate draws now, instead of rounding."""
        return self.gate == "bernoulli" and (self.training or self.draws_in_eval)

    def flatten_parameters(self) -> None:
        """Do nothing: this is for what calls it of ``torch.nn.LSTM``."""

    def _run(
        self, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None, every_step: bool,
        table: Tensor | None,
    ) -> Solution:  # fmt: skip
        run = partial(self._run_one, lengths=lengths, every_step=every_step, table=table)
        if not self.bidirectional:
            return run("", x, states, gate)
        return run_both(run, x, states, gate, lengths, every_step)

    def _run_one(
        self, suffix: str, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None,
        every_step: bool, table: Tensor | None,
    ) -> Solution:  # fmt: skip
        """Run one direction, with what it draws."""
        dropout, draws = self._drawn_dropout(x), self._drawn(x)
        return self._solve(x, states, gate, lengths, every_step, suffix, dropout, draws, table)

    def _solve(
        self,
        x: Tensor,
        states: list[LayerState],
        gate: GateState,
        lengths: Tensor | None = None,
        every_step: bool = True,
        suffix: str = "",
        dropout: Dropout | None = None,
        draws: Tensor | None = None,
        table: Tensor | None = None,
    ) -> Solution:
        """Run one direction."""
        self._check_bound()
        weights = (self.layers(suffix), *self._gate_weights(suffix))
        x, numbers = (x, None) if table is None else (table, x[..., 0])
        problem = Problem(
            self.cell, *weights, x, states, gate, lengths, gate_grad_clip=self.gate_grad_clip, every_step=every_step,
            bounds=self.bounds, dropout=dropout, draws=draws, numbers=numbers,
        )  # fmt: skip
        return solve(self.engine, problem)

    def _gate_weights(self, suffix: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"update_weight{suffix}"), getattr(self, f"update_bias{suffix}")

    def _drawn_dropout(self, x: Tensor) -> Dropout | None:
        if not self.training or not self.dropout or self.num_layers == 1:
            return None
        shape, keep = (*x.shape[:2], self.hidden_size), 1 - self.dropout
        layers = [  # drawn one by one, and so the same as torch.nn.LSTM's on the CPU
            torch.empty(shape, dtype=torch.bool, device=x.device).bernoulli_(keep) for _ in range(self.num_layers - 1)
        ]
        return Dropout(torch.stack(layers), 1 / keep if keep else 0.0)

    def _drawn(self, x: Tensor) -> Tensor | None:
        return torch.rand(x.shape[:2], device=x.device) if self.draws else None

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
            ValueError: an argument has the wrong shape, type or range, the network is bidirectional, or its gate draws.
        """
        self.check_step_by_step()
        self._check_rounds()
        if x.dim() != 2:
            raise ValueError(f"x must be (B, D) with D = {self.input_size}, got shape {tuple(x.shape)}")
        output, state, _ = self(x[:, None] if self.batch_first else x[None], state, every_step=False)
        skip_next = skipped_steps(state.update_prob, state.cum_update_prob)
        return StepOutput(output, state, skip_next)

    def advance(self, state: State, n: int) -> State:
        """The state after ``n`` more steps, in all of which every sequence skips its sample.

        Raises:
            ValueError: a sequence needs one of the samples, ``state`` has the wrong shape or range, the network is
                bidirectional, or its gate draws.
        """
        n = operator.index(n)
        self.check_step_by_step()
        self._check_rounds()
        state = self._checked_state(state, (state.update_prob.numel(),))
        skips = skipped_steps(state.update_prob, state.cum_update_prob)
        most = int(skips.min()) if len(skips) else n
        if not 0 <= n <= most:
            raise ValueError(f"cannot advance by {n} steps: the samples of the next {most} are all that is skipped")
        return state._replace(cum_update_prob=advance(state.update_prob, state.cum_update_prob, n))

    def check_step_by_step(self) -> None:
        """Refuse to go sample by sample where that cannot be.

        Raises:
            ValueError: the network is bidirectional, or its gate draws in training.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional network cannot go sample by sample: it also reads from the end")
        if self.training and self.gate == "bernoulli":
            raise ValueError("in training a Bernoulli gate cannot say what it will skip: call eval(), then it rounds")

    def _check_rounds(self) -> None:
        if self.draws:
            raise ValueError(
                "a state does not hold what a Bernoulli gate will draw: follow the sequence with a Stream, which draws "
                "ahead, or call draw_in_eval(False)"
            )

    def extra_repr(self) -> str:
        bound = "" if self.gate_grad_clip is None else f", gate_grad_clip={self.gate_grad_clip:g}"
        skips = "" if self.bounds == UNBOUNDED else f", min_skip={self.min_skip}, max_skip={self.max_skip}"
        kind = "" if self.gate == "round" else f", gate={self.gate!r}"
        kind += ", draws_in_eval=True" if self.draws_in_eval else ""
        return f"{super().extra_repr()}{bound}{skips}{kind}, engine={self.engine!r}"


class SkipLSTM(SkipRNN):
    """An LSTM that learns at which steps to update its state, and copies it at all others.

    Parameters are named as in ``torch.nn.LSTM``, whose state_dict loads with ``strict=False``; added are
    ``update_weight`` (H,), ``update_bias`` (1,), and ``initial_h`` and ``initial_c`` (num_layers, H) if learned.
    Arguments come in the order of ``torch.nn.LSTM``; docs/nn-lstm.md compares the two.

    Args:
        input_size: features of a sample, D.
        hidden_size: units of a layer, H.
        num_layers: layers of the stack. One gate, computed from the last layer's c̃, updates or copies them all.
        bias: whether the cells have biases, the forget gate's 1 among them; the gate has one in any case.
        batch_first: take and return (B, T, ...) instead of (T, B, ...).
        dropout: in training, the share of each layer's candidate h̃ that the next layer does not read, drawn anew for
            every step, used or skipped; the compiled engine leaves that to others, which are slower.
        bidirectional: add a second stack with a gate of its own, of parameters whose names end in ``_reverse``, which
            reads each sequence from its end. Outputs are (T, B, 2H), gates (T, B, 2), of a state h and c
            (2·num_layers, B, H), layer by layer both directions, its gate (2, B). All layers of a direction have one
            gate, so a layer reads its own direction only; of ``torch.nn.LSTM`` it reads both. Past the end of a
            sequence each direction repeats its last state; with ``every_step=False`` the output is both of these.
        proj_size: 0, for there are no projections.
        update_bias: initial bias of the update probability; at 1 (nearly) every sample is used at first.
        learn_initial_state: learn the initial state, drawn from N(0, 1); otherwise it is zero.
        gate_grad_clip: the loss's gradient by the gate is clamped to ± this at every step of every sequence, used or
            skipped; an attribute, which may be changed at any time. None is the paper's gradient, which may explode in
            a single sequence and shut the gate for good. Where the loss is a mean over B sequences, 1 / B is a good
            bound: one sequence's whole loss, which stops only such explosions.
        min_skip: samples skipped after each that is used, at least.
        max_skip: samples skipped in a row, at most; None: any number. Between the two the gate learns as ever: its
            probability is scaled to where it skips so many.
        gate: ``"round"``, the paper's, opens where its sum is above 0.5; ``"bernoulli"``, the paper's authors' own
            suggestion, with its sum as the probability, drawn from torch's generator at every step. It draws in
            training, ``train()``, and rounds after ``eval()``, unless ``draw_in_eval()`` was called. Gradients are
            straight-through either way.
        engine: ``"reference"``, the definition, computes every step; ``"events"`` computes updates and, in the
            backward pass, candidates of skipped steps, with the same results; ``"cuda"`` does so in one GPU kernel
            each way, for one layer of up to 128 float32 units; ``"graph"`` on a GPU for any number of layers and units,
            in the library's products; ``"auto"`` is the fastest of them that can run: see
            docs/engines.md. A named engine that cannot run raises ``RuntimeError``.
        device: where the parameters lie.
        dtype: of the parameters; the gate is computed in float32 or better whatever it is, under autocast too.

    Raises:
        ValueError: an option is out of its range, skips contradict each other, or the engine is unknown.

    Source: Campos et al., "Skip RNN: Learning to Skip State Updates in Recurrent Neural Networks", ICLR 2018.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        update_bias: float = 1.0,
        learn_initial_state: bool = True,
        gate_grad_clip: float | None = None,
        min_skip: int = 0,
        max_skip: int | None = None,
        gate: str = "round",
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if proj_size:
            raise ValueError(
                f"proj_size={proj_size} is not supported: h has hidden_size units, as c has; leave it at 0"
            )
        super().__init__(
            LSTM, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            update_bias=update_bias, learn_initial_state=learn_initial_state, gate_grad_clip=gate_grad_clip,
            min_skip=min_skip, max_skip=max_skip, gate=gate, engine=engine, device=device, dtype=dtype,
        )  # fmt: skip

    def as_lstm(self) -> "DropIn":
        """The same module with the call of ``torch.nn.LSTM``: ``output, (h, c) = rnn(input, (h0, c0))``."""
        from skiprnn.drop_in import DropIn

        return DropIn(self)


class SkipGRU(SkipRNN):
    """A GRU that learns at which steps to update its state, and copies it at all others.

    Parameters are named as in ``torch.nn.GRU``, whose state_dict loads with ``strict=False``; added are
    ``update_weight`` (H,), ``update_bias`` (1,), and ``initial_h`` (num_layers, H) if learned.

    All arguments but ``reset_after`` are as for ``SkipLSTM``. The gate is computed from the last layer's h̃.

    Args:
        reset_after: the candidate is tanh(W x + b + r⊙(U h + b_h)), as in ``torch.nn.GRU`` and cuDNN; if False,
            tanh(W x + b + U (r⊙h) + b_h), as the paper's authors trained.

    Raises:
        ValueError: an option is out of its range, skips contradict each other, or the engine is unknown.

    Source: Campos et al., "Skip RNN: Learning to Skip State Updates in Recurrent Neural Networks", ICLR 2018.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        update_bias: float = 1.0,
        learn_initial_state: bool = True,
        gate_grad_clip: float | None = None,
        min_skip: int = 0,
        max_skip: int | None = None,
        gate: str = "round",
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        cell = GRU if reset_after else GRU_RESET_BEFORE
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            update_bias=update_bias, learn_initial_state=learn_initial_state, gate_grad_clip=gate_grad_clip,
            min_skip=min_skip, max_skip=max_skip, gate=gate, engine=engine, device=device, dtype=dtype,
        )  # fmt: skip

    def as_gru(self) -> "DropIn":
        """The same module with the call of ``torch.nn.GRU``: ``output, h = rnn(input, h0)``."""
        from skiprnn.drop_in import DropIn

        return DropIn(self)
