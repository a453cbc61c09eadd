"""The event-driven engine in compiled code, float32 on the CPU: see native.cpp.

It runs stacks of LSTMs and of either GRU. Passes share sequences out among torch's threads.
"""

import ctypes
import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from skiprnn import compiled
from skiprnn.cells import Cell, GRUCell, GRUResetBeforeCell, LayerWeights, LSTMCell
from skiprnn.compiled import call, padded, point, structure
from skiprnn.gate import saturated
from skiprnn.problem import Problem, Solution, refuse_double_backward

KINDS: dict[type[Cell], int] = {LSTMCell: 0, GRUCell: 1, GRUResetBeforeCell: 2}


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem, or should not; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if reason := unfit(problem.cell, problem.tensors()):
        return reason
    if not problem.x.numel():
        return "there are no samples"
    steps, batch, _ = problem.x.shape
    if steps * batch < 8 and sum(w.numel() for w in problem.tensors()[1:]) > 500_000:
        return "copying the weights would take longer than so few samples"
    return None


def unfit(cell: Cell, tensors: tuple[Tensor, ...]) -> str | None:
    """Why compiled code cannot run a cell with such tensors; None if it can."""
    return compiled.fits(tensors) if type(cell) in KINDS else f"it has no {type(cell).__name__}"


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    if not problem.differentiable:
        return Solution.of_tensors(problem, _forward(problem, None)[1])
    return Solution.of_tensors(problem, _Training.apply(problem.bare(), *problem.tensors()))


class PackedStack:
    """A stack's weights as native.cpp wants them, copied when this is made; for training, also as backward does."""

    def __init__(
        self,
        cell: Cell,
        layers: Sequence[LayerWeights],
        update_weight: Tensor,
        update_bias: Tensor,
        *,
        training: bool = False,
    ) -> None:
        H = len(update_weight)
        self.units = HP = padded(H)
        weights = [LayerWeights(*(tensor.detach().contiguous() for tensor in layer)) for layer in layers]
        w_p = update_weight.detach().contiguous()
        raw, ours = structure("Layer", count=len(layers)), structure("Layer", count=len(layers))
        floats = HP
        for described, layer in zip(raw, weights, strict=True):
            described.D = D = layer.weight_ih.shape[1]
            point(described, w_x=layer.weight_ih, w_h=layer.weight_hh, bias_x=layer.bias_ih, bias_h=layer.bias_hh)
            floats += len(layer.bias_ih) // H * HP * (D + H + 2 + (padded(D) + HP if training else 0))
        sizes = {"kind": KINDS[type(cell)], "layers": len(layers), "H": H}
        stack = structure("Stack", **sizes, layer=ctypes.addressof(raw), b_p=update_bias.item())
        self.structure = structure("Stack", layer=ctypes.addressof(ours))
        memory = w_p.new_empty(floats)
        call("pack_stack", point(stack, w_p=w_p), self.structure, memory, int(training))
        self.address = ctypes.addressof(self.structure)
        self._kept = ours, memory  # what the structure points to


class Follower:
    """One sequence through a packed stack, its samples coming bit by bit."""

    def __init__(self, stack: PackedStack, states: list[Tensor], p: Tensor) -> None:
        """Update ``states``, (num_layers, stack.units) each, and ``p``, (1,), in place: contiguous, float32, CPU."""
        self._kept = stack, states, p
        self._structure = point(structure("Follower", stack=stack.address), h=states[0], c=states[-1], p=p)
        self._address = ctypes.addressof(self._structure)
        self._follow = compiled.LIBRARY.skiprnn_follow  # type: ignore[union-attr]

    def take(self, samples: Tensor, skips: int) -> tuple[int, int, int]:
        """Take samples (n, D), one at least being used; the first ``skips`` and those the gate skips are not read.

        Returns:
            How many were used, which was the last, and how many after all of them will be skipped.
        """
        samples = samples if samples.stride(1) == 1 else samples.contiguous()
        follower = self._structure
        follower.skips = skips
        self._follow(self._address, samples.data_ptr(), samples.stride(0), len(samples))
        return follower.used, follower.last, follower.skips


def _forward(problem: Problem, tape: "_Tape | None") -> tuple[Tensor, tuple[Tensor, ...]]:
    """The sequences' lengths, and what ``Solution.of_tensors`` takes; what backward needs goes to the tape."""
    x, ends = _rows_of(problem.x.detach()), problem.ends().contiguous()
    T, B, _ = x.shape
    H = len(problem.update_weight)
    p, acc = (tensor.detach().clone() for tensor in problem.gate)
    last = [torch.stack(tensors).detach() for tensors in zip(*problem.states, strict=True)]  # (L, B, H) each
    output, update_gate = _reserve(T * B * H, huge_pages=True).view(T, B, H), x.new_zeros(T, B)
    stack = PackedStack(problem.cell, problem.layers, problem.update_weight, problem.update_bias)
    described = _described(stack, x, ends, tape)
    point(described, h=last[0], c=last[-1], p=p, acc=acc, output=output, update_gate=update_gate)
    call("forward", described, min(torch.get_num_threads(), B))
    states = (tensor for layer in zip(*last, strict=True) for tensor in layer)
    return ends, (output, update_gate, p, acc, *states)


