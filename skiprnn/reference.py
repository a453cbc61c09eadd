"""The definition of Skip RNN, one step at a time in plain autograd: slow, obvious, and what every engine must equal."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, sigmoid

from skiprnn.cells import Cell, LayerState, LayerWeights


class GateState(NamedTuple):
    """What the update gate carries from step to step."""

    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


def skip_rnn(
    cell: Cell,
    x: Tensor,
    layers: Sequence[LayerWeights],
    update_weight: Tensor,
    update_bias: Tensor,
    states: Sequence[LayerState],
    gate: GateState,
    lengths: Tensor | None = None,
    gate_grad_clip: float | None = None,
) -> tuple[Tensor, list[LayerState], GateState, Tensor]:
    """Run a stack of cells behind one binary update gate (Campos et al., ICLR 2018, eqs. 2-6).

        a_t = acc + min(p, 1 - acc)             u_t = binarize(a_t), straight-through
        s_t = u_t * s̃_t + (1 - u_t) * s_{t-1}   s̃_t: candidate state of every layer
        p   = u_t * p̃_t + (1 - u_t) * p         p̃_t = sigmoid(w_p · top + b_p)
        acc = (1 - u_t) * a_t                   top: last layer's candidate, c̃ (LSTM) or h̃ (GRU)

    What is skipped is not read: NaN or infinity in a skipped sample reaches no output, state or gate. Gradients do read
    it, since dL/du_t at a skipped step includes <dL/ds_t, s̃_t - s_{t-1}>, and are then not finite in general. NaN in a
    used sample spreads to the state and to p; from then on the gate, which compares p with what is left to 1, is open.

    Args:
        cell: one of the cells of ``skiprnn.cells``.
        x: (T, B, D) inputs.
        layers: one ``LayerWeights`` a layer; layer l reads layer l-1's candidate h̃ of the same step.
        update_weight: (H,), w_p.
        update_bias: (1,), b_p.
        states: one tuple a layer of (B, H) tensors.
        gate: (B,) tensors p and acc, at least float32.
        lengths: (B,) integers; from step ``lengths[b]`` on, sequence b keeps its state and its gate is 0.
        gate_grad_clip: dL/du_t, of each sequence and step, used or skipped, is clamped to ± this; None: the paper's.

    Returns:
        output (T, B, H), the last layer's h after each step; the states and the gate to go on from; update_gate (T, B).
    """
    steps, batch, _ = x.shape
    if lengths is not None:
        valid = torch.arange(steps, device=x.device)[:, None] < lengths  # (T, B)
        x = x.masked_fill(~valid[..., None], 0)  # padding may hold anything, NaN too
    step_gates = layers[0].input_gates(x).unbind()
    states, (p, acc) = list(states), gate
    outputs, gates = [], []
    for t in range(steps):
        a = acc + torch.where(p <= 1 - acc, p, 1 - acc)
        u = binarize(a, gate_grad_clip)
        if lengths is not None:
            u = torch.where(valid[t], u, 0)

        candidates = candidate_states(cell, step_gates[t], states, layers)
        p_candidate = update_probability(candidates[-1][-1], update_weight, update_bias)

        states = [
            tuple(_select(u[:, None], new, old) for new, old in zip(candidate, state, strict=True))
            for candidate, state in zip(candidates, states, strict=True)
        ]
        p = _select(u, p_candidate, p)
        acc = (1 - u) * a if lengths is None else torch.where(valid[t], (1 - u) * a, acc)
        outputs.append(states[-1][0])
        gates.append(u)
    if not outputs:
        return x.new_zeros(0, *states[-1][0].shape), states, gate, p.new_zeros(0, batch)
    return torch.stack(outputs), states, GateState(p, acc), torch.stack(gates)


def binarize(a: Tensor, gate_grad_clip: float | None = None) -> Tensor:
    """1 where a > 0.5, else 0 (a tie rounds to even), with the straight-through gradient, du/da = 1, clamped or not."""
    hard = (a > 0.5).to(a.dtype)
    u = a + (hard - a).detach()  # exactly 0 or 1: 1 - a is exact for a in (0.5, 1]
    if gate_grad_clip is None or not torch.is_grad_enabled():
        return u
    return _ClampedGradient.apply(u, gate_grad_clip)  # type: ignore[no-any-return]


def candidate_states(
    cell: Cell, first_layer_gates: Tensor, states: Sequence[LayerState], layers: Sequence[LayerWeights]
) -> list[LayerState]:
    """The stack's candidate states, from the first layer's input gates (B, G*H)."""
    candidates = [cell.step(first_layer_gates, states[0], layers[0])]
    for weights, state in zip(layers[1:], states[1:], strict=True):
        candidates.append(cell.step(weights.input_gates(candidates[-1][0]), state, weights))
    return candidates


def update_probability(top: Tensor, update_weight: Tensor, update_bias: Tensor) -> Tensor:
    """sigmoid(w_p · top + b_p), (B, H) -> (B,); a sum, since autocast would run a matmul in half precision."""
    dtype = torch.promote_types(top.dtype, torch.float32)
    return sigmoid((top.to(dtype) * update_weight.to(dtype)).sum(-1) + update_bias.to(dtype))


class _ClampedGradient(torch.autograd.Function):
    """The identity, whose gradient is clamped, going back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, bound: float) -> Tensor:
        return u.view_as(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.bound = inputs[1]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clamp(-ctx.bound, ctx.bound), None


def _select(u: Tensor, candidate: Tensor, state: Tensor) -> Tensor:
    """u * candidate + (1 - u) * state with the same gradients, where 0 times what is not finite is 0."""
    read = torch.where((u > 0) | candidate.detach().isfinite(), candidate, state)
    return torch.lerp(state, read, u.to(state.dtype))
