"""The event-driven engine on a GPU for stacks of any size: the library's products with ``graph_kernels`` between them.

Iteration k performs the k-th update of every sequence, each at its own step; the clocks are on the device. A chunk of
iterations is captured as a CUDA graph once for a size of problem, kept, and replayed as often as the sequences have
updates; the host reads whether any goes on one replay late, so that it waits for nothing that is not done already.
Backward takes the candidates of all skipped steps at once, in parallel, then replays the iterations from the last to
the first, and ends with one product for each weight and segment of iterations. Products are the library's of float32
(TF32 where torch is told so), or of bfloat16 under autocast; sums of gates, states and the update probability are
float32 always. In Triton's interpreter, on the CPU, a loop takes the place of the graph.
"""

import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from skiprnn import reference
from skiprnn.cells import Cell
from skiprnn.engines import graph_kernels as kernels
from skiprnn.engines.cuda import CELLS, unfit_gpu
from skiprnn.engines.graph_iterations import Backward, Forward, Kept, Segment, Size, segment_span
from skiprnn.engines.graph_parallel import Saved, WeightGradients, skipped_candidates
from skiprnn.engines.graph_products import product
from skiprnn.gate import UNBOUNDED, saturated
from skiprnn.problem import Problem, Solution, grouped, refuse_double_backward, transformed

OLDEST = (8, 0)  # GPUs, for whose products of bfloat16 the kernels are made


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if problem.bounds != UNBOUNDED:
        return "it has no bounds of how many samples are skipped"
    if problem.draws is not None:
        return "its gate does not draw"
    if problem.dropout is not None:
        return "it has no dropout between layers"
    if problem.x.is_cuda and torch.cuda.is_current_stream_capturing():
        return "it captures graphs itself and cannot be captured"
    size, tensors = (len(problem.layers), len(problem.update_weight)), problem.widened().tensors()
    return transformed() or unfit(problem.cell, *size, tensors)


def unfit(cell: Cell, num_layers: int, hidden_size: int, tensors: Sequence[Tensor]) -> str | None:
    """Why this engine cannot run a stack, of any size, on such tensors; None if it can."""
    if type(cell) not in CELLS:
        return f"it has no {type(cell).__name__}, only the LSTM and the GRU"
    if wrong := {str(tensor.dtype) for tensor in tensors if tensor.dtype != torch.float32}:
        return f"it computes float32 tensors (under autocast with bfloat16 products), not {', '.join(sorted(wrong))}"
    device, kind = tensors[0].device, tensors[0].device.type
    if not (kind == "cpu" and knobs.runtime.interpret) and (lacking := unfit_device(device)):
        return lacking
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != torch.bfloat16:
        return f"it computes in float32 and bfloat16, not under autocast to {torch.get_autocast_dtype(kind)}"
    return None


@lru_cache
def unfit_device(device: torch.device) -> str | None:
    """Why Triton cannot compile kernels for a device, or run them there; None if it can."""
    if lacking := unfit_gpu(device, OLDEST):
        return lacking
    if os.name == "posix" and not any(map(shutil.which, (os.environ.get("CC") or "gcc", "clang"))):
        return "Triton needs a C compiler, gcc, clang, or what CC names"
    return None


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    if not problem.x.shape[0] or not problem.x.shape[1]:
        return reference.run(problem)
    problem = problem.widened()
    given = problem.bare(), problem.differentiable
    return Solution.of_tensors(problem, _GraphEvents.apply(*given, *problem.tensors()))


forwards, backwards = Kept(), Kept()


