"""Chunks of iterations of ``graph``: what runs in one replay, its buffers, and the graphs that are kept."""

import gc
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from skiprnn.cells import GRUCell, GRUResetBeforeCell, LayerWeights
from skiprnn.engines import graph_kernels as kernels
from skiprnn.problem import Problem

CHUNK = 4  # iterations of a replay
SEGMENT = 32  # iterations whose memory is allocated at a time, a multiple of CHUNK
MOST_SEGMENTS = 1024
SKIPPED = 16_384  # skipped steps whose candidates are computed at a time
BLOCK = 512  # units that a program takes at a time, at most
WINDOW = 4  # skipped steps that a program walks over at a time
WARPS = 4
MOST_KEPT = 8  # graphs, of each direction


class Size(NamedTuple):
    """What a graph was captured for."""

    device: torch.device
    stream: int
    dtype: torch.dtype  # of products
    rounding: str  # of what float32 products multiply, which a graph keeps: "tf32", or "ieee" or "none"
    gru: bool
    reset_before: bool  # a GRU's second kind
    layers: int
    batch: int
    units: int
    tuned: tuple[int, ...]

    @classmethod
    def of(cls, problem: Problem, dtype: torch.dtype) -> "Size":
        device, (B, H) = problem.x.device, problem.states[0][0].shape
        tuned = (CHUNK, BLOCK, WINDOW, WARPS)
        now = cls.now(device)
        return cls(
            device,
            now["stream"],
            dtype,
            now["rounding"],
            isinstance(problem.cell, GRUCell | GRUResetBeforeCell),
            isinstance(problem.cell, GRUResetBeforeCell),
            len(problem.layers),
            B,
            H,
            tuned,
        )

    @staticmethod
    def now(device: torch.device) -> dict[str, Any]:
        """What backward may find otherwise than forward did."""
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        return {"stream": stream, "rounding": torch.backends.cuda.matmul.fp32_precision}

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    @property
    def gates(self) -> int:
        """Of the cell, in units."""
        return (3 if self.gru else 4) * self.units

    @property
    def of_state(self) -> int:
        """Of them, those whose share of the state is its product with the weights: of the first layer's product."""
        return 2 * self.units if self.reset_before else self.gates

    @property
    def joint(self) -> int:
        """Of a layer above, sums whose product is with the layer's input and state together."""
        return (3 if self.reset_before else 4) * self.units

    @property
    def states(self) -> int:
        return self.layers if self.gru else 2 * self.layers

    def options(self) -> dict[str, Any]:
        """Of every kernel with gates."""
        block = min(max(triton.next_power_of_2(self.units), 16), self.tuned[1])
        kind = {"GRU": self.gru, "RESET": self.reset_before}
        return {"LAYERS": self.layers, "H": self.units, "BLOCK": block, **kind, **launch_options()}

    def blocks(self) -> int:
        return int(triton.cdiv(self.units, self.options()["BLOCK"]))


class Segment(NamedTuple):
    """What some iterations of forward leave for backward; see graph_kernels."""

    h: Tensor
    c: Tensor
    p: Tensor
    opened: Tensor
    step: Tensor
    kept: Tensor

    @classmethod
    def new(cls, size: Size, span: int) -> "Segment":
        layers, B, H = size.layers, size.batch, size.units
        h = size.empty(layers, span + 1, B, H, dtype=torch.float32)
        return cls(
            h,
            h.new_empty(0) if size.gru else torch.empty_like(h),
            h.new_empty(span + 1, B),
            h.new_empty(span, B),
            size.empty(span, B, dtype=torch.int32),
            size.empty(layers, span, B, 4 * H, dtype=torch.float32 if size.dtype == torch.float32 else torch.float16),
        )


_CAPTURING = threading.Lock()


class Graph:
    """Iterations of one direction for a size of problem, their buffers, and a table of what differs between calls."""

    def __init__(self, size: Size) -> None:
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
        here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(here)
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING, torch.cuda.stream(side):
            collecting = gc.isenabled()
            gc.disable()  # what it frees may call what must not be called in a capture
            try:
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self.iterate()
                finally:
                    graph.capture_end()
            finally:
                if collecting:
                    gc.enable()
        here.wait_stream(side)
        self.replay, self.captured = graph.replay, True

    def tell(self, entries: dict[Any, int]) -> None:
        """Write entries of the table, in their order, from the first of them on, as they are told."""
        first, last = min(e.value for e in entries), max(e.value for e in entries)
        values = [0] * (last - first + 1)
        for entry, value in entries.items():
            values[entry.value - first] = value
        self.write(first, values)

    def tell_segment(self, number: int, segment: Segment) -> None:
        first = kernels.SEGMENTS.value + kernels.FIELDS.value * number
        self.write(first, [tensor.data_ptr() for tensor in segment])

    def write(self, first: int, values: list[int]) -> None:
        self.table[first : first + len(values)].copy_(_from_host(values, self.size.device), non_blocking=True)


