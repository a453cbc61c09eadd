"""The event-driven engine in compiled code, float32 on the CPU: see native.cpp.

It trains one LSTM or GRU (reset_after) layer, and runs stacks of LSTMs and of either GRU for inference, one sequence
after the other. Passes share sequences out among torch's threads.
"""

import ctypes
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from skiprnn import compiled
from skiprnn.cells import Cell, GRUCell, GRUResetBeforeCell, LayerWeights, LSTMCell
from skiprnn.compiled import call, packed, padded, point, structure
from skiprnn.gate import GateState, saturated
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
    if _trains(problem):
        return None
    if problem.differentiable:
        return "it trains one layer of an LSTM or a GRU that resets after the product"
    return None if _infers(problem) else "for so many sequences torch's products are faster"


def unfit(cell: Cell, tensors: tuple[Tensor, ...]) -> str | None:
    """Why compiled code cannot run a cell with such tensors; None if it can."""
    return compiled.fits(tensors) if type(cell) in KINDS else f"it has no {type(cell).__name__}"


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    if not problem.differentiable and _infers(problem):
        return _infer(problem)
    return Solution.of_tensors(problem, _Training.apply(problem.bare(), *problem.tensors()))


def _trains(problem: Problem) -> bool:
    return len(problem.layers) == 1 and type(problem.cell) in (LSTMCell, GRUCell)


def _infers(problem: Problem) -> bool:
    """Whether one sequence after the other is the fastest way without gradients."""
    steps, batch, _ = problem.x.shape
    most = 3 if _trains(problem) else 8  # as measured on 1 to 8 sequences a thread
    if batch > most * torch.get_num_threads():
        return False
    return steps * batch >= 8 or sum(w.numel() for w in problem.tensors()[1:]) < 500_000  # packing weights pays off


class PackedStack:
    """A stack's weights as native.cpp wants them, copied when this is made."""

    def __init__(self, cell: Cell, layers: Sequence[LayerWeights], update_weight: Tensor, update_bias: Tensor) -> None:
        H = len(update_weight)
        self.units = HP = padded(H)
        weights = [LayerWeights(*(tensor.contiguous() for tensor in layer)) for layer in layers]
        w_p = update_weight.contiguous()
        raw, ours = structure("Layer", count=len(layers)), structure("Layer", count=len(layers))
        floats = HP
        for described, layer in zip(raw, weights, strict=True):
            described.D = D = layer.weight_ih.shape[1]
            point(described, w_x=layer.weight_ih, w_h=layer.weight_hh, bias_x=layer.bias_ih, bias_h=layer.bias_hh)
            floats += len(layer.bias_ih) // H * HP * (D + H + 2)
        sizes = {"kind": KINDS[type(cell)], "layers": len(layers), "H": H}
        stack = structure("Stack", **sizes, layer=ctypes.addressof(raw), b_p=update_bias.item())
        self.structure = structure("Stack", layer=ctypes.addressof(ours))
        memory = w_p.new_empty(floats)
        compiled.LIBRARY.skiprnn_pack_stack(  # type: ignore[union-attr]
            ctypes.byref(point(stack, w_p=w_p)), ctypes.byref(self.structure), ctypes.c_void_p(memory.data_ptr())
        )
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


def _infer(problem: Problem) -> Solution:
    x, ends = _rows_of(problem.x), problem.ends().contiguous()
    T, B, _ = x.shape
    p, acc = (tensor.detach().clone() for tensor in problem.gate)
    last = [torch.stack(tensors).detach() for tensors in zip(*problem.states, strict=True)]  # (L, B, H) each
    output, update_gate = x.new_empty(T, B, len(problem.update_weight)), x.new_zeros(T, B)
    stack = PackedStack(problem.cell, problem.layers, problem.update_weight, problem.update_bias)
    described = point(
        structure("Inference", stack=stack.address, T=T, B=B, x_t=x.stride(0), x_b=x.stride(1)),
        x=x, lengths=ends, h=last[0], c=last[-1], p=p, acc=acc, output=output, update_gate=update_gate,
    )  # fmt: skip
    call("infer", described, min(torch.get_num_threads(), B))
    return Solution(output, list(zip(*last, strict=True)), GateState(p, acc), update_gate)


