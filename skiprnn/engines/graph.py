"""The event-driven engine on a GPU for stacks of any size: the library's products with ``graph_kernels`` between them.

Iteration k performs the k-th update of every sequence, each at its own step; the clocks are on the device. A chunk of
iterations is captured as a CUDA graph once for a size of problem, kept, and replayed as often as the sequences have
updates; the host reads whether any goes on one replay late, so that it waits for nothing that is not done already.
Backward takes the candidates of all skipped steps at once, in parallel, then replays the iterations from the last to
the first, and ends with one product for each weight and segment of iterations. Products are the library's of float32
(TF32 where torch is told so), or of bfloat16 under autocast; sums of gates, states and the update probability are
float32 always. In Triton's interpreter, on the CPU, a loop takes the place of the graph.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear
from triton import knobs

from skiprnn import reference
from skiprnn.cells import Cell, GRUCell, LayerWeights, LSTMCell
from skiprnn.engines import graph_kernels as kernels
from skiprnn.gate import UNBOUNDED, GateState, saturated
from skiprnn.problem import Problem, Solution, grouped, refuse_double_backward, transformed

CHUNK = 4  # iterations of a replay
SEGMENT = 32  # iterations whose memory is allocated at a time, a multiple of CHUNK
MOST_SEGMENTS = 1024
SKIPPED = 16_384  # skipped steps whose candidates are computed at a time
BLOCK = 512  # units that a program takes at a time, at most
WINDOW = 4  # skipped steps that a program walks over at a time
WARPS = 4
MOST_KEPT = 8  # graphs, of each direction


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if problem.bounds != UNBOUNDED:
        return "it has no bounds of how many samples are skipped"
    if problem.dropout is not None:
        return "it has no dropout between layers"
    if problem.x.is_cuda and torch.cuda.is_current_stream_capturing():
        return "it captures graphs itself and cannot be captured"
    return transformed() or unfit(problem.cell, problem.tensors())


def unfit(cell: Cell, tensors: Sequence[Tensor]) -> str | None:
    """Why this engine cannot run a cell on such tensors; None if it can."""
    if type(cell) not in (LSTMCell, GRUCell):
        return f"it has no {type(cell).__name__}, only the LSTM and the GRU, and of that not reset_after=False"
    if wrong := {str(tensor.dtype) for tensor in tensors if tensor.dtype != torch.float32}:
        return f"it computes float32 tensors (under autocast with bfloat16 products), not {', '.join(sorted(wrong))}"
    kind = tensors[0].device.type
    if not (kind == "cuda" or (kind == "cpu" and knobs.runtime.interpret)):
        return f"it runs on CUDA devices, not on {tensors[0].device}"
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != torch.bfloat16:
        return f"it computes in float32 and bfloat16, not under autocast to {torch.get_autocast_dtype(kind)}"
    return None


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    if not problem.x.shape[0] or not problem.x.shape[1]:
        return reference.run(problem)
    given = problem.bare(), problem.differentiable
    return Solution.of_tensors(problem, _GraphEvents.apply(*given, *problem.tensors()))


class _Size(NamedTuple):
    """What a graph was captured for."""

    device: torch.device
    stream: int
    dtype: torch.dtype  # of products
    gru: bool
    layers: int
    batch: int
    units: int
    tuned: tuple[int, ...]

    @classmethod
    def of(cls, problem: Problem, dtype: torch.dtype) -> "_Size":
        device, (B, H) = problem.x.device, problem.states[0][0].shape
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        tuned = (CHUNK, BLOCK, WINDOW, WARPS)
        return cls(device, stream, dtype, isinstance(problem.cell, GRUCell), len(problem.layers), B, H, tuned)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    @property
    def gates(self) -> int:
        """Of the cell, which are those of its first layer's product, in units."""
        return (3 if self.gru else 4) * self.units

    @property
    def states(self) -> int:
        return self.layers if self.gru else 2 * self.layers

    def options(self) -> dict[str, Any]:
        """Of every kernel with gates."""
        block = min(max(triton.next_power_of_2(self.units), 16), self.tuned[1])
        return {"LAYERS": self.layers, "H": self.units, "GRU": self.gru, "BLOCK": block, **launch_options()}

    def blocks(self) -> int:
        return int(triton.cdiv(self.units, self.options()["BLOCK"]))


