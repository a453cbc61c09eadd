"""The event-driven engine in compiled code, float32 on the CPU: see native.cpp.

It runs stacks of LSTMs and of either GRU. Passes share sequences out among torch's threads. Under autocast to bfloat16
its products are of numbers rounded to that, but for those with samples of one or two features.
"""

import ctypes
import math
import mmap
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from skiprnn import compiled
from skiprnn.cells import GRU, GRU_RESET_BEFORE, LSTM, Cell, LayerWeights
from skiprnn.compiled import call, padded, point, structure
from skiprnn.gate import Bounds, GateState, saturated
from skiprnn.problem import Problem, Solution, refuse_double_backward, transformed

CELLS = (LSTM, GRU, GRU_RESET_BEFORE)  # as native.cpp numbers them
KINDS: dict[type[Cell], int] = {type(cell): kind for kind, cell in enumerate(CELLS)}


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem, or should not; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if reason := transformed() or unable(problem):
        return reason
    steps, batch = problem.size
    if not steps * batch * problem.x.numel():
        return "there are no samples"
    if steps * batch < 8 and sum(w.numel() for w in problem.tensors()[1:]) > 500_000:
        return "copying the weights would take longer than so few samples"
    return None


def with_numbers(problem: Problem, *, reads_all: bool = False) -> Problem | None:
    """A problem whose samples are rows of x as this engine runs it best; None where it cannot, or should not.

    In training, or where the gate never shuts, each row goes through the first layer's ``weight_ih`` beforehand, if
    there are enough samples to each: x are the products then, and that weight has no columns. Otherwise the rows are
    read where they lie, and who does not go back reads those that are used (see ``multiplies_once``).

    Args:
        reads_all: the gate never shuts.
    """
    if why_not(problem) is not None:
        return None
    assert problem.numbers is not None
    (rows, features), samples = problem.x.shape, problem.numbers.numel()
    trains = problem.differentiable
    if trains and rows * _workers(problem.size[1]) > samples:  # each worker has gradients by the rows
        return None
    problem = problem._replace(numbers=problem.numbers.long().contiguous())
    # Where few samples are used going back has one product for each, forward next to none; rows have three.
    products = rows * (3 if trains and not reads_all else 1)
    saved = features * (1 - products / samples)  # multiply-adds for each number that is made
    if saved < 16 or rounding() or not (trains or reads_all):
        return problem
    first, *others = problem.layers
    layers = [first._replace(weight_ih=first.weight_ih[:, :0]), *others]
    return problem._replace(x=linear(problem.x, first.weight_ih), layers=layers)


def unable(problem: Problem) -> str | None:
    """Why compiled code cannot run a problem; None if it can."""
    if problem.dropout is not None:
        return "it has no dropout between layers"
    return unfit(problem.cell, problem.widened().tensors())


def unfit(cell: Cell, tensors: tuple[Tensor, ...]) -> str | None:
    """Why compiled code cannot run a cell with such tensors; None if it can."""
    if type(cell) not in KINDS:
        return f"it has no {type(cell).__name__}"
    if rounding() and torch.get_autocast_dtype("cpu") is not torch.bfloat16:
        return f"it computes in float32 and bfloat16, not under autocast to {torch.get_autocast_dtype('cpu')}"
    return compiled.fits(tensors)


def rounding() -> bool:
    """Whether products are of rounded numbers."""
    return torch.is_autocast_enabled("cpu")


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    problem = problem.widened()
    if problem.differentiable:
        return solution(_Training.apply(problem.bare(), *problem.tensors()))
    return solution(forward(problem, packed(problem, rounded=rounding()), None)[1:])


def solution(tensors: Sequence[Tensor]) -> Solution:
    """From output, update_gate, p, acc and the states of all layers, (num_layers, B, H) each."""
    output, update_gate, p, acc, *states = tensors
    return Solution(output, list(zip(*states, strict=True)), GateState(p, acc), update_gate)


class PackedStack:
    """A stack's weights as native.cpp wants them, copied when this is made; for training, also as backward does.

    Rounded ones are multiplied as bfloat16.
    """

    def __init__(
        self, cell: Cell, layers: Sequence[LayerWeights], update_weight: Tensor, update_bias: Tensor, *,
        bounds: Bounds, training: bool = False, rounded: bool = False,
    ) -> None:  # fmt: skip
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
        sizes = {"kind": KINDS[type(cell)], "layers": len(layers), "H": H, "form": int(rounded)}
        stack = structure("Stack", **sizes, layer=ctypes.addressof(raw), b_p=update_bias.item(), **bounds._asdict())
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