class Forward(Graph):
    def __init__(self, size: Size, saves: bool, every_step: bool) -> None:
        super().__init__(size)
        self.saves, self.every_step = saves, every_step
        layers, B, H = size.layers, size.batch, size.units
        self.first = size.empty(size.of_state, H)
        self.others = size.empty(layers - 1, size.joint, 2 * H)
        self.sums, self.gates = size.empty(B, size.of_state), size.empty(B, size.joint)
        self.of_n = size.empty(layers if size.reset_before else 0, H, H)
        self.left = size.empty(B, H if size.reset_before else 0).zero_()  # r⊙h
        self.of_reset = torch.empty_like(self.left)
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
            self.events = [torch.cuda.Event() for _ in self.flags]  # type: ignore[no-untyped-call]

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
                if size.reset_before:
                    kernels.reset[(B, blocks)](
                        self.table, sums, self.bias, self.h, self.t, self.ends, self.left, B, LAYER=layer, **options
                    )
                    torch.mm(self.left, self.of_n[layer].T, out=self.of_reset)
                last = layer == size.layers - 1
                kernels.update[(B, 1 if last else blocks)](
                    self.table, sums, self.of_reset, self.bias, self.w_p, self.b_p, self.h, self.c, self.operand,
                    self.t, self.p, self.acc, self.ends, self.updates, i, B,
                    LAYER=layer, SAVES=self.saves, EVERY=self.every_step, PARTS=blocks if last else 1, **options,
                )  # fmt: skip
        kernels.tally[(1,)](self.table, self.t, self.ends, B, CHUNK=size.tuned[0], BLOCK=256, **launch_options())

    def load(self, problem: Problem) -> None:
        """Take over the weights and the states before the first step."""
        H, layers = self.size.units, problem.layers
        set_bias(self.bias, layers, self.size)
        _set_weights(self, layers)
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


class Backward(Graph):
    def __init__(self, size: Size, has_output: bool, has_gate: bool) -> None:
        super().__init__(size)
        self.has_output, self.has_gate = has_output, has_gate
        layers, B, H = size.layers, size.batch, size.units
        self.first = size.empty(size.of_state, H)
        self.others = size.empty(layers - 1, size.joint, 2 * H)
        self.of_n = size.empty(layers if size.reset_before else 0, H, H)
        self.grad_left = size.empty(B, H if size.reset_before else 0)
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
        by_state = self.operand if not size.gru else self.operand[:, H : H + size.of_state]
        for i in range(size.tuned[0]):
            self.walk(i, updates=True)
            for layer in range(size.layers - 1, -1, -1):
                if size.reset_before:
                    torch.mm(self.operand[:, :H], self.of_n[layer], out=self.grad_left)
                    kernels.reset_back[(B, blocks)](
                        self.table, self.grad_left, self.G, self.updates, self.operand, i, B, LAYER=layer, **options
                    )
                if layer == 0:
                    torch.mm(by_state, self.first, out=self.grad_first)
                    continue
                torch.mm(self.operand[:, : size.joint], self.others[layer - 1], out=self.grad_below)
                kernels.lower[(B, blocks)](
                    self.table, self.grad_below, self.G, self.updates, self.operand, i, B, LAYER=layer - 1, **options
                )
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
        _set_weights(self, problem.layers)
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


class Kept:
    """The graphs that were captured last, by what for."""

    def __init__(self) -> None:
        self.graphs: OrderedDict[Any, Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, make: Callable[..., Any], size: Size, *flags: bool) -> Any:
        with self.lock:
            key = (size, *flags)
            if key not in self.graphs:
                with torch.inference_mode(False):  # others may use the buffers too
                    self.graphs[key] = make(size, *flags)
                if len(self.graphs) > MOST_KEPT:
                    oldest, _ = self.graphs.popitem(last=False)
                    if oldest[0].device.type == "cuda":  # it may be running
                        torch.cuda.synchronize(oldest[0].device)
            self.graphs.move_to_end(key)
            return self.graphs[key]


def launch_options() -> dict[str, Any]:
    return {"num_warps": WARPS, "num_stages": 1}


def segment_span(steps: int, chunk: int) -> int:
    """Iterations of a segment."""
    most = -(-steps // chunk) * chunk
    return min(most, -(-most // (SEGMENT * MOST_SEGMENTS)) * SEGMENT)


def set_bias(bias: Tensor, layers: Sequence[LayerWeights], size: Size) -> None:
    """All biases of each of the sums: (layers, 4 * H)."""
    H = size.units
    for to, weights in zip(bias, layers, strict=True):
        if size.gru:
            torch.add(weights.bias_ih[: 2 * H], weights.bias_hh[: 2 * H], out=to[H : 3 * H])
            to[:H].copy_(weights.bias_ih[2 * H :])
            to[3 * H :].copy_(weights.bias_hh[2 * H :])
        else:
            torch.add(weights.bias_ih, weights.bias_hh, out=to)


def _set_weights(graph: Forward | Backward, layers: Sequence[LayerWeights]) -> None:
    """The matrices of the products: of the layers above the first, of their input beside their state."""
    size, H = graph.size, graph.size.units
    graph.first.copy_(layers[0].weight_hh[: size.of_state])
    for of_n, weights in zip(graph.of_n, layers, strict=False):  # none, but of a GRU that resets before
        of_n.copy_(weights.weight_hh[2 * H :])
    for to, weights in zip(graph.others, layers[1:], strict=True):
        if size.gru:
            to.zero_()
            to[H : 3 * H, :H].copy_(weights.weight_ih[: 2 * H])
            to[H : 3 * H, H:].copy_(weights.weight_hh[: 2 * H])
            to[:H, :H].copy_(weights.weight_ih[2 * H :])
            if not size.reset_before:
                to[3 * H :, H:].copy_(weights.weight_hh[2 * H :])
        else:
            to[:, :H].copy_(weights.weight_ih)
            to[:, H:].copy_(weights.weight_hh)


def _from_host(values: list[int], device: torch.device) -> Tensor:
    """To be copied to a device without waiting for it."""
    tensor = torch.tensor(values, dtype=torch.int64)
    return tensor.pin_memory() if device.type == "cuda" else tensor