class _Training(torch.autograd.Function):
    """One layer, forward and backward."""

    @staticmethod
    def forward(ctx: Any, bare: Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        problem = problem._replace(x=_rows_of(problem.x))
        x, H = problem.x, len(problem.update_weight)
        T, B, _ = x.shape
        ends = problem.ends().contiguous()
        states = [state.detach().contiguous().clone() for state in problem.states[0]]
        tape = _Tape.blank(problem)
        p, acc = (tensor.detach().clone() for tensor in problem.gate)
        output, update_gate = _reserve(T * B * H, huge_pages=True).view(T, B, H), x.new_zeros(T, B)
        described, _kept = _describe(problem, ends, tape)
        point(described, h=states[0], c=states[-1], p=p, acc=acc, output=output, update_gate=update_gate)
        call("forward", described, _workers(B))
        ctx.bare = bare
        ctx.save_for_backward(ends, *tape, problem.x, *tensors[1:])
        ctx.set_materialize_grads(False)
        return output, update_gate, p, acc, *states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        ends, *others = ctx.saved_tensors
        tape, problem = _Tape(*others[: len(_Tape._fields)]), ctx.bare.with_tensors(others[len(_Tape._fields) :])
        x, (weights,) = problem.x, problem.layers
        T, B, D = x.shape
        H = len(problem.update_weight)
        gates = len(weights.bias_ih) // H
        HP, DP = padded(H), padded(D)
        GP = gates * HP
        grad_output, grad_gate, grad_p, grad_acc, *grad_states = grads
        states = [x.new_zeros(B, H) if g is None else g.contiguous().clone() for g in grad_states]
        gp, ga = (x.new_zeros(B) if g is None else g.contiguous().clone() for g in (grad_p, grad_acc))
        grad_x = x.new_zeros(T, B, D) if ctx.needs_input_grad[1] else None

        described, _kept = _describe(problem, ends, tape)
        described.gate_grad_clip = math.inf if problem.gate_grad_clip is None else problem.gate_grad_clip
        w_x_back, w_h_back = (_packed_back(w, gates) for w in (weights.weight_ih, weights.weight_hh))
        point(described, w_x_back=w_x_back, w_h_back=w_h_back)
        point(described, grad_h=states[0], grad_c=states[-1], grad_p=gp, grad_acc=ga)
        if grad_x is not None:
            point(described, grad_x=grad_x)
        if grad_output is not None:
            grad_output = _rows_of(grad_output)
            described.go_t, described.go_b = grad_output.stride()[:2]
            point(described, grad_output=grad_output)
        if grad_gate is not None:
            described.gg_t, described.gg_b = grad_gate.stride()
            point(described, grad_gate=grad_gate)

        workers = _workers(B)
        shapes = {"w_x": (GP, DP), "w_h": (GP, HP), "bias_x": (GP,), "bias_h": (GP,), "w_p": (HP,), "b_p": (1,)}
        sums = {name: x.new_zeros(workers, *shape) for name, shape in shapes.items()}
        parts = structure("Sums", count=workers)
        for w in range(workers):
            point(parts[w], **{name: part[w] for name, part in sums.items()})
        call("backward", described, parts, workers)
        shut = saturated(problem.gate, ends)
        total = {name: part.sum(0) for name, part in sums.items()}
        unpadded = [
            total[name].view(gates, HP, -1)[:, :H, :size].reshape(gates * H, -1)
            for name, size in (("w_x", D), ("w_h", H), ("bias_x", 1), ("bias_h", 1))
        ]
        grad_weights = (*unpadded[:2], *(bias[:, 0] for bias in unpadded[2:]))
        gate = (g.masked_fill(shut, 0) for g in (gp, ga))
        return None, grad_x, total["w_p"][:H], total["b_p"], *gate, *states, *grad_weights


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
        T, B, _ = problem.x.shape
        rows, HP = B * (T + 1), padded(len(problem.update_weight))
        h = _reserve(rows * HP)
        c = _reserve(rows * HP) if problem.cell.num_states == 2 else h
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


def _describe(problem: Problem, ends: Tensor, tape: _Tape) -> tuple[Any, list[Tensor]]:
    """The structure as both passes need it, and the tensors it points to."""
    x, (weights,) = problem.x, problem.layers
    T, B, D = x.shape
    H = len(problem.update_weight)
    gates = len(weights.bias_ih) // H
    tensors = {
        "x": x,
        "lengths": ends,
        "w_x": packed(weights.weight_ih, gates),
        "w_h": packed(weights.weight_hh, gates),
        "bias_x": packed(weights.bias_ih[:, None], gates),
        "bias_h": packed(weights.bias_hh[:, None], gates),
        "w_p": packed(problem.update_weight[:, None], 1),
        **{f"tape_{name}": getattr(tape, name) for name in ("h", "c", "p", "a", "t")},
        "counts": tape.counts,
    }
    described = structure("Problem", T=T, B=B, D=D, H=H, gru=KINDS[type(problem.cell)], b_p=problem.update_bias.item())
    described.x_t, described.x_b = x.stride()[:2]
    return point(described, **tensors), list(tensors.values())


def _packed_back(weight: Tensor, gates: int) -> Tensor:
    """(G*H, K) -> (KP/16, G*HP, 16), for products with gradients of the gates; KP and HP: padded to multiples of 16."""
    H, K = weight.shape[0] // gates, weight.shape[1]
    HP, KP = padded(H), padded(K)
    shaped = pad(weight.detach().view(gates, H, K), (0, KP - K, 0, HP - H))
    return shaped.reshape(gates * HP, KP // compiled.UNITS, compiled.UNITS).transpose(0, 1).contiguous()


def _workers(batch: int) -> int:
    blocks = -(-batch // int(compiled.LIBRARY.skiprnn_block()))  # type: ignore[union-attr]
    return min(torch.get_num_threads(), blocks)