def packed(problem: Problem, *, rounded: bool, training: bool = False) -> PackedStack:
    """A problem's stack."""
    weights = problem.layers, problem.update_weight, problem.update_bias
    return PackedStack(problem.cell, *weights, bounds=problem.bounds, training=training, rounded=rounded)


def forward(problem: Problem, stack: PackedStack, tape: Tensor | None) -> list[Tensor]:
    """The sequences' lengths, and what ``solution`` takes; what ``backward`` needs goes to the tape."""
    x, ends = _rows_of(problem.x.detach()), problem.ends().contiguous()
    T, B = problem.size
    H = len(problem.update_weight)
    p, acc = (tensor.detach().clone() for tensor in problem.gate)
    states = [torch.stack(tensors).detach() for tensors in zip(*problem.states, strict=True)]
    output, update_gate = x.new_empty(0), x.new_zeros(T, B)
    described = _described(problem, stack, x, ends, tape)
    point(described, h=states[0], c=states[-1], p=p, acc=acc, update_gate=update_gate)
    if problem.every_step:
        output = _memory(T, B, H, huge_pages=True)
        point(described, output=output)
    workers = _workers(B)
    if tape is None and multiplies_once(problem, workers):
        gates = len(problem.layers[0].bias_ih) // H
        shares, known = _memory(workers, len(x), gates * stack.units), torch.zeros(workers, len(x), dtype=torch.uint8)
        point(described, shares=shares, known=known)
    call("forward", described, workers)
    return [ends, output, update_gate, p, acc, *states]


def multiplies_once(problem: Problem, workers: int) -> bool:
    """Whether, without going back, a worker keeps the products of rows with ``weight_ih`` from their first use on."""
    rows, features = len(problem.x), problem.layers[0].weight_ih.shape[1]
    return problem.numbers is not None and features >= 16 and 2 * rows * workers <= problem.numbers.numel()