class _GraphEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bare: Problem, saves: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        x, kind = problem.x, problem.x.device.type
        dtype = torch.bfloat16 if torch.is_autocast_enabled(kind) else torch.float32
        with torch.cuda.device_of(x), torch.autocast(kind, enabled=False):  # type: ignore[no-untyped-call]
            size = Size.of(problem, dtype)
            graph: Forward = forwards.get(Forward, size, saves, problem.every_step)
            with graph.lock:
                results, saved = _forward(graph, problem)
        if saves:
            ctx.size, ctx.bare, ctx.counts, ctx.segments = size, bare, saved.counts, len(saved.segments)
            flat = [tensor for segment in saved.segments for tensor in segment]
            ctx.save_for_backward(saved.shares, saved.updated, saved.ends, saved.updates, results[1], *flat, *tensors)
            ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        (shares, updated, ends, updates, update_gate), tensors = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        fields = len(Segment._fields)
        segments = [Segment(*some) for some in grouped(tensors[: ctx.segments * fields], fields)]
        problem: Problem = ctx.bare.with_tensors(tensors[ctx.segments * fields :])
        saved = Saved(shares, updated, ends, updates, segments, ctx.counts)
        x, flags = problem.x, (grads[0] is not None, grads[1] is not None)
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):  # type: ignore[no-untyped-call]
            graph: Backward = backwards.get(Backward, ctx.size._replace(**Size.now(x.device)), *flags)
            with graph.lock:
                return None, None, *_backward(graph, problem, saved, update_gate, grads, ctx.needs_input_grad[2])