class _Training(torch.autograd.Function):
    """Forward and backward of a stack."""

    @staticmethod
    def forward(ctx: Any, bare: Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        tape = _Tape.blank(problem)
        ends, solution = _forward(problem, tape)
        ctx.bare = bare
        ctx.save_for_backward(ends, *tape, *tensors)
        ctx.set_materialize_grads(False)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        ends, *others = ctx.saved_tensors
        tape, problem = _Tape(*others[: len(_Tape._fields)]), ctx.bare.with_tensors(others[len(_Tape._fields) :])
        x, H, L = _rows_of(problem.x.detach()), len(problem.update_weight), len(problem.layers)
        T, B, D = x.shape
        grad_output, grad_gate, grad_p, grad_acc, *given = grads
        gp, ga = (x.new_zeros(B) if g is None else g.contiguous().clone() for g in (grad_p, grad_acc))
        count = problem.cell.num_states
        states = [x.new_zeros(L, B, H) for _ in range(count)]
        for number, grad in enumerate(given):
            if grad is not None:
                states[number % count][number // count] = grad
        stack = PackedStack(problem.cell, problem.layers, problem.update_weight, problem.update_bias, training=True)
        described = _described(stack, x, ends, tape)
        described.gate_grad_clip = math.inf if problem.gate_grad_clip is None else problem.gate_grad_clip
        point(described, grad_h=states[0], grad_c=states[-1], grad_p=gp, grad_acc=ga)
        grad_x = x.new_zeros(T, B, D) if ctx.needs_input_grad[1] else None
        if grad_x is not None:
            point(described, grad_x=grad_x)
        if grad_output is not None:
            grad_output = _rows_of(grad_output)
            described.go_t, described.go_b = grad_output.stride()[:2]
            point(described, grad_output=grad_output)
        if grad_gate is not None:
            described.gg_t, described.gg_b = grad_gate.stride()
            point(described, grad_gate=grad_gate)
        workers = min(torch.get_num_threads(), B)
        sums = x.new_zeros(workers, compiled.LIBRARY.skiprnn_sums(stack.address))  # type: ignore[union-attr]
        call("backward", point(described, sums=sums), workers)
        shut = saturated(problem.gate, ends)
        *weights, w_p, b_p = _weights_of(sums.sum(0), problem)
        gate = (g.masked_fill(shut, 0) for g in (gp, ga))
        return None, grad_x, w_p, b_p, *gate, *(s[layer] for layer in range(L) for s in states), *weights


def _weights_of(sums: Tensor, problem: Problem) -> Iterator[Tensor]:
    """The gradients of every layer's weights, then of the gate's, from the sums as native.cpp lays them out."""
    H = len(problem.update_weight)
    HP, start = padded(H), 0
    for layer in problem.layers:
        gates = len(layer.bias_ih) // H
        for size in (layer.weight_ih.shape[1], H, None, None):
            columns = padded(size) if size else 1
            part = sums[start : start + gates * HP * columns].view(gates, HP, columns)[:, :H, :size]
            yield part.reshape(gates * H, size) if size else part.reshape(gates * H)
            start += gates * HP * columns
    yield sums[start : start + H]
    yield sums[start + HP : start + HP + 1]


class _Tape(NamedTuple):
    """What forward leaves for backward: memory for an update at every step, of which only what is used gets real."""

    h: Tensor
    c: Tensor
    p: Tensor
    a: Tensor
    t: Tensor
    counts: Tensor

    @classmethod
    def blank(cls, problem: Problem) -> Self:
        (T, B, _), L = problem.x.shape, len(problem.layers)
        rows, HP = B * (T + 1), padded(len(problem.update_weight))
        h = _reserve(L * rows * HP)
        c = _reserve(L * rows * HP) if problem.cell.num_states == 2 else h
        return cls(h, c, _reserve(rows), _reserve(rows), _reserve(rows), problem.x.new_zeros(B, dtype=torch.int32))


def _reserve(floats: int, *, huge_pages: bool = False) -> Tensor:
    """Zeros that, where they are many, take memory only where they are touched, page by page."""
    if floats < 2**18:
        return torch.zeros(floats, dtype=torch.float32, device="cpu")
    memory = mmap.mmap(-1, 4 * floats, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a hint, which not every kernel takes
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


def _rows_of(tensor: Tensor) -> Tensor:
    """The tensor with numbers of a step side by side."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _described(stack: PackedStack, x: Tensor, ends: Tensor, tape: _Tape | None) -> Any:
    """The structure as both passes need it."""
    described = structure("Problem", stack=stack.address, T=x.shape[0], B=x.shape[1])
    described.x_t, described.x_b = x.stride()[:2]
    if tape is not None:
        *recorded, counts = tape
        names = (f"tape_{name}" for name in tape._fields)
        point(described, counts=counts, **dict(zip(names, recorded, strict=False)))
    return point(described, x=x, lengths=ends)
