"""The exact event-driven engine: recurrent work follows the updates, not the steps.

Between two updates state and update probability are constant, so after an update the next one is known at once. Each
sequence of the batch keeps its own clock: iteration k performs the k-th update of every sequence still running. Going
back, it walks the updates in reverse. The skipped steps between them need their candidates (the gate's gradient is
literal there too); these share one hidden product and do not depend on each other. Gradients are those of
``reference.py``.

The clocks are kept on the host, so that a GPU is waited for once an iteration forward, for the probabilities that say
when to go on, and never backward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skiprnn import native, native_events
from skiprnn.cells import Cell, LayerState, LayerWeights
from skiprnn.clock import Clock, next_update
from skiprnn.reference import GateState, update_probability

CHUNK = 32_768  # skipped steps whose candidates are in memory at a time
BLOCK = 16  # skipped steps whose effect on the gate's gradient is composed before it is applied


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
    """The same function as ``reference.skip_rnn``, with the same arguments and results."""
    if torch.compiler.is_compiling():
        raise RuntimeError("the event-driven engine cannot be traced; make the module with engine='reference' for that")
    tensors = [tensor for group in (*states, *layers) for tensor in group]
    arguments = (x, update_weight, update_bias, *gate, *tensors)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments)
    if not differentiable and native.infers(cell, len(layers), arguments):
        state_tensors = [tensor for state in states for tensor in state]
        output, update_gate, p, acc, last = native.infer(
            cell, layers, lengths, x, update_weight, update_bias, *gate, state_tensors
        )
    elif native.trains(cell, len(layers), arguments):
        output, update_gate, p, acc, *last = native_events.NativeEvents.apply(cell, lengths, gate_grad_clip, *arguments)
    else:
        output, update_gate, p, acc, *last = _Events.apply(
            cell, len(layers), lengths, gate_grad_clip, differentiable, *arguments
        )
    return output, _grouped(last, cell.num_states), GateState(p, acc), update_gate


class _Update(NamedTuple):
    """Iteration k of the forward pass: an update of each sequence in ``rows``."""

    rows: Tensor  # (A,), their numbers in the batch
    at: Tensor  # (A,), when
    t: Clock  # (A,), the same on the host
    end: Clock  # (A,), the step of the next update, or the sequence's length
    before: list[LayerState]
    after: list[LayerState]
    saved: list[tuple[Tensor, ...]]
    p_before: Tensor  # (A,)
    p: Tensor  # (A,)
    a: Tensor  # (A,), the sum that opened the gate


class _Events(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        num_layers: int,
        lengths: Tensor | None,
        gate_grad_clip: float | None,
        differentiable: bool,
        x: Tensor,
        update_weight: Tensor,
        update_bias: Tensor,
        p: Tensor,
        acc: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        T, B, _ = x.shape
        states = _grouped(tensors[: num_layers * cell.num_states], cell.num_states)
        layers = [LayerWeights(*weights) for weights in _grouped(tensors[num_layers * cell.num_states :], 4)]
        ends = torch.full((B,), T, device=x.device) if lengths is None else lengths.long().clamp(0, T)
        ctx.save_for_backward(x, update_weight, update_bias, p, acc, ends, *tensors)

        lasts = ends.cpu().numpy()
        t, a, sums = next_update(p.cpu().numpy(), acc.cpu().numpy(), np.full_like(lasts, -1), lasts)
        first, updates = np.minimum(t, lasts), []
        update_gate = torch.zeros(T, B, device=x.device, dtype=p.dtype)
        shown, count = [states[-1][0]], B  # what output shows: the initial states, then those after each update
        shown_at = torch.arange(B, device=x.device).repeat(T, 1)  # (T, B), rows of it
        while len(active := np.flatnonzero(t < lasts)):
            rows, at, opened = (torch.from_numpy(v).to(x.device) for v in (active, t[active], a[active]))
            before, p_before = [tuple(s[rows] for s in state) for state in states], p[rows]
            after, saved, below = [], [], x[at, rows]
            for weights, state in zip(layers, before, strict=True):
                hidden_gates = cell.hidden_gates(state[0], weights)
                new, kept = cell.candidate(weights.input_gates(below), hidden_gates, state, weights)
                after.append(new)
                saved.append(kept)
                below = new[0]
            p_after = update_probability(after[-1][-1], update_weight, update_bias)
            p_host = p_after.cpu().numpy()
            went = t[active]
            t[active], a[active], sums[active] = next_update(p_host, np.zeros_like(p_host), went, lasts[active])

            if differentiable:
                end = np.minimum(t, lasts)[active]
                updates.append(_Update(rows, at, went, end, before, after, saved, p_before, p_after, opened))
            update_gate[at, rows] = 1
            shown_at[at, rows] = count + torch.arange(len(rows), device=x.device)
            shown.append(after[-1][0])
            count += len(rows)
            states = [
                tuple(s.index_copy(0, rows, new) for s, new in zip(*pair, strict=True))
                for pair in zip(states, after, strict=True)
            ]
            p = p.index_copy(0, rows, p_after)

        output = torch.cat(shown)[shown_at.cummax(0).values] if T else states[-1][0].new_zeros(0, *states[-1][0].shape)
        ctx.cell, ctx.num_layers, ctx.first, ctx.updates = cell, num_layers, first, updates
        ctx.gate_grad_clip = gate_grad_clip
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        ctx.set_materialize_grads(False)
        return output, update_gate, p, torch.from_numpy(sums).to(p), *(s for state in states for s in state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        native_events.refuse_double_backward()
        x, *_, p, acc, ends = ctx.saved_tensors[:6]
        enabled, dtype = ctx.autocast
        with torch.autocast(x.device.type, dtype, enabled=enabled):
            walk = _BackwardWalk(ctx, grads)
            for update in reversed(ctx.updates):
                walk.skip(update.rows, update.t, update.end, update.after, update.p, torch.zeros_like(update.p))
                walk.update(update)
            everyone = torch.arange(x.shape[1], device=x.device)
            walk.skip(everyone, np.full_like(ctx.first, -1), ctx.first, walk.start, p, acc)
            walk.stop_at(native_events.saturated(p, acc, ends))
            return None, None, None, None, None, *walk.gradients()


class _BackwardWalk:
    """Gradients with respect to each sequence's state and gate, walked from its end to its beginning."""

    def __init__(self, ctx: Any, grads: Sequence[Tensor | None]) -> None:
        self.x, self.w_p, self.b_p, p, acc, ends, *tensors = ctx.saved_tensors
        self.cell, self.gate_grad_clip = ctx.cell, ctx.gate_grad_clip
        self.start = _grouped(tensors[: ctx.num_layers * self.cell.num_states], self.cell.num_states)
        self.layers = [
            LayerWeights(*weights) for weights in _grouped(tensors[len(self.start) * self.cell.num_states :], 4)
        ]
        self.grad_output, self.grad_gate, grad_p, grad_acc, *grad_states = grads
        self.gp = torch.zeros_like(p) if grad_p is None else grad_p.clone()  # dL/dp, (B,)
        self.ga = torch.zeros_like(acc) if grad_acc is None else grad_acc.clone()  # dL/dacc, (B,)
        self.G = _grouped(  # dL/ds, (B, H) each
            [torch.zeros_like(s) if g is None else g.clone() for s, g in zip(tensors, grad_states, strict=False)],
            self.cell.num_states,
        )
        if self.grad_output is not None:  # past its end a sequence's output repeats its last state
            past = torch.arange(len(self.x), device=self.x.device)[:, None] >= ends
            self.G[-1][0].add_(torch.where(past[..., None], self.grad_output, 0).sum(0))
        self.grad_x = torch.zeros_like(self.x) if ctx.needs_input_grad[5] else None
        self.grad_w_p, self.grad_b_p = torch.zeros_like(self.w_p), torch.zeros_like(self.b_p)
        self.grad_weights = [LayerWeights(*map(torch.zeros_like, weights)) for weights in self.layers]

    def gradients(self) -> list[Tensor | None]:
        """In the order of the forward pass's arguments from x on."""
        groups = [tensor for group in (*self.G, *self.grad_weights) for tensor in group]
        return [self.grad_x, self.grad_w_p, self.grad_b_p, self.gp, self.ga, *groups]

    def stop_at(self, rows: Tensor) -> None:
        """Let no gradient reach the gate's state of the rows in a (B,) mask."""
        self.gp, self.ga = self.gp.masked_fill(rows, 0), self.ga.masked_fill(rows, 0)

    def update(self, update: _Update) -> None:
        """Walk back over one update of each of its sequences."""
        rows, t = update.rows, update.at
        G = [[g[rows] for g in layer] for layer in self.G]
        if self.grad_output is not None:
            G[-1][0] = G[-1][0] + self.grad_output[t, rows]
        gp, ga = self.gp[rows], self.ga[rows]
        gu = gp * (update.p - update.p_before) - ga * update.a
        for grad, after, before in zip(G, update.after, update.before, strict=True):
            for g, new, old in zip(grad, after, before, strict=True):
                gu = gu + ((new - old) * g).sum(-1)
        if self.grad_gate is not None:
            gu = gu + self.grad_gate[t, rows]
        if self.gate_grad_clip is not None:
            gu = gu.clamp(-self.gate_grad_clip, self.gate_grad_clip)

        top = update.after[-1][-1]
        grad_logit = (gp * update.p * (1 - update.p)).to(top.dtype)
        self.grad_w_p += (grad_logit[:, None] * top).sum(0)
        self.grad_b_p += grad_logit.sum()
        G[-1][-1] = G[-1][-1] + grad_logit[:, None] * self.w_p

        for k in reversed(range(len(self.layers))):
            weights, sums = self.layers[k], self.grad_weights[k]
            step = self.cell.backward(tuple(G[k]), update.saved[k], update.before[k], weights)
            below = update.after[k - 1][0] if k else self.x[t, rows]
            sums.weight_ih.add_(step.input_gates.T @ below)
            sums.bias_ih.add_(step.input_gates.sum(0))
            sums.weight_hh.add_(step.weight_hh)
            sums.bias_hh.add_(step.bias_hh)
            if k:
                G[k - 1][0] = G[k - 1][0] + step.input_gates @ weights.weight_ih
            elif self.grad_x is not None:
                self.grad_x[t, rows] = (step.input_gates @ weights.weight_ih).to(self.grad_x.dtype)
            for g, new in zip(self.G[k], step.state, strict=True):
                g[rows] = new.to(g.dtype)
        self.gp[rows] = gu
        self.ga[rows] = gu

    def skip(self, rows: Tensor, t: Clock, end: Clock, states: list[LayerState], p: Tensor, acc: Tensor) -> None:
        """Walk back over the steps between t and ``end``, both exclusive, in which the rows kept a state.

        Steps go in windows of bounded size, counted backwards from ``end``.
        """
        done = 0
        while len(kept := np.flatnonzero(end - t - 1 > done)):
            if len(kept) < len(rows):
                t, end, index = t[kept], end[kept], torch.from_numpy(kept).to(rows.device)
                rows, p, acc = rows[index], p[index], acc[index]
                states = [tuple(s[index] for s in state) for state in states]
            width = min(int((end - t).max()) - 1 - done, max(CHUNK // len(rows), 1))
            steps = end - 1 - np.arange(done, done + width)[:, None]  # (width, A), falling
            valid = steps > t
            places = (*np.nonzero(valid), steps[valid])
            j, i, at, on, since = (torch.from_numpy(v).to(rows.device) for v in (*places, valid, steps - t))
            self._skip_window(rows, at, j, i, on, states, p, acc + since * p)
            done += width

    def _skip_window(
        self,
        rows: Tensor,
        at: Tensor,
        j: Tensor,
        i: Tensor,
        valid: Tensor,
        states: list[LayerState],
        p: Tensor,
        a: Tensor,
    ) -> None:
        """The valid places of the (W, A) window, in which ``a`` are the sums, are (j, i), and their steps ``at``."""
        batch = rows[i]
        G = [[g[batch] for g in layer] for layer in self.G]
        if self.grad_output is not None:  # the gradient of the state grows by each step's, going back
            arriving = self.grad_output.new_zeros(*valid.shape, self.grad_output.shape[-1])
            arriving[j, i] = self.grad_output[at, batch]
            arriving = arriving.cumsum(0)
            G[-1][0] = G[-1][0] + arriving[j, i]
            self.G[-1][0].index_add_(0, rows, arriving[-1])

        gain, below = torch.zeros_like(p[:1]), self.x[at, batch]  # gain: what opening the gate would have changed
        for state, grad, weights in zip(states, G, self.layers, strict=True):
            own = tuple(s[i] for s in state)
            hidden_gates = self.cell.hidden_gates(state[0], weights)[i]
            candidate, _ = self.cell.candidate(weights.input_gates(below), hidden_gates, own, weights)
            for g, new, old in zip(grad, candidate, own, strict=True):
                gain = gain + ((new - old) * g).sum(-1)
            below = candidate[0]
        if self.grad_gate is not None:
            gain = gain + self.grad_gate[at, batch]
        e, d = torch.zeros_like(a), torch.zeros_like(a)
        e[j, i] = gain.to(e.dtype)
        d[j, i] = update_probability(candidate[-1], self.w_p, self.b_p) - p[i]
        self.ga[rows], self.gp[rows] = _walk_gate(
            torch.where(valid, a, 0), d, e, valid, self.ga[rows], self.gp[rows], self.gate_grad_clip
        )


def _walk_gate(
    a: Tensor, d: Tensor, e: Tensor, valid: Tensor, ga: Tensor, gp: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Apply gu = d·gp + e - a·ga, clamped, then ga = ga + gu and gp = gp + ga, for each row of the (W, A) arguments
    where valid.

    Without a bound the rows are affine maps of (ga, gp). Blocks of them are composed pairwise, all blocks at once, and
    the blocks applied one after the other: longer products could overflow where the gradients they act on are zero.
    """
    on = valid.to(a.dtype)
    if clip is not None:
        for a_t, d_t, e_t, on_t in zip(a, d, e, on, strict=True):
            gu = torch.addcmul(e_t, d_t, gp).addcmul_(a_t, ga, value=-1).clamp_(-clip, clip)
            ga = ga + gu
            gp = torch.addcmul(gp, on_t, ga)
        return ga, gp
    keep = 1 - a
    maps = torch.stack([keep, d, e, on * keep, 1 + on * d, on * e])  # ga from (ga, gp, 1), then gp
    if missing := -maps.shape[1] % BLOCK:
        identity = maps.new_tensor([1, 0, 0, 0, 1, 0])[:, None, None]
        maps = torch.cat([maps, identity.expand(-1, missing, maps.shape[2])], dim=1)
    maps = maps.reshape(len(maps), -1, BLOCK, maps.shape[2])
    while maps.shape[2] > 1:
        (a1, a2, a3, a4, a5, a6), (b1, b2, b3, b4, b5, b6) = maps[:, :, 0::2], maps[:, :, 1::2]  # first a, then b
        maps = torch.stack(
            [
                b1 * a1 + b2 * a4, b1 * a2 + b2 * a5, b1 * a3 + b2 * a6 + b3,
                b4 * a1 + b5 * a4, b4 * a2 + b5 * a5, b4 * a3 + b5 * a6 + b6,
            ]
        )  # fmt: skip
    for m1, m2, m3, m4, m5, m6 in maps[:, :, 0].unbind(1):
        ga, gp = m1 * ga + m2 * gp + m3, m4 * ga + m5 * gp + m6
    return ga, gp


def _grouped(tensors: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return [tuple(tensors[start : start + size]) for start in range(0, len(tensors), size)]