def backward(
    problem: Problem, stack: PackedStack, ends: Tensor, tape: Tensor, grads: Sequence[Tensor | None], *, needs_x: bool
) -> list[Tensor | None]:
    """Gradients by ``problem.tensors()``, from those by what ``solution`` takes; the stack is packed for training."""
    x, L = _rows_of(problem.x.detach()), len(problem.layers)
    B = problem.size[1]
    workers = _workers(B)
    grad_output, grad_gate, *given = grads
    shapes = [(B,)] * 2 + [(L, B, len(problem.update_weight))] * problem.cell.num_states
    gp, ga, *states = (
        x.new_zeros(shape) if g is None else g.clone(memory_format=torch.contiguous_format)
        for shape, g in zip(shapes, given, strict=True)
    )
    described = _described(problem, stack, x, ends, tape)
    described.gate_grad_clip = math.inf if problem.gate_grad_clip is None else problem.gate_grad_clip
    point(described, grad_h=states[0], grad_c=states[-1], grad_p=gp, grad_acc=ga)
    grad_x = None
    if needs_x:
        grad_x = x.new_zeros(x.shape if problem.numbers is None else (workers, *x.shape))
        point(described, grad_x=grad_x)
    if grad_output is not None and problem.every_step:
        grad_output = _rows_of(grad_output)
        described.go_t, described.go_b = grad_output.stride()[:2]
        point(described, grad_output=grad_output)
    if grad_gate is not None:
        described.gg_t, described.gg_b = grad_gate.stride()
        point(described, grad_gate=grad_gate)
    sums = x.new_zeros(workers, compiled.LIBRARY.skiprnn_sums(stack.address))  # type: ignore[union-attr]
    call("backward", point(described, sums=sums), workers)
    shut = saturated(problem.gate, ends)
    *weights, w_p, b_p = _weights_of(sums.sum(0), problem)
    gate = (g.masked_fill(shut, 0) for g in (gp, ga))
    if grad_x is not None and problem.numbers is not None:
        grad_x = grad_x.sum(0)
    return [grad_x, w_p, b_p, *gate, *(s[layer] for layer in range(L) for s in states), *weights]


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bare: Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        stack, tape = packed(problem, training=True, rounded=rounding()), empty_tape(problem)
        ends, *computed = forward(problem, stack, tape)
        ctx.bare, ctx.stack = bare._replace(numbers=None), stack
        ctx.save_for_backward(ends, tape, bare.numbers, *tensors)  # which notices where they were changed since
        ctx.set_materialize_grads(False)
        return tuple(computed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        ends, tape, numbers, *tensors = ctx.saved_tensors
        problem = ctx.bare.with_tensors(tensors)._replace(numbers=numbers)
        return None, *backward(problem, ctx.stack, ends, tape, grads, needs_x=ctx.needs_input_grad[1])


def _weights_of(sums: Tensor, problem: Problem) -> Iterator[Tensor]:
    """The gradients of every layer's weights, then of the gate's, from the sums as native.cpp lays them out."""
    H = len(problem.update_weight)
    HP, start = padded(H), 0
    for layer in problem.layers:
        gates = len(layer.bias_ih) // H
        for size in (layer.weight_ih.shape[1], H, None, None):
            columns = 1 if size is None else padded(size)
            part = sums[start : start + gates * HP * columns].view(gates, HP, columns)[:, :H, :size]
            yield part.reshape(gates * H) if size is None else part.reshape(gates * H, size)
            start += gates * HP * columns
    yield sums[start : start + H]
    yield sums[start + HP : start + HP + 1]


def empty_tape(problem: Problem) -> Tensor:
    """Memory for what forward leaves for backward: for an update at every step, of which what is used gets real."""
    return _memory(tape_floats(problem))


def tape_floats(problem: Problem) -> int:
    """The size of ``empty_tape``."""
    return sum(map(padded, _parts(problem).values()))


def _parts(problem: Problem) -> dict[str, int]:
    """The tape's parts and their sizes."""
    (T, B), L, kind = problem.size, len(problem.layers), KINDS[type(problem.cell)]
    rows, units = B * (T + 1), L * B * (T + 1) * padded(len(problem.update_weight))
    sizes = {"counts": B, "tape_p": rows, "tape_a": rows, "tape_t": rows, "tape_h": units}
    return sizes | ({"tape_c": units} if kind == 0 else {}) | {"tape_g": units * (3 if kind == 2 else 4)}


_KEPT: deque[mmap.mmap] = deque(maxlen=3)  # memory of tapes and outputs that are gone


def _memory(*shape: int, huge_pages: bool = False) -> Tensor:
    """Uninitialized memory that, where it is much, is real only where it is touched, page by page.

    It is kept when its tensor dies, for the next, because the first touch of a page costs more than writing to it.
    """
    floats = math.prod(shape)
    if floats < 2**18:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    mapped = None
    for _ in range(len(_KEPT)):
        with suppress(IndexError):  # another thread took it
            kept = _KEPT.popleft()
            if len(kept) < 4 * floats:
                continue  # what it was kept for has grown
            if len(kept) <= 16 * floats:
                mapped = kept
                break
            _KEPT.append(kept)
    if mapped is None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        try:
            mapped = mmap.mmap(-1, 4 * floats, flags=flags)
        except OSError as error:
            raise RuntimeError(f"can't allocate memory: you tried to allocate {4 * floats} bytes ({error})") from error
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a hint, which not every kernel takes
                mapped.madvise(mmap.MADV_HUGEPAGE)
    array = np.ndarray(shape, np.float32, mapped)
    weakref.finalize(array, _KEPT.append, mapped).atexit = False
    return torch.from_numpy(array)


def forget_memory() -> None:
    """Give back to the system the memory that is kept for the next problem."""
    _KEPT.clear()


def _workers(batch: int) -> int:
    return max(min(torch.get_num_threads(), batch), 1)


def _rows_of(tensor: Tensor) -> Tensor:
    """The tensor with numbers of a step side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _described(problem: Problem, stack: PackedStack, x: Tensor, ends: Tensor, tape: Tensor | None) -> Any:
    """The structure as both passes need it."""
    described = structure("Problem", stack=stack.address, **dict(zip("TB", problem.size, strict=True)))
    if problem.numbers is None:
        described.x_t, described.x_b = x.stride()[:2]
    else:
        described.N, described.x_t = len(x), x.stride(0)
        point(described, numbers=problem.numbers)
    if tape is not None:
        parts = _parts(problem)
        starts = accumulate(map(padded, parts.values()), initial=0)
        point(described, **{name: tape[start:] for name, start in zip(parts, starts, strict=False)})
    if problem.draws is not None:
        point(described, draws=problem.draws)
    return point(described, x=x, lengths=ends)
