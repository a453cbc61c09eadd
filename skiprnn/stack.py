"""What a Skip RNN and its baselines share: state, initial values, argument checks, and the shape of ``forward``."""

import operator
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from skiprnn.bidirectional import DIRECTIONS
from skiprnn.cells import Cell, LayerState
from skiprnn.gate import GateState
from skiprnn.layout import Input, Lengths, lay_out
from skiprnn.problem import Solution

State = Any  # LSTMState, GRUState, or the named tuple of another cell


class SkipRNNOutput(NamedTuple):
    """What ``forward`` returns; of a packed batch, output and gate are packed."""

    output: Any  # (T, B, H) or (B, T, H); (B, H) where every_step is False
    state: Any  # LSTMState, GRUState, or what the cell has
    update_gate: Any  # (T, B) or (B, T): 1 where the sample was used, 0 where it was skipped


class BatchFirstOutput(SkipRNNOutput):
    """What ``forward`` returns with ``batch_first``: the type says so to the losses, also where it was rebuilt."""

    __slots__ = ()


class RecurrentStack(nn.Module):
    """A stack of cells with parameters named as in ``torch.nn.LSTM``; subclasses say in ``_run`` which steps update."""

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool

    def forward(
        self,
        input: Input,
        state: State | None = None,
        lengths: Lengths | None = None,
        *,
        every_step: bool = True,
        table: Tensor | None = None,
    ) -> SkipRNNOutput:
        """Run a batch of sequences, a packed batch, or one sequence.

        Args:
            input: (T, B, D), or (B, T, D) if ``batch_first``; a ``PackedSequence``, sorted or not; or one sequence,
                (T, D). Results have the form of the input.
            state: a state returned before, to go on from it; or its h (and c) alone, as ``torch.nn`` has them, of
                which the next sample is always used; None starts from the initial state. That its sums and
                probabilities lie in 0..1 is checked on the CPU only.
            lengths: (B,) integers from 0 to T. From step ``lengths[b]`` on, sequence b neither updates nor costs
                anything, and its output repeats its last state. Values are checked on the CPU only. A packed batch
                has its own, and one sequence none.
            every_step: if False, return the last layer's h after the last step alone, which saves memory and time.
            table: (N, D), whose rows are the samples: ``input`` then holds their numbers, (T, B), (B, T) or (T,) int32
                or int64, as it would for an ``nn.Embedding`` whose weight this is. Results are the same, sooner:
                docs/engines.md. Pass the rows that occur, not a whole vocabulary.

        Returns:
            ``(output, state, update_gate)``: the last layer's h after each step, (T, B, H) or (B, T, H), or after the
            last one, (B, H), which is ``state.h[-1]``; the state to go on from; the gate, (T, B) or (B, T), 1 where the
            state was updated and 0 where it was copied. Of a packed batch, output and gate are packed as it is, the
            gate's data being (N,), and the state is in the order of the sequences before they were packed. Of one
            sequence, they are (T, H), (T,), and a state of (num_layers, H) and ().

        Raises:
            ValueError: an argument has the wrong shape, type or range.
        """
        x, lengths, layout = lay_out(input, lengths, self.input_size, self.batch_first, table)
        if state is None:
            state = self.initial_state(x.shape[1])
        else:
            checked = self._checked_state(state, (x.shape[1],) if layout.batched else ())
            state = self._state(*layout.taken(*self._split(checked)))
        tensors, gate_state = self._split(state)
        states = list(zip(*map(_taken_apart, tensors), strict=True))
        solution = self._run(x, states, gate_state, lengths, every_step, table)
        tensors = [torch.stack(layers) for layers in zip(*solution.states, strict=True)]
        tensors, gate = layout.given(tensors, solution.gate)
        output = layout.steps(solution.output) if every_step else self._after_last_step(tensors[0])
        kind = BatchFirstOutput if self.batch_first else SkipRNNOutput
        return kind(output, self._state(tensors, gate), layout.steps(solution.update_gate))

    @property
    def num_directions(self) -> int:
        """Stacks of ``num_layers`` layers, each behind a gate of its own: 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step, for ``batch_size`` sequences: the first sample is always used."""
        weight = self.layer(0)[0]
        tensors = [
            weight.new_zeros(self.num_layers * self.num_directions, batch_size, self.hidden_size)
            if initial is None
            else initial.unsqueeze(1).expand(-1, batch_size, -1)
            for initial in self._initial_states()
        ]
        return self._state(tensors, self._opening(weight, (batch_size,)))

    def _after_last_step(self, h: Tensor) -> Tensor:
        """Of all layers' h that of the last, both directions side by side; not the same memory."""
        return h.squeeze(0).clone() if len(h) == 1 else torch.cat(list(h[-self.num_directions :]), dim=-1)

    def remember(self, steps: int) -> Self:
        """Draw the initial biases of the gates that keep the state anew, for memories of 2 to ``steps`` updates.

        A unit that forgets with σ(b) keeps its state for some 1 + exp(b) updates: b is log(U(1, steps - 1)), and of an
        LSTM's input gate -b. With a bias of 1, its initial value otherwise, that is 4, and sequences of hundreds of
        samples are learned late. To be called once, before training.

        Args:
            steps: the longest memory, such as the number of samples of a sequence; 3 at least.

        Returns:
            The module itself.

        Raises:
            TypeError: ``steps`` is no integer.
            ValueError: it is less, the module has no biases, or its cell has no such gate.

        Source: Tallec and Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, section 2.
        """
        if operator.index(steps) < 3:
            raise ValueError(f"a memory must be of 3 updates or more, got {steps}")
        if not self.bias:
            raise ValueError("how long a cell remembers is said by its biases: make the module with bias=True")
        if not self.cell.can_remember:
            name = type(self.cell).__name__
            raise ValueError(f"{name} has no gate whose bias says how long it keeps its state")
        for suffix, k in product(DIRECTIONS[: self.num_directions], range(self.num_layers)):
            self.cell.remember(self.layer(k, suffix), steps)
        return self

    def layer(self, k: int, suffix: str = "") -> Any:
        """The parameters of layer ``k``, as ``cell.Weights``; with the suffix ``_reverse``, of the other direction."""
        kind = self.cell.Weights
        weights = kind._make(getattr(self, f"{name}_l{k}{suffix}") for name in kind._fields)
        if self.bias:
            return weights
        shapes, zeros = self._shapes(k), weights[0].new_zeros
        return kind._make(zeros(shape) if w is None else w for w, shape in zip(weights, shapes, strict=True))

    def layers(self, suffix: str = "") -> list[Any]:
        """The parameters of all layers of a direction."""
        return [self.layer(k, suffix) for k in range(self.num_layers)]

    def _run(
        self, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None, every_step: bool,
        table: Tensor | None,
    ) -> Solution:  # fmt: skip
        raise NotImplementedError

    def _shapes(self, k: int) -> Any:
        return self.cell.shapes(self.hidden_size if k else self.input_size, self.hidden_size)

    def _register_initial_state(self, learned: bool) -> None:
        for name in self.cell.State._fields[: self.cell.num_states]:
            initial = self.layer(0)[0].new_empty(self.num_layers * self.num_directions, self.hidden_size)
            self.register_parameter(f"initial_{name}", nn.Parameter(initial) if learned else None)

    def _initial_states(self) -> list[nn.Parameter | None]:
        return [getattr(self, f"initial_{name}") for name in self.cell.State._fields[: self.cell.num_states]]

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initial values: the weights' are the cell's, those of the state from N(0, 1)."""
        for suffix in DIRECTIONS[: self.num_directions]:
            for weights in self.layers(suffix):
                self.cell.initialize(weights)
        for initial in self._initial_states():
            if initial is not None:
                nn.init.normal_(initial)

    def _opening(self, like: Tensor, batch: tuple[int, ...]) -> GateState:
        """The gate's state before a sample that is always used."""
        shape = (2, *batch) if self.bidirectional else batch
        ones = like.new_ones(shape, dtype=torch.promote_types(like.dtype, torch.float32))
        return GateState(ones, torch.zeros_like(ones))

    def _state(self, tensors: Sequence[Tensor], gate: Sequence[Tensor]) -> State:
        return self.cell.State._make((*tensors, *gate))

    def _split(self, state: State) -> tuple[list[Tensor], GateState]:
        count = self.cell.num_states
        return list(state[:count]), GateState(*state[count:])

    def _checked_state(self, state: State | Tensor, batch: tuple[int, ...]) -> State:
        """A state that a caller gave, of a batch of (B,) sequences or of one, (); without its gate's, that is open."""
        given, count = [state] if isinstance(state, Tensor) else list(state), self.cell.num_states
        shapes = [(self.num_layers * self.num_directions, *batch, self.hidden_size)] * count
        if len(given) != count:
            shapes += [(2, *batch) if self.bidirectional else batch] * 2
        found = [tuple(tensor.shape) for tensor in given]
        if found != shapes:
            names = ", ".join(self.cell.State._fields[:count])
            raise ValueError(
                f"state must hold tensors of shapes {shapes}, as a call returned it, or its {names} alone; got {found}"
            )
        if len(given) == count:
            return self._state(given, self._opening(given[0], batch))
        _check_gate(GateState(*given[count:]))
        return self._state(given[:count], given[count:])

    def extra_repr(self) -> str:
        options = [str(self.input_size), str(self.hidden_size)]
        if self.num_layers != 1:
            options.append(f"num_layers={self.num_layers}")
        if not self.bias:
            options.append("bias=False")
        if self.batch_first:
            options.append("batch_first=True")
        if self.dropout:
            options.append(f"dropout={self.dropout:g}")
        if self.bidirectional:
            options.append("bidirectional=True")
        return ", ".join(options)


def _taken_apart(states: Tensor) -> tuple[Tensor, ...]:
    """Those of each layer; of one layer a view whose gradient costs nothing."""
    return (states.squeeze(0),) if len(states) == 1 else tuple(states[k] for k in range(len(states)))


def _check_gate(gate: GateState) -> None:
    """Refuse what no sum or probability can be: the gate might never open, nor anyone be told so."""
    if torch.compiler.is_compiling():
        return
    for name, values in gate._asdict().items():
        if not values.is_cpu or not values.numel():
            continue
        lowest, highest = (bound.item() for bound in values.detach().aminmax())
        if not 0 <= lowest <= highest <= 1:  # NaN fails too
            wrong = ~((values >= 0) & (values <= 1))
            place = wrong.nonzero()[0].tolist()  # none of one sequence, (b,) or (direction, b)
            b = place[-1] if values.dim() else 0
            raise ValueError(
                f"{name} of a state must lie in 0..1, got {values[wrong][0].item()} for sequence {b}; pass a state as a"
                " call returned it, or none to start anew (NaN comes of samples or weights that are not finite)"
            )
