"""The exact event-driven engine: recurrent work follows the updates, not the steps.

Between two updates state and update probability are constant, so after an update the next one is known at once. Each
sequence of the batch keeps its own clock: iteration k performs the k-th update of every sequence still running. Going
back, it walks the updates in reverse. The skipped steps between them need their candidates (the gate's gradient is
literal there too); these share one hidden product and do not depend on each other. Gradients are those of
``reference.py``.

The clocks are kept on the host, so that a GPU is waited for once an iteration forward, for the probabilities that say
when to go on, and backward where their copies wait. The engines that are made for GPUs keep them there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skiprnn.cells import LayerState
from skiprnn.gate import count, saturated, update_probability
from skiprnn.problem import Problem, Solution, grouped, refuse_double_backward, transformed

CHUNK = 32_768  # skipped steps whose candidates are in memory at a time
BLOCK = 16  # skipped steps whose effect on the gate's gradient is composed before it is applied

Clock = npt.NDArray[np.int64]


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if problem.x.is_meta:
        return "its samples have shapes but no values"
    return transformed()


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    given = problem.bare(), problem.differentiable
    return Solution.of_tensors(problem, _Events.apply(*given, *problem.tensors()))


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
    full: Tensor | None  # (A,), whether that was cut at 1, so that neither p nor acc could change it; None: nowhere


class _Events(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bare: Problem, differentiable: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        x, cell, layers, states, (p, acc) = problem.x, problem.cell, problem.layers, problem.states, problem.gate
        T, B, _ = x.shape
        ends = problem.ends()
        lasts = ends.cpu().numpy()
        draws = None if problem.draws is None else problem.draws.cpu().numpy()
        t, a, sums, full = _next_update(p.cpu(), acc.cpu(), np.full_like(lasts, -1), lasts, np.arange(B), draws)
        first, updates = np.minimum(t, lasts), []
        update_gate = torch.zeros(T, B, device=x.device, dtype=p.dtype)
        shown, counted = [states[-1][0]], B  # what output shows: the initial states, then those after each update
        shown_at = torch.arange(B, device=x.device).repeat(T, 1)  # (T, B), rows of it
        while len(active := np.flatnonzero(t < lasts)):
            rows, at, opened = (torch.from_numpy(v).to(x.device) for v in (active, t[active], a[active]))
            was_full = torch.from_numpy(full[active]).to(x.device) if full[active].any() else None
            before, p_before = [tuple(s[rows] for s in state) for state in states], p[rows]
            after, saved, below = [], [], x[at, rows]
            for k, (weights, state) in enumerate(zip(layers, before, strict=True)):
                below = problem.passed(below, k, at, rows)
                shares = cell.input_share(below, weights), cell.state_share(state, weights)
                new, kept = cell.candidate(*shares, state, weights)
                new = tuple(s.to(old.dtype) for s, old in zip(new, state, strict=True))  # autocast gives bfloat16
                after.append(new)
                saved.append(kept)
                below = new[0]
            p_after = update_probability(after[-1][-1], problem.update_weight, problem.update_bias, problem.bounds)
            p_host = p_after.cpu()
            went = t[active]
            found = _next_update(p_host, torch.zeros_like(p_host), went, lasts[active], active, draws)
            t[active], a[active], sums[active], full[active] = found

            if differentiable:
                end = np.minimum(t, lasts)[active]
                updates.append(_Update(rows, at, went, end, before, after, saved, p_before, p_after, opened, was_full))
            update_gate[at, rows] = 1
            if problem.every_step:
                shown_at[at, rows] = counted + torch.arange(len(rows), device=x.device)
                shown.append(after[-1][0])
                counted += len(rows)
            states = [
                tuple(s.index_copy(0, rows, new) for s, new in zip(*pair, strict=True))
                for pair in zip(states, after, strict=True)
            ]
            p = p.index_copy(0, rows, p_after)

        if T and problem.every_step:
            output = torch.cat(shown)[shown_at.cummax(0).values]
        else:
            output = states[-1][0].new_zeros(0, *states[-1][0].shape)
        ctx.bare, ctx.first, ctx.updates = bare, first, updates
        ctx.save_for_backward(ends, *tensors)
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        ctx.set_materialize_grads(False)
        return output, update_gate, p, torch.from_numpy(sums).to(p), *(s for state in states for s in state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        ends, *tensors = ctx.saved_tensors
        problem, (enabled, dtype) = ctx.bare.with_tensors(tensors), ctx.autocast
        device, (p, acc) = problem.x.device, problem.gate
        with torch.autocast(device.type, dtype, enabled=enabled):
            walk = _BackwardWalk(problem, ends, grads, needs_x=ctx.needs_input_grad[2])
            for update in reversed(ctx.updates):
                walk.skip(update.rows, update.t, update.end, update.after, update.p, torch.zeros_like(update.p))
                walk.update(update)
            everyone = torch.arange(problem.x.shape[1], device=device)
            walk.skip(everyone, np.full_like(ctx.first, -1), ctx.first, problem.states, p, acc)
            walk.stop_at(saturated(problem.gate, ends))
            return None, None, *walk.gradients()


def _next_update(
    p: Tensor, acc: Tensor, t: Clock, end: Clock, rows: Clock, draws: npt.NDArray[np.float32] | None
) -> tuple[Clock, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """When the gate opens next, of sequences that are at step t: at ``end``, their lengths, or after if it does not.

    Args:
        rows: their numbers in the batch, of which ``draws`` are.

    Returns:
        That step; the sum that opens it; the sum after the sequence's last step if it does not open, else 0; and
        whether the sum that opens it was cut at 1.
    """
    if draws is not None:
        return _next_drawn(p.numpy(), acc.numpy(), t, end, rows, draws)
    room = torch.from_numpy(end - t - 1)
    steps, sums = count(p, acc, room)
    opens = steps < room
    full = np.zeros(len(t), dtype=np.bool_)  # a state made by hand may be: see ``saturated``
    return t + 1 + steps.numpy(), torch.where(opens, sums, 0).numpy(), torch.where(opens, 0, sums).numpy(), full


def _next_drawn(
    p: npt.NDArray[Any], acc: npt.NDArray[Any], t: Clock, end: Clock, rows: Clock, draws: npt.NDArray[np.float32]
) -> tuple[Clock, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The same, step by step."""
    t, sums = t + 1, acc.copy()
    opened, full = np.zeros(len(t), dtype=np.bool_), np.zeros(len(t), dtype=np.bool_)
    while len(shut := np.flatnonzero(~opened & (t < end))):
        room = 1 - sums[shut]
        full[shut] = ~(p[shut] <= room)
        sums[shut] += np.where(full[shut], room, p[shut])
        opened[shut] = sums[shut] > draws[t[shut], rows[shut]]
        t[shut] += ~opened[shut]
    return t, np.where(opened, sums, 0), np.where(opened, 0, sums), full & opened