class _Segment(NamedTuple):
    """What some iterations of forward leave for backward; see graph_kernels."""

    h: Tensor
    c: Tensor
    p: Tensor
    opened: Tensor
    step: Tensor
    kept: Tensor

    @classmethod
    def new(cls, size: _Size, span: int) -> "_Segment":
        layers, B, H = size.layers, size.batch, size.units
        h = size.empty(layers, span + 1, B, H, dtype=torch.float32)
        return cls(
            h,
            h.new_empty(0) if size.gru else torch.empty_like(h),
            h.new_empty(span + 1, B),
            h.new_empty(span, B),
            size.empty(span, B, dtype=torch.int32),
            size.empty(layers, span, B, 4 * H),
        )


class _Graph:
    """Iterations of one direction for a size of problem, their buffers, and a table of what differs between calls."""

    def __init__(self, size: _Size) -> None:
        self.size, self.lock, self.captured = size, threading.Lock(), False
        self.replay: Callable[[], None] = self.iterate
        self.table = torch.zeros(
            kernels.SEGMENTS.value + kernels.FIELDS.value * MOST_SEGMENTS, dtype=torch.int64, device=size.device
        )

    def iterate(self) -> None:
        """Do one chunk, as it is captured."""
        raise NotImplementedError

    def capture(self) -> None:
        """Make ``replay`` a graph's, where there are graphs. Now no sequence may have anything to do.

        The chunk is done once before, which compiles and loads all kernels: in a capture that must not happen.
        """
        device = self.size.device
        if device.type != "cuda" or self.captured:
            return
        self.iterate()
        here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(here)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.iterate()
            finally:
                graph.capture_end()
        here.wait_stream(side)
        self.replay, self.captured = graph.replay, True

    def tell(self, entries: dict[Any, int]) -> None:
        """Write entries of the table, in their order, from the first of them on, as they are told."""
        first, last = min(e.value for e in entries), max(e.value for e in entries)
        values = [0] * (last - first + 1)
        for entry, value in entries.items():
            values[entry.value - first] = value
        self.write(first, values)

    def tell_segment(self, number: int, segment: _Segment) -> None:
        first = kernels.SEGMENTS.value + kernels.FIELDS.value * number
        self.write(first, [tensor.data_ptr() for tensor in segment])

    def write(self, first: int, values: list[int]) -> None:
        self.table[first : first + len(values)].copy_(_from_host(values, self.size.device), non_blocking=True)


class _Forward(_Graph):
    def __init__(self, size: _Size, saves: bool, every_step: bool) -> None:
        super().__init__(size)
        self.saves, self.every_step = saves, every_step
        layers, B, H = size.layers, size.batch, size.units
        self.first = size.empty(size.gates, H)
        self.others = size.empty(layers - 1, 4 * H, 2 * H)
        self.sums, self.gates = size.empty(B, size.gates), size.empty(B, 4 * H)
        self.operand = size.empty(B, layers * H)
        self.bias = size.empty(layers, 4 * H, dtype=torch.float32)
        self.h = self.bias.new_zeros(layers, B, H)
        self.c = self.h[:0] if size.gru else torch.zeros_like(self.h)
        self.w_p, self.b_p = self.bias.new_empty(H), self.bias.new_empty(1)
        self.p, self.acc = self.bias.new_zeros(B), self.bias.new_zeros(B)
        self.t, self.ends, self.updates = (torch.zeros(B, dtype=torch.int32, device=size.device) for _ in range(3))
        self.operand.zero_()
        if size.device.type == "cuda":
            self.flags = torch.zeros(2, dtype=torch.int64, pin_memory=True)
            self.events = [torch.cuda.Event() for _ in self.flags]

    def iterate(self) -> None:
        size, H, B = self.size, self.size.units, self.size.batch
        blocks, options = size.blocks(), size.options()
        for i in range(size.tuned[0]):
            for layer in range(size.layers):
                if layer == 0:
                    sums = torch.mm(self.operand[:, :H], self.first.T, out=self.sums)
                else:
                    below_and_own = self.operand[:, (layer - 1) * H : (layer + 1) * H]
                    sums = torch.mm(below_and_own, self.others[layer - 1].T, out=self.gates)
                last = layer == size.layers - 1
                kernels.update[(B, 1 if last else blocks)](
                    self.table, sums, self.bias, self.w_p, self.b_p, self.h, self.c, self.operand,
                    self.t, self.p, self.acc, self.ends, self.updates, i, B,
                    LAYER=layer, SAVES=self.saves, EVERY=self.every_step, PARTS=blocks if last else 1, **options,
                )  # fmt: skip
        kernels.tally[(1,)](self.table, self.t, self.ends, B, CHUNK=size.tuned[0], BLOCK=256, **launch_options())

    def load(self, problem: Problem) -> None:
        """Take over the weights and the states before the first step."""
        H, layers = self.size.units, problem.layers
        _set_bias(self.bias, layers, self.size)
        self.first.copy_(layers[0].weight_hh)
        _set_joint(self.others, layers, self.size)
        for k, state in enumerate(problem.states):
            self.operand[:, k * H : (k + 1) * H].copy_(state[0])
            self.h[k].copy_(state[0])
            if not self.size.gru:
                self.c[k].copy_(state[1])
        self.w_p.copy_(problem.update_weight)
        self.b_p.copy_(problem.update_bias)
        self.p.copy_(problem.gate.update_prob)
        self.acc.copy_(problem.gate.cum_update_prob)

    def going_on(self, replays: int) -> bool:
        """Whether, as far as is known after so many replays, any sequence has an update to come."""
        if self.size.device.type != "cuda":
            return bool(self.table[kernels.ACTIVE.value])
        now, before = replays % 2, (replays + 1) % 2
        self.flags[now : now + 1].copy_(self.table[kernels.ACTIVE.value :][:1], non_blocking=True)
        self.events[now].record()
        if replays == 1:
            return True
        self.events[before].synchronize()
        return bool(self.flags[before])


