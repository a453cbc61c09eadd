"""What a Skip RNN and its baselines share: state, initial values, argument checks, and the shape of ``forward``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skiprnn.cells import Cell, LayerState
from skiprnn.gate import GateState
from skiprnn.problem import Solution

State = Any  # LSTMState, GRUState, or the named tuple of another cell


class SkipRNNOutput(NamedTuple):
    """What ``forward`` returns."""

    output: Tensor  # (T, B, H) or (B, T, H); (B, H) where every_step is False
    state: Any  # LSTMState, GRUState, or what the cell has
    update_gate: Tensor  # (T, B) or (B, T): 1 where the sample was used, 0 where it was skipped


class RecurrentStack(nn.Module):
    """A stack of cells with parameters named as in ``torch.nn.LSTM``; subclasses say in ``_run`` which steps update."""

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool

    def forward(
        self,
        input: Tensor,
        state: State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        every_step: bool = True,
    ) -> SkipRNNOutput:
        """Run a batch of sequences.

        Args:
            input: (T, B, D), or (B, T, D) if ``batch_first``.
            state: a state returned before, to go on from it; None starts from the initial state. That its sums and
                probabilities lie in 0..1 is checked on the CPU only.
            lengths: (B,) integers from 0 to T. From step ``lengths[b]`` on, sequence b neither updates nor costs
                anything, and its output repeats its last state. Values are checked on the CPU only.
            every_step: if False, return the last layer's h after the last step alone, which saves memory and time.

        Returns:
            ``(output, state, update_gate)``: the last layer's h after each step, (T, B, H) or (B, T, H), or after the
            last one, (B, H), which is ``state.h[-1]``; the state to go on from; the gate, (T, B) or (B, T), 1 where the
            state was updated and 0 where it was copied.

        Raises:
            ValueError: an argument has the wrong shape, type or range.
        """
        x = self._time_major(input)
        batch = x.shape[1]
        lengths = _check_lengths(lengths, x)
        if state is None:
            state = self.initial_state(batch)
        else:
            self._check_state(state, batch)
        layer_states, gate_state = self._unpack(state)
        output, new_states, gate_state, update_gate = self._run(x, layer_states, gate_state, lengths, every_step)
        tensors = [torch.stack(layers) for layers in zip(*new_states, strict=True)]
        if self.batch_first:
            update_gate = update_gate.transpose(0, 1)
        if not every_step:
            output = tensors[0][-1]
        elif self.batch_first:
            output = output.transpose(0, 1)
        return SkipRNNOutput(output, self._state(tensors, gate_state), update_gate)

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step, for ``batch_size`` sequences: the first sample is always used."""
        weight = self.layer(0)[0]
        tensors = [
            weight.new_zeros(self.num_layers, batch_size, self.hidden_size)
            if initial is None
            else initial[:, None].expand(-1, batch_size, -1)
            for initial in self._initial_states()
        ]
        ones = weight.new_ones(batch_size, dtype=torch.promote_types(weight.dtype, torch.float32))
        return self._state(tensors, GateState(ones, torch.zeros_like(ones)))

    def layer(self, k: int) -> Any:
        """The parameters of layer ``k``, as ``cell.Weights``."""
        kind = self.cell.Weights
        return kind(*(getattr(self, f"{name}_l{k}") for name in kind._fields))

    def layers(self) -> list[Any]:
        """The parameters of all layers."""
        return [self.layer(k) for k in range(self.num_layers)]

    def _run(
        self, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None, every_step: bool
    ) -> Solution:
        raise NotImplementedError

    def _register_initial_state(self, learned: bool) -> None:
        for name in self.cell.State._fields[: self.cell.num_states]:
            initial = self.layer(0)[0].new_empty(self.num_layers, self.hidden_size)
            self.register_parameter(f"initial_{name}", nn.Parameter(initial) if learned else None)

    def _initial_states(self) -> list[nn.Parameter | None]:
        return [getattr(self, f"initial_{name}") for name in self.cell.State._fields[: self.cell.num_states]]

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initial values: the weights' are the cell's, those of the state from N(0, 1)."""
        for weights in self.layers():
            self.cell.initialize(weights)
        for initial in self._initial_states():
            if initial is not None:
                nn.init.normal_(initial)

    def _time_major(self, input: Tensor) -> Tensor:
        if input.dim() != 3 or input.shape[-1] != self.input_size:
            layout = "(B, T, D)" if self.batch_first else "(T, B, D)"
            raise ValueError(f"input must be {layout} with D = {self.input_size}, got shape {tuple(input.shape)}")
        if not input.is_floating_point():
            raise ValueError(f"input must be floating point, got {input.dtype}")
        return input.transpose(0, 1) if self.batch_first else input

    def _state(self, tensors: Sequence[Tensor], gate: GateState) -> State:
        return self.cell.State._make((*tensors, *gate))

    def _unpack(self, state: State) -> tuple[list[LayerState], GateState]:
        tensors, gate = state[: self.cell.num_states], GateState(*state[self.cell.num_states :])
        return [tuple(tensor[k] for tensor in tensors) for k in range(self.num_layers)], gate

    def _check_state(self, state: State, batch: int) -> None:
        shapes = [(self.num_layers, batch, self.hidden_size)] * self.cell.num_states + [(batch,)] * 2
        given = [tuple(tensor.shape) for tensor in state]
        if given != shapes:
            raise ValueError(f"state must hold tensors of shapes {shapes}, as a call returned it; got {given}")
        _check_gate(GateState(*state[self.cell.num_states :]))

    def extra_repr(self) -> str:
        options = [str(self.input_size), str(self.hidden_size)]
        if self.num_layers != 1:
            options.append(f"num_layers={self.num_layers}")
        if self.batch_first:
            options.append("batch_first=True")
        return ", ".join(options)


def _check_gate(gate: GateState) -> None:
    """Refuse what no sum or probability can be: the gate might never open, nor anyone be told so."""
    if torch.compiler.is_compiling():
        return
    for name, values in gate._asdict().items():
        if not values.is_cpu or not values.numel():
            continue
        lowest, highest = (bound.item() for bound in values.detach().aminmax())
        if not 0 <= lowest <= highest <= 1:  # NaN fails too
            b = int((~((values >= 0) & (values <= 1))).nonzero()[0])
            raise ValueError(
                f"{name} of a state must lie in 0..1, got {values[b].item()} for sequence {b}; pass a state as a call"
                " returned it, or none to start anew (NaN comes of samples or weights that are not finite)"
            )


def _check_lengths(lengths: Tensor | Sequence[int] | None, x: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    steps, batch, _ = x.shape
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, device="cpu")
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be ({batch},) integers, got {lengths.dtype} of shape {tuple(lengths.shape)}")
    checked = batch and lengths.is_cpu and not torch.compiler.is_compiling()
    if checked and not 0 <= lengths.min() <= lengths.max() <= steps:
        raise ValueError(f"lengths must lie in 0..{steps}, got {int(lengths.min())}..{int(lengths.max())}")
    return lengths.to(x.device)