def _forward(graph: Forward, problem: Problem) -> tuple[tuple[Tensor, ...], Saved]:
    size, x, saves = graph.size, problem.x, graph.saves
    T, B, _ = x.shape
    chunk = size.tuned[0]
    shares = _input_shares(x, problem.layers[0].weight_ih, size.dtype)
    output = x.new_empty(T if problem.every_step else 0, B, size.units)
    update_gate = x.new_zeros(T, B)
    updated = size.empty(T if saves else 0, B, dtype=torch.int32)
    span = segment_span(T, chunk)
    head = {
        kernels.BASE: 0, kernels.ACTIVE: 1, kernels.STEPS: T, kernels.SPAN: span, kernels.SHARES: shares.data_ptr(),
        kernels.SHARES_T: shares.stride(0), kernels.SHARES_B: shares.stride(1), kernels.OUTPUT: output.data_ptr(),
        kernels.GATE: update_gate.data_ptr(), kernels.COUNT: updated.data_ptr(),
    }  # fmt: skip
    graph.tell(head)
    segments: list[Segment] = []
    if saves:
        segments.append(Segment.new(size, span))
        graph.tell_segment(0, segments[0])
    graph.load(problem)
    if not graph.captured:
        graph.ends.zero_()
        graph.t.zero_()
        graph.capture()
        graph.tell(head)
    graph.ends.copy_(problem.ends())
    options = {name: value for name, value in size.options().items() if name not in ("GRU", "RESET")}
    kernels.begin[(B,)](
        graph.table, graph.h, graph.t, graph.p, graph.acc, graph.ends, graph.updates, B,
        SAVES=saves, EVERY=problem.every_step, **options,
    )  # fmt: skip

    done = 0
    while True:
        if saves and done == len(segments) * span:
            segments.append(Segment.new(size, span))
            graph.tell_segment(len(segments) - 1, segments[-1])
        graph.replay()
        done += chunk
        if done >= T or not graph.going_on(done // chunk):
            break

    states = [state for k in range(size.layers) for state in (graph.h[k], *(() if size.gru else (graph.c[k],)))]
    results = output, update_gate, *(tensor.clone() for tensor in (graph.p, graph.acc, *states))
    if not saves:
        return results, Saved(shares, updated, updated, updated, segments, None)
    ends, updates = graph.ends.clone(), graph.updates.clone()
    counts = _to_host(torch.stack([(ends - updates).sum(), updates.max()]))
    return results, Saved(shares, updated, ends, updates, segments, counts)


def _backward(
    graph: Backward, problem: Problem, saved: Saved, update_gate: Tensor, grads: Sequence[Tensor | None],
    needs_x: bool,
) -> list[Tensor | None]:  # fmt: skip
    size, x, H = graph.size, problem.x, graph.size.units
    T, B, _ = x.shape
    chunk, span = size.tuned[0], saved.segments[0].step.shape[0]
    grad_output, grad_gate, *grad_last = grads
    graph.load(problem, grad_last)
    if grad_output is not None:
        grad_output = grad_output if grad_output.stride(2) == 1 else grad_output.contiguous()
        if problem.lengths is not None:  # past its end a sequence's output repeats its last state
            past = torch.arange(T, device=x.device)[:, None] >= saved.ends
            graph.state(size.states - (1 if size.gru else 2)).add_(torch.where(past[..., None], grad_output, 0).sum(0))

    numbers, arrived = saved.counts
    if arrived is not None:
        arrived.synchronize()
    skipped, most = numbers.tolist()
    replays = -(-most // chunk)
    moved, risen = size.empty(skipped, size.states * H), x.new_empty(skipped)
    grad_sums, grad_logit = size.empty(size.layers, span, B, 4 * H), x.new_empty(span, B)
    head = {
        kernels.BASE: replays * chunk - 1, kernels.ACTIVE: 1, kernels.STEPS: T, kernels.SPAN: span,
        kernels.SHARES: saved.shares.data_ptr(), kernels.SHARES_T: saved.shares.stride(0),
        kernels.SHARES_B: saved.shares.stride(1), kernels.GATE: update_gate.data_ptr(),
        kernels.COUNT: saved.updated.data_ptr(), kernels.MOVED: moved.data_ptr(), kernels.RISEN: risen.data_ptr(),
        kernels.GRAD_SUMS: grad_sums.data_ptr(), kernels.GRAD_LOGIT: grad_logit.data_ptr(),
    }  # fmt: skip
    for grad, (entry, entry_t, entry_b) in (
        (grad_output, (kernels.GRAD_OUTPUT, kernels.GRAD_OUTPUT_T, kernels.GRAD_OUTPUT_B)),
        (grad_gate, (kernels.GRAD_GATE, kernels.GRAD_GATE_T, kernels.GRAD_GATE_B)),
    ):
        if grad is not None:
            head |= {entry: grad.data_ptr(), entry_t: grad.stride(0), entry_b: grad.stride(1)}
    graph.tell(head)
    for number, segment in enumerate(saved.segments):
        graph.tell_segment(number, segment)
    if not graph.captured:
        graph.updates.zero_()
        graph.until.zero_()
        graph.tell(head | {kernels.BASE: chunk - 1})
        graph.capture()
        graph.tell(head)
    graph.updates.copy_(saved.updates)
    graph.until.copy_(saved.ends)
    kept = (saved.ends - saved.updates).long()
    torch.sub(kept.cumsum(0), kept, out=graph.skipped)
    if skipped:
        skipped_candidates(graph, problem, saved, skipped, most)

    totals = WeightGradients(graph, problem, needs_x)
    for number in reversed(range(-(-replays * chunk // span))):
        for _ in range(min(replays * chunk - number * span, span) // chunk):
            graph.replay()
        used = min(most - number * span, span)
        if used > 0:
            totals.add(saved.segments[number], grad_sums, grad_logit, number * span, used)
        replays = number * span // chunk
    graph.walk(0, updates=False)

    shut = saturated(problem.gate, problem.ends())
    states = [graph.state(number).clone() for number in range(size.states)]
    return [
        totals.x, totals.w_p, totals.b_p, graph.gp.masked_fill(shut, 0), graph.ga.masked_fill(shut, 0), *states,
        *totals.weights(),
    ]  # fmt: skip


def _input_shares(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The input's share of the first layer's gates, (T, B, ...), without a bias; batch-first samples are not copied."""
    x, weight = x.to(dtype), weight.to(dtype)
    if x.transpose(0, 1).is_contiguous():
        return product(x.transpose(0, 1), weight).transpose(0, 1)
    return product(x, weight)


def _to_host(tensor: Tensor) -> tuple[Tensor, Any]:
    """A copy, and the event of its arrival."""
    if not tensor.is_cuda:
        return tensor, None
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return copy, arrived
