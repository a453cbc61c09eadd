"""Two stacks over one batch, the second of which reads each sequence from its end."""

from collections.abc import Callable

import torch
from torch import Tensor

from skiprnn.cells import LayerState
from skiprnn.gate import GateState
from skiprnn.problem import Solution

DIRECTIONS = ("", "_reverse")  # what the names of a direction's parameters end in
Run = Callable[[str, Tensor, list[LayerState], GateState], Solution]


def run_both(
    run: Run, x: Tensor, states: list[LayerState], gate: GateState, lengths: Tensor | None, every_step: bool
) -> Solution:
    """Run both directions of (T, B, D) and put their results side by side, each at the sample that it is of.

    Args:
        run: runs one direction, named by ``DIRECTIONS``.
        x, lengths, every_step: as in ``Problem``.
        states: layer by layer, of each first the forward direction's, then the other's.
        gate: (2, B) tensors.

    Returns:
        An output of (T, B, 2H) and gates of (T, B, 2); states and gate as they were given.
    """
    first = run(DIRECTIONS[0], x, states[::2], GateState(*(tensor[0] for tensor in gate)))
    second = run(DIRECTIONS[1], _backwards(x, lengths), states[1::2], GateState(*(tensor[1] for tensor in gate)))
    output = first.output
    if every_step:
        output = torch.cat([output, _backwards(second.output, lengths)], dim=-1)
    return Solution(
        output,
        [state for pair in zip(first.states, second.states, strict=True) for state in pair],
        GateState(*map(torch.stack, zip(first.gate, second.gate, strict=True))),
        torch.stack([first.update_gate, _backwards(second.update_gate, lengths)], dim=-1),
    )


def _backwards(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, ...) with the steps of each sequence in reverse, and those past its end where they were."""
    if lengths is None:
        return tensor.flip(0)
    steps, batch = tensor.shape[:2]
    t = torch.arange(steps, device=tensor.device)[:, None]
    return tensor[torch.where(t < lengths, lengths - 1 - t, t), torch.arange(batch, device=tensor.device)]
