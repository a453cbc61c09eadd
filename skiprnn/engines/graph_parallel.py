"""What ``graph`` computes in parallel, going back: candidates of skipped steps, gradients by weights and samples."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from skiprnn.engines import graph_iterations as iterations
from skiprnn.engines import graph_kernels as kernels
from skiprnn.engines.graph_iterations import Backward, Segment, Size, launch_options, set_bias
from skiprnn.engines.graph_products import add_product, product
from skiprnn.problem import Problem


class Saved(NamedTuple):
    """What forward leaves for backward."""

    shares: Tensor  # the input's share of the first layer's gates
    updated: Tensor  # (T, B) int32, updates up to each step
    ends: Tensor  # (B,) int32
    updates: Tensor  # (B,) int32
    segments: list[Segment]
    counts: Any  # how many steps are skipped, and the most updates of a sequence, on the host when ``counts`` is done


def skipped_candidates(graph: Backward, problem: Problem, saved: Saved, skipped: int, most: int) -> None:
    """What opening the gate would have changed at each skipped step: MOVED and RISEN of the table."""
    size, H, B, T = graph.size, graph.size.units, graph.size.batch, len(problem.x)
    span, options, blocks = saved.segments[0].step.shape[0], size.options(), size.blocks()
    places = size.empty(skipped, dtype=torch.int64)
    kernels.list_skipped[(triton.cdiv(T * B, 256),)](
        graph.table, graph.skipped, graph.until, places, T, B, BLOCK=256, **launch_options()
    )
    bias = size.empty(size.layers, 4 * H, dtype=torch.float32)
    set_bias(bias, problem.layers, size)
    hidden = []  # the state's share of the gates after each iteration
    for k, weights in enumerate(problem.layers):
        weight = weights.weight_hh[: size.of_state].to(size.dtype)
        hidden.append(size.empty(most + -(-most // span) or 1, B, size.of_state))
        row = 0
        for segment in saved.segments:
            used = min(most - row + row // (span + 1), span) + 1
            if used > 1 or row == 0:
                states = segment.h[k, :used].flatten(0, 1).to(size.dtype)
                product(states, weight, out=hidden[-1][row : row + used].flatten(0, 1))
                row += used
    inputs = [weights.weight_ih.to(size.dtype) for weights in problem.layers[1:]]
    at_a_time = min(skipped, iterations.SKIPPED)
    from_below, h_candidate = size.empty(at_a_time, size.gates), size.empty(at_a_time, H)
    left, of_reset = size.empty(2, at_a_time, H if size.reset_before else 0)
    for start in range(0, skipped, at_a_time):
        some = min(skipped - start, at_a_time)
        for k in range(size.layers):
            if k:
                product(h_candidate[:some], inputs[k - 1], out=from_below[:some])
            if size.reset_before:
                kernels.reset_skipped[(some, blocks)](
                    graph.table, places, from_below, hidden[k], bias, left, start, B, LAYER=k, **options
                )
                product(left[:some], graph.of_n[k], out=of_reset[:some])
            last = k == size.layers - 1
            kernels.candidates[(some, 1 if last else blocks)](
                graph.table, places, from_below, hidden[k], of_reset, bias, graph.w_p, problem.update_bias, h_candidate,
                start, B, LAYER=k, PARTS=blocks if last else 1, **options,
            )  # fmt: skip


class WeightGradients:
    """Gradients by the weights and the samples, segment by segment."""

    def __init__(self, graph: Backward, problem: Problem, needs_x: bool) -> None:
        self.graph, self.problem = graph, problem
        x = problem.x if problem.x.stride(2) == 1 else problem.x.contiguous()
        self.samples = x
        self.x = torch.zeros(x.shape, device=x.device) if needs_x else None
        self.w_p, self.b_p = torch.zeros_like(problem.update_weight), torch.zeros_like(problem.update_bias)
        self.ih = [torch.zeros(w.weight_ih.shape, device=x.device) for w in problem.layers]
        self.hh = [torch.zeros(w.weight_hh.shape, device=x.device) for w in problem.layers]
        self.sums = [x.new_zeros(4 * graph.size.units) for _ in problem.layers]

    def add(self, segment: Segment, grad_sums: Tensor, grad_logit: Tensor, start: int, used: int) -> None:
        """The first iterations of a segment, which ``start`` others come before: so many."""
        size, H, B = self.graph.size, self.graph.size.units, self.graph.size.batch
        top = (segment.h if size.gru else segment.c)[-1, 1 : used + 1].flatten(0, 1)
        logit = grad_logit[:used].flatten()
        self.w_p += torch.mv(top.T, logit)
        self.b_p += logit.sum()
        below = self.gathered(segment, start, used)
        for k in range(size.layers):
            sums = grad_sums[k, :used].flatten(0, 1)
            by_input, by_state = (sums[:, : 3 * H], sums[:, H : H + size.of_state]) if size.gru else (sums, sums)
            h = segment.h[k, : used + 1].to(size.dtype)
            add_product(self.ih[k], by_input, below)
            add_product(self.hh[k][: size.of_state], by_state, h[:-1].flatten(0, 1))
            if size.reset_before:
                left = segment.kept[k, :used].flatten(0, 1)[:, 3 * H :].to(size.dtype)
                add_product(self.hh[k][2 * H :], sums[:, :H], left)
            self.sums[k] += sums.sum(0, dtype=torch.float32)
            if k == 0 and self.x is not None:
                weight = _rotated(self.problem.layers[0].weight_ih, size).to(size.dtype)
                rows, D = torch.mm(by_input, weight), self.x.shape[2]
                kernels.scatter[(used * B, triton.cdiv(D, 1024))](
                    rows, segment.step, self.graph.updates, self.x, start, B, D, BLOCK=1024, **launch_options()
                )
            below = h[1:].flatten(0, 1)

    def gathered(self, segment: Segment, start: int, used: int) -> Tensor:
        """The samples of the updates, (used * B, D)."""
        size, x = self.graph.size, self.samples
        B, D = x.shape[1:]
        rows = size.empty(used * B, D)
        kernels.gather[(used * B, triton.cdiv(D, 1024))](
            x, segment.step, self.graph.updates, rows, start, B, x.stride(0), x.stride(1), D, BLOCK=1024,
            **launch_options(),
        )  # fmt: skip
        return rows

    def weights(self) -> list[Tensor]:
        """By all parameters of all layers."""
        size, H, found = self.graph.size, self.graph.size.units, []
        for ih, hh, sums in zip(self.ih, self.hh, self.sums, strict=True):
            if size.gru:  # n, r, z and the state's share of n
                found += [torch.cat([ih[H:], ih[:H]]), hh, torch.cat([sums[H : 3 * H], sums[:H]]), sums[H:].clone()]
            else:
                found += [ih, hh, sums, sums.clone()]
        return found


def _rotated(weight: Tensor, size: Size) -> Tensor:
    """A GRU's r, z, n as n, r, z."""
    H = size.units
    return torch.cat([weight[2 * H :], weight[: 2 * H]]) if size.gru else weight
