"""The definition of Skip RNN, one step at a time in plain autograd: slow, obvious, and what every engine must equal."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from skiprnn.cells import Cell, LayerState
from skiprnn.gate import GateState, added, binarize, update_probability
from skiprnn.problem import Problem, Solution


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem; None, for it always can."""
    return None


def run(problem: Problem) -> Solution:
    """Run a stack of cells behind one binary update gate (Campos et al., ICLR 2018, eqs. 2-6).

        a_t = acc + min(p, 1 - acc)             u_t = binarize(a_t), or a_t > r_t, straight-through
        s_t = u_t * s̃_t + (1 - u_t) * s_{t-1}   s̃_t: candidate state of every layer
        p   = u_t * p̃_t + (1 - u_t) * p         p̃_t = sigmoid(w_p · top + b_p)
        acc = (1 - u_t) * a_t                   top: last layer's candidate, c̃ (LSTM) or h̃ (GRU)

    What is skipped is not read: NaN or infinity in a skipped sample reaches no output, state or gate. Gradients do read
    it, since dL/du_t at a skipped step includes <dL/ds_t, s̃_t - s_{t-1}>, and are then not finite in general. NaN in a
    used sample spreads to the state and to p; from then on the gate, which compares p with what is left to 1, is open.
    """
    x, lengths, cell, layers = problem.x, problem.lengths, problem.cell, problem.layers
    steps, batch, _ = x.shape
    if lengths is not None:
        valid = torch.arange(steps, device=x.device)[:, None] < lengths  # (T, B)
        x = x.masked_fill(~valid[..., None], 0)  # padding may hold anything, NaN too
    shares = cell.input_share(x, layers[0]).unbind()
    states, (p, acc) = list(problem.states), problem.gate
    outputs, gates = [], []
    for t in range(steps):
        a = added(acc, p)
        u = binarize(a, problem.gate_grad_clip, None if problem.draws is None else problem.draws[t])
        if lengths is not None:
            u = torch.where(valid[t], u, 0)

        candidates = candidate_states(cell, shares[t], states, layers, partial(problem.passed, t=t))
        p_candidate = update_probability(candidates[-1][-1], problem.update_weight, problem.update_bias, problem.bounds)

        states = [
            tuple(_select(u[:, None], new, old) for new, old in zip(candidate, state, strict=True))
            for candidate, state in zip(candidates, states, strict=True)
        ]
        p = _select(u, p_candidate, p)
        acc = (1 - u) * a if lengths is None else torch.where(valid[t], (1 - u) * a, acc)
        if problem.every_step:
            outputs.append(states[-1][0])
        gates.append(u)
    output = torch.stack(outputs) if outputs else x.new_zeros(0, *states[-1][0].shape)
    return Solution(output, states, GateState(p, acc), torch.stack(gates) if gates else p.new_zeros(0, batch))


def candidate_states(
    cell: Cell,
    input_share: Tensor,
    states: Sequence[LayerState],
    layers: Sequence[Any],
    passed: Callable[[Tensor, int], Tensor] = lambda below, k: below,
) -> list[LayerState]:
    """The stack's candidate states, from the first layer's share of the input and what is ``passed`` on to layer k."""
    first = cell.candidate(input_share, cell.state_share(states[0], layers[0]), states[0], layers[0])[0]
    candidates = [first]
    for k in range(1, len(layers)):
        candidates.append(cell.step(passed(candidates[-1][0], k), states[k], layers[k]))
    return candidates


def _select(u: Tensor, candidate: Tensor, state: Tensor) -> Tensor:
    """u * candidate + (1 - u) * state with the same gradients, where 0 times what is not finite is 0."""
    read = torch.where((u > 0) | candidate.detach().isfinite(), candidate, state)
    return torch.lerp(state, read, u.to(state.dtype))