class _BackwardWalk:
    """Gradients with respect to each sequence's state and gate, walked from its end to its beginning."""

    def __init__(self, problem: Problem, ends: Tensor, grads: Sequence[Tensor | None], *, needs_x: bool) -> None:
        self.x, self.w_p, self.b_p = problem.x, problem.update_weight, problem.update_bias
        self.cell, self.layers, self.gate_grad_clip = problem.cell, problem.layers, problem.gate_grad_clip
        self.bounds = problem.bounds
        self.passed = problem.passed
        self.grad_output, self.grad_gate, *given = grads
        start = [*problem.gate, *(tensor for state in problem.states for tensor in state)]
        self.gp, self.ga, *states = (  # dL/dp and dL/dacc, (B,), and dL/ds, (B, H) each
            torch.zeros_like(s) if g is None else g.clone() for s, g in zip(start, given, strict=True)
        )
        self.G = grouped(states, self.cell.num_states)
        if self.grad_output is not None:  # past its end a sequence's output repeats its last state
            past = torch.arange(len(self.x), device=self.x.device)[:, None] >= ends
            self.G[-1][0].add_(torch.where(past[..., None], self.grad_output, 0).sum(0))
        self.grad_x = torch.zeros_like(self.x) if needs_x else None
        self.grad_w_p, self.grad_b_p = torch.zeros_like(self.w_p), torch.zeros_like(self.b_p)
        self.grad_weights = [tuple(map(torch.zeros_like, weights)) for weights in self.layers]

    def gradients(self) -> list[Tensor | None]:
        """In the order of ``Problem.tensors``."""
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
        low, high = self.bounds
        grad_logit = (gp * (update.p - low) * (high - update.p) / (high - low)).to(top.dtype)
        self.grad_w_p += (grad_logit[:, None] * top).sum(0)
        self.grad_b_p += grad_logit.sum()
        G[-1][-1] = G[-1][-1] + grad_logit[:, None] * self.w_p

        for k in reversed(range(len(self.layers))):
            below = self.passed(update.after[k - 1][0], k, t, rows) if k else self.x[t, rows]
            needs_below = k > 0 or self.grad_x is not None
            step = self.cell.backward(
                tuple(G[k]), update.saved[k], below, update.before[k], self.layers[k], needs_below
            )
            for total, g in zip(self.grad_weights[k], step.weights, strict=True):
                total.add_(g)
            if step.below is not None and k:
                G[k - 1][0] = G[k - 1][0] + self.passed(step.below, k, t, rows)
            elif step.below is not None and self.grad_x is not None:
                self.grad_x[t, rows] = step.below.to(self.grad_x.dtype)
            for g, new in zip(self.G[k], step.state, strict=True):
                g[rows] = new.to(g.dtype)
        if update.full is not None:
            gu = gu.masked_fill(update.full, 0)
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
        for k, (state, grad, weights) in enumerate(zip(states, G, self.layers, strict=True)):
            below = self.passed(below, k, at, batch)
            own = tuple(s[i] for s in state)
            shares = self.cell.input_share(below, weights), self.cell.state_share(state, weights)[i]
            candidate, _ = self.cell.candidate(*shares, own, weights)
            for g, new, old in zip(grad, candidate, own, strict=True):
                gain = gain + ((new - old) * g).sum(-1)
            below = candidate[0]
        if self.grad_gate is not None:
            gain = gain + self.grad_gate[at, batch]
        e, d = torch.zeros_like(a), torch.zeros_like(a)
        e[j, i] = gain.to(e.dtype)
        d[j, i] = update_probability(candidate[-1], self.w_p, self.b_p, self.bounds) - p[i]
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