class _Backward(_Graph):
    def __init__(self, size: _Size, has_output: bool, has_gate: bool) -> None:
        super().__init__(size)
        self.has_output, self.has_gate = has_output, has_gate
        layers, B, H = size.layers, size.batch, size.units
        self.first = size.empty(size.gates, H)
        self.others = size.empty(layers - 1, 4 * H, 2 * H)
        self.operand = size.empty(B, 4 * H)
        self.grad_first, self.grad_below = size.empty(B, H), size.empty(B, 2 * H)
        self.G = size.empty(B, size.states * H, dtype=torch.float32).zero_()
        self.bound, self.w_p = self.G.new_empty(1), self.G.new_zeros(H)
        self.gp, self.ga, self.p, self.acc = (self.G.new_zeros(B) for _ in range(4))
        self.until, self.updates = (torch.zeros(B, dtype=torch.int32, device=size.device) for _ in range(2))
        self.skipped = torch.zeros(B, dtype=torch.int64, device=size.device)

    def iterate(self) -> None:
        size, H, B = self.size, self.size.units, self.size.batch
        blocks, options = size.blocks(), size.options()
        product = self.operand if not size.gru else self.operand[:, H:]  # by the state's share of the first layer's
        for i in range(size.tuned[0]):
            self.walk(i, updates=True)
            for layer in range(size.layers - 1, 0, -1):
                torch.mm(self.operand, self.others[layer - 1], out=self.grad_below)
                kernels.lower[(B, blocks)](
                    self.table, self.grad_below, self.G, self.updates, self.operand, i, B, LAYER=layer - 1, **options
                )
            torch.mm(product, self.first, out=self.grad_first)
        self.table[:1].sub_(size.tuned[0])

    def walk(self, i: int, updates: bool) -> None:
        kernels.walk[(self.size.batch,)](
            self.table, self.bound, self.p, self.acc, self.w_p, self.grad_first, self.G, self.gp, self.ga,
            self.until, self.updates, self.skipped, self.operand, i, self.size.batch,
            HAS_OUTPUT=self.has_output, HAS_GATE=self.has_gate, UPDATES=updates, WINDOW=self.size.tuned[2],
            **self.size.options(),
        )  # fmt: skip

    def load(self, problem: Problem, grads: Sequence[Tensor | None]) -> None:
        """Take over the weights and the gradients after the last step: by p, acc and the states."""
        H, layers = self.size.units, problem.layers
        self.first.copy_(layers[0].weight_hh)
        _set_joint(self.others, layers, self.size)
        self.w_p.copy_(problem.update_weight)
        self.bound.fill_(math.inf if problem.gate_grad_clip is None else problem.gate_grad_clip)
        self.p.copy_(problem.gate.update_prob)
        self.acc.copy_(problem.gate.cum_update_prob)
        grad_p, grad_acc, *grad_states = grads
        states = [self.state(number) for number in range(self.size.states)]
        for to, grad in zip((self.gp, self.ga, *states), (grad_p, grad_acc, *grad_states), strict=True):
            if grad is None:
                to.zero_()
            else:
                to.copy_(grad)
        self.grad_first.zero_()

    def state(self, number: int) -> Tensor:
        """Of G, the gradient by a state, which the problem has so many others before."""
        layer, kind = divmod(number, self.size.states // self.size.layers)
        start = (kind * self.size.layers + layer) * self.size.units
        return self.G[:, start : start + self.size.units]


class _Kept:
    """The graphs that were captured last, by what for."""

    def __init__(self) -> None:
        self.graphs: OrderedDict[Any, Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, make: Callable[..., Any], size: _Size, *flags: bool) -> Any:
        with self.lock:
            key = (size, *flags)
            if key not in self.graphs:
                self.graphs[key] = make(size, *flags)
                if len(self.graphs) > MOST_KEPT:
                    oldest, _ = self.graphs.popitem(last=False)
                    if oldest[0].device.type == "cuda":  # it may be running
                        torch.cuda.synchronize(oldest[0].device)
            self.graphs.move_to_end(key)
            return self.graphs[key]


_forwards, _backwards = _Kept(), _Kept()


class _GraphEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bare: Problem, saves: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        x, kind = problem.x, problem.x.device.type
        dtype = torch.bfloat16 if torch.is_autocast_enabled(kind) else torch.float32
        with torch.cuda.device_of(x), torch.autocast(kind, enabled=False):  # type: ignore[no-untyped-call]
            size = _Size.of(problem, dtype)
            graph: _Forward = _forwards.get(_Forward, size, saves, problem.every_step)
            with graph.lock:
                results, saved = _forward(graph, problem)
        if saves:
            ctx.size, ctx.bare, ctx.counts, ctx.segments = size, bare, saved.counts, len(saved.segments)
            flat = [tensor for segment in saved.segments for tensor in segment]
            ctx.save_for_backward(saved.shares, saved.count, saved.ends, saved.updates, results[1], *flat, *tensors)
            ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        (shares, count, ends, updates, update_gate), tensors = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        fields = len(_Segment._fields)
        segments = [_Segment(*some) for some in grouped(tensors[: ctx.segments * fields], fields)]
        problem: Problem = ctx.bare.with_tensors(tensors[ctx.segments * fields :])
        saved = _Saved(shares, count, ends, updates, segments, ctx.counts)
        x, flags = problem.x, (grads[0] is not None, grads[1] is not None)
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
            graph: _Backward = _backwards.get(_Backward, ctx.size._replace(stream=stream), *flags)
            with graph.lock:
                return None, None, *_backward(graph, problem, saved, update_gate, grads, ctx.needs_input_grad[2])


class _Saved(NamedTuple):
    """What forward leaves for backward."""

    shares: Tensor  # the input's share of the first layer's gates
    count: Tensor  # (T, B) int32, updates up to each step
    ends: Tensor  # (B,) int32
    updates: Tensor  # (B,) int32
    segments: list[_Segment]
    counts: Any  # how many steps are skipped, and the most updates of a sequence, on the host when ``counts`` is done


def _forward(graph: _Forward, problem: Problem) -> tuple[tuple[Tensor, ...], _Saved]:
    size, x, saves = graph.size, problem.x, graph.saves
    T, B, _ = x.shape
    chunk = size.tuned[0]
    shares = _input_shares(x, problem.layers[0].weight_ih, size.dtype)
    output = x.new_empty(T if problem.every_step else 0, B, size.units)
    update_gate = x.new_zeros(T, B)
    count = size.empty(T if saves else 0, B, dtype=torch.int32)
    span = _span(T, chunk)
    head = {
        kernels.BASE: 0, kernels.ACTIVE: 1, kernels.STEPS: T, kernels.SPAN: span, kernels.SHARES: shares.data_ptr(),
        kernels.SHARES_T: shares.stride(0), kernels.SHARES_B: shares.stride(1), kernels.OUTPUT: output.data_ptr(),
        kernels.GATE: update_gate.data_ptr(), kernels.COUNT: count.data_ptr(),
    }  # fmt: skip
    graph.tell(head)
    segments: list[_Segment] = []
    if saves:
        segments.append(_Segment.new(size, span))
        graph.tell_segment(0, segments[0])
    graph.load(problem)
    if not graph.captured:
        graph.ends.zero_()
        graph.t.zero_()
        graph.capture()
        graph.tell(head)
    graph.ends.copy_(problem.ends())
    options = {name: value for name, value in size.options().items() if name != "GRU"}
    kernels.begin[(B,)](
        graph.table, graph.h, graph.t, graph.p, graph.acc, graph.ends, graph.updates, B,
        SAVES=saves, EVERY=problem.every_step, **options,
    )  # fmt: skip

    done = 0
    while True:
        if saves and done == len(segments) * span:
            segments.append(_Segment.new(size, span))
            graph.tell_segment(len(segments) - 1, segments[-1])
        graph.replay()
        done += chunk
        if done >= T or not graph.going_on(done // chunk):
            break

    states = [state for k in range(size.layers) for state in (graph.h[k], *(() if size.gru else (graph.c[k],)))]
    results = output, update_gate, *(tensor.clone() for tensor in (graph.p, graph.acc, *states))
    if not saves:
        return results, _Saved(shares, count, count, count, segments, None)
    ends, updates = graph.ends.clone(), graph.updates.clone()
    counts = _to_host(torch.stack([(ends - updates).sum(), updates.max()]))
    return results, _Saved(shares, count, ends, updates, segments, counts)


def _backward(
    graph: _Backward, problem: Problem, saved: _Saved, update_gate: Tensor, grads: Sequence[Tensor | None],
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
        kernels.COUNT: saved.count.data_ptr(), kernels.MOVED: moved.data_ptr(), kernels.RISEN: risen.data_ptr(),
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
        _skipped_candidates(graph, problem, saved, skipped, most)

    totals = _WeightGradients(graph, problem, needs_x)
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


def _skipped_candidates(graph: _Backward, problem: Problem, saved: _Saved, skipped: int, most: int) -> None:
    """What opening the gate would have changed at each skipped step: MOVED and RISEN of the table."""
    size, H, B, T = graph.size, graph.size.units, graph.size.batch, len(problem.x)
    span, options, blocks = saved.segments[0].step.shape[0], size.options(), size.blocks()
    places = size.empty(skipped, dtype=torch.int64)
    kernels.list_skipped[(triton.cdiv(T * B, 256),)](
        graph.table, graph.skipped, graph.until, places, T, B, BLOCK=256, **launch_options()
    )
    bias = size.empty(size.layers, 4 * H, dtype=torch.float32)
    _set_bias(bias, problem.layers, size)
    hidden = []  # the state's share of the gates after each iteration
    for k, weights in enumerate(problem.layers):
        weight = weights.weight_hh.to(size.dtype)
        hidden.append(size.empty(most + -(-most // span) or 1, B, size.gates))
        row = 0
        for segment in saved.segments:
            used = min(most - row + row // (span + 1), span) + 1
            if used > 1 or row == 0:
                states = segment.h[k, :used].flatten(0, 1).to(size.dtype)
                torch.mm(states, weight.T, out=hidden[-1][row : row + used].flatten(0, 1))
                row += used
    inputs = [weights.weight_ih.to(size.dtype) for weights in problem.layers[1:]]
    at_a_time = min(skipped, SKIPPED)
    from_below, h_candidate = size.empty(at_a_time, size.gates), size.empty(at_a_time, H)
    for start in range(0, skipped, at_a_time):
        some = min(skipped - start, at_a_time)
        for k in range(size.layers):
            if k:
                torch.mm(h_candidate[:some], inputs[k - 1].T, out=from_below[:some])
            last = k == size.layers - 1
            kernels.candidates[(some, 1 if last else blocks)](
                graph.table, places, from_below, hidden[k], bias, graph.w_p, problem.update_bias, h_candidate,
                start, B, LAYER=k, PARTS=blocks if last else 1, **options,
            )  # fmt: skip


class _WeightGradients:
    """Gradients by the weights and the samples, segment by segment."""

    def __init__(self, graph: _Backward, problem: Problem, needs_x: bool) -> None:
        self.graph, self.problem = graph, problem
        x = problem.x if problem.x.stride(2) == 1 else problem.x.contiguous()
        self.samples = x
        self.x = torch.zeros(x.shape, device=x.device) if needs_x else None
        self.w_p, self.b_p = torch.zeros_like(problem.update_weight), torch.zeros_like(problem.update_bias)
        self.ih = [torch.zeros(w.weight_ih.shape, device=x.device) for w in problem.layers]
        self.hh = [torch.zeros(w.weight_hh.shape, device=x.device) for w in problem.layers]
        self.sums = [x.new_zeros(4 * graph.size.units) for _ in problem.layers]

    def add(self, segment: _Segment, grad_sums: Tensor, grad_logit: Tensor, start: int, used: int) -> None:
        """The first iterations of a segment, which ``start`` others come before: so many."""
        size, H, B = self.graph.size, self.graph.size.units, self.graph.size.batch
        top = (segment.h if size.gru else segment.c)[-1, 1 : used + 1].flatten(0, 1)
        logit = grad_logit[:used].flatten()
        self.w_p += torch.mv(top.T, logit)
        self.b_p += logit.sum()
        below = self.gathered(segment, start, used)
        for k in range(size.layers):
            sums = grad_sums[k, :used].flatten(0, 1)
            by_input, by_state = (sums[:, : 3 * H], sums[:, H:]) if size.gru else (sums, sums)
            h = segment.h[k, : used + 1].to(size.dtype)
            _add_product(self.ih[k], by_input.T, below)
            _add_product(self.hh[k], by_state.T, h[:-1].flatten(0, 1))
            self.sums[k] += sums.sum(0, dtype=torch.float32)
            if k == 0 and self.x is not None:
                weight = _rotated(self.problem.layers[0].weight_ih, size).to(size.dtype)
                rows, D = torch.mm(by_input, weight), self.x.shape[2]
                kernels.scatter[(used * B, triton.cdiv(D, 1024))](
                    rows, segment.step, self.graph.updates, self.x, start, B, D, BLOCK=1024, **launch_options()
                )
            below = h[1:].flatten(0, 1)

    def gathered(self, segment: _Segment, start: int, used: int) -> Tensor:
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


def launch_options() -> dict[str, Any]:
    return {"num_warps": WARPS, "num_stages": 1}


def _span(steps: int, chunk: int) -> int:
    """Iterations of a segment."""
    most = -(-steps // chunk) * chunk
    return min(most, -(-most // (SEGMENT * MOST_SEGMENTS)) * SEGMENT)


def _input_shares(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The input's share of the first layer's gates, (T, B, ...), without a bias; x is not copied if batch comes first."""
    x, weight = x.to(dtype), weight.to(dtype)
    if x.transpose(0, 1).is_contiguous():
        return linear(x.transpose(0, 1), weight).transpose(0, 1)
    return linear(x, weight)


def _rotated(weight: Tensor, size: _Size) -> Tensor:
    """A GRU's r, z, n as n, r, z."""
    H = size.units
    return torch.cat([weight[2 * H :], weight[: 2 * H]]) if size.gru else weight


def _set_bias(bias: Tensor, layers: Sequence[LayerWeights], size: _Size) -> None:
    """All biases of each of the sums: (layers, 4 * H)."""
    H = size.units
    for to, weights in zip(bias, layers, strict=True):
        if size.gru:
            torch.add(weights.bias_ih[: 2 * H], weights.bias_hh[: 2 * H], out=to[H : 3 * H])
            to[:H].copy_(weights.bias_ih[2 * H :])
            to[3 * H :].copy_(weights.bias_hh[2 * H :])
        else:
            torch.add(weights.bias_ih, weights.bias_hh, out=to)


def _set_joint(joint: Tensor, layers: Sequence[LayerWeights], size: _Size) -> None:
    """The matrices of the layers above the first, of their input beside their state: (layers - 1, 4 * H, 2 * H)."""
    H = size.units
    for to, weights in zip(joint, layers[1:], strict=True):
        if size.gru:
            to.zero_()
            to[H : 3 * H, :H].copy_(weights.weight_ih[: 2 * H])
            to[H : 3 * H, H:].copy_(weights.weight_hh[: 2 * H])
            to[:H, :H].copy_(weights.weight_ih[2 * H :])
            to[3 * H :, H:].copy_(weights.weight_hh[2 * H :])
        else:
            to[:, :H].copy_(weights.weight_ih)
            to[:, H:].copy_(weights.weight_hh)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product, summed in float32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        total += a.float() @ b.float()


def _from_host(values: list[int], device: torch.device) -> Tensor:
    """To be copied to a device without waiting for it."""
    tensor = torch.tensor(values, dtype=torch.int64)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _to_host(tensor: Tensor) -> tuple[Tensor, Any]:
    """A copy, and the event of its arrival."""
    if not tensor.is_cuda:
        return tensor, None
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
