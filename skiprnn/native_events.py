"""Training in the compiled CPU path: the event loop of one float32 layer, forward and backward, see native.cpp."""

import ctypes
import math
import mmap
from contextlib import suppress
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from skiprnn import native
from skiprnn.cells import Cell, GRUCell, LayerWeights


def refuse_double_backward() -> None:
    """Raise where autograd wants to differentiate a hand-written backward pass, by ``create_graph=True``."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the event-driven engine cannot be differentiated twice; make the module with engine='reference' for that"
        )


class NativeEvents(torch.autograd.Function):
    """The function of ``events._Events``, for one layer."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        lengths: Tensor | None,
        gate_grad_clip: float | None,
        x: Tensor,
        update_weight: Tensor,
        update_bias: Tensor,
        p: Tensor,
        acc: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        x = x if x.stride(2) == 1 else x.contiguous()
        T, B, _ = x.shape
        H = len(update_weight)
        ends = x.new_full((B,), T, dtype=torch.int64) if lengths is None else lengths.long().clamp(0, T).contiguous()
        states = [state.detach().contiguous().clone() for state in tensors[: cell.num_states]]
        weights = LayerWeights(*tensors[cell.num_states :])
        tape = _Tape.blank(cell, x, H)
        p, acc = p.detach().clone(), acc.detach().clone()
        output, update_gate = _reserve(T * B * H, huge_pages=True).view(T, B, H), x.new_zeros(T, B)
        problem, _kept = _describe(cell, x, ends, weights, update_weight, update_bias, tape)
        native.point(problem, h=states[0], c=states[-1], p=p, acc=acc, output=output, update_gate=update_gate)
        native.LIBRARY.skiprnn_forward(ctypes.byref(problem), ctypes.c_int64(_workers(B)))  # type: ignore[union-attr]
        ctx.save_for_backward(x, update_weight, update_bias, ends, *weights, *tape)
        ctx.cell, ctx.gate_grad_clip = cell, gate_grad_clip
        ctx.set_materialize_grads(False)
        return output, update_gate, p, acc, *states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        x, update_weight, update_bias, ends, *tensors = ctx.saved_tensors
        cell: Cell = ctx.cell
        weights, tape = LayerWeights(*tensors[:4]), _Tape(*tensors[4:])
        T, B, D = x.shape
        H = len(update_weight)
        HP, DP = native.padded(H), native.padded(D)
        GP = cell.num_gates * HP
        grad_output, grad_gate, grad_p, grad_acc, *grad_states = grads
        states = [x.new_zeros(B, H) if g is None else g.contiguous().clone() for g in grad_states]
        gp, ga = (x.new_zeros(B) if g is None else g.contiguous().clone() for g in (grad_p, grad_acc))
        grad_x = x.new_zeros(T, B, D) if ctx.needs_input_grad[3] else None

        problem, _kept = _describe(cell, x, ends, weights, update_weight, update_bias, tape)
        w_h_back = _packed_back(weights.weight_hh, cell.num_gates)
        w_x_back = _packed_back(weights.weight_ih, cell.num_gates)
        problem.gate_grad_clip = math.inf if ctx.gate_grad_clip is None else ctx.gate_grad_clip
        native.point(
            problem, w_h_back=w_h_back, w_x_back=w_x_back, grad_h=states[0], grad_c=states[-1], grad_p=gp, grad_acc=ga
        )
        if grad_x is not None:
            native.point(problem, grad_x=grad_x)
        if grad_output is not None:
            grad_output = grad_output if grad_output.stride(2) == 1 else grad_output.contiguous()
            problem.go_t, problem.go_b = grad_output.stride()[:2]
            native.point(problem, grad_output=grad_output)
        if grad_gate is not None:
            problem.gg_t, problem.gg_b = grad_gate.stride()
            native.point(problem, grad_gate=grad_gate)

        workers = _workers(B)
        shapes = {"w_x": (GP, DP), "w_h": (GP, HP), "bias_x": (GP,), "bias_h": (GP,), "w_p": (HP,), "b_p": (1,)}
        sums = {name: x.new_zeros(workers, *shape) for name, shape in shapes.items()}
        parts = (native.Sums * workers)()
        for w in range(workers):
            native.point(parts[w], **{name: part[w] for name, part in sums.items()})
        native.LIBRARY.skiprnn_backward(ctypes.byref(problem), parts, ctypes.c_int64(workers))  # type: ignore[union-attr]
        shut = saturated(tape.p.view(B, -1)[:, 0], tape.a.view(B, -1)[:, 0], ends)
        gp, ga = gp.masked_fill(shut, 0), ga.masked_fill(shut, 0)
        total = {name: part.sum(0) for name, part in sums.items()}
        unpadded = {
            name: total[name].view(cell.num_gates, HP, -1)[:, :H, :size].reshape(cell.num_gates * H, -1)
            for name, size in (("w_x", D), ("w_h", H), ("bias_x", 1), ("bias_h", 1))
        }
        grad_weights = (unpadded["w_x"], unpadded["w_h"], unpadded["bias_x"][:, 0], unpadded["bias_h"][:, 0])
        return None, None, None, grad_x, total["w_p"][:H], total["b_p"], gp, ga, *states, *grad_weights


def saturated(p: Tensor, acc: Tensor, ends: Tensor) -> Tensor:
    """Whether the first sum is 1 whatever p and acc, so that they get no gradient: only states made by hand are so."""
    return (p > 1 - acc) & (ends > 0)


class _Tape(NamedTuple):
    """What forward leaves for backward: memory for an update at every step, of which only what is used gets real."""

    h: Tensor
    c: Tensor
    p: Tensor
    a: Tensor
    t: Tensor
    counts: Tensor

    @classmethod
    def blank(cls, cell: Cell, x: Tensor, H: int) -> Self:
        T, B, _ = x.shape
        rows, HP = B * (T + 1), native.padded(H)
        h = _reserve(rows * HP)
        c = _reserve(rows * HP) if cell.num_states == 2 else h
        return cls(h, c, _reserve(rows), _reserve(rows), _reserve(rows), x.new_zeros(B, dtype=torch.int32))


def _reserve(floats: int, *, huge_pages: bool = False) -> Tensor:
    """Zeros that, where they are many, take memory only where they are touched, page by page."""
    if floats < 2**18:
        return torch.zeros(floats, dtype=torch.float32, device="cpu")
    memory = mmap.mmap(-1, 4 * floats, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a hint, which not every kernel takes
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


def _describe(
    cell: Cell,
    x: Tensor,
    ends: Tensor,
    weights: LayerWeights,
    update_weight: Tensor,
    update_bias: Tensor,
    tape: _Tape,
) -> tuple[native.Problem, list[Tensor]]:
    """The problem as both passes need it, and the tensors it points to."""
    T, B, D = x.shape
    H = len(update_weight)
    gates = cell.num_gates
    tensors = {
        "x": x,
        "lengths": ends,
        "w_x": native.packed(weights.weight_ih, gates),
        "w_h": native.packed(weights.weight_hh, gates),
        "bias_x": native.packed(weights.bias_ih[:, None], gates),
        "bias_h": native.packed(weights.bias_hh[:, None], gates),
        "w_p": native.packed(update_weight[:, None], 1),
        "tape_h": tape.h, "tape_c": tape.c, "tape_p": tape.p, "tape_a": tape.a, "tape_t": tape.t, "counts": tape.counts,
    }  # fmt: skip
    problem = native.Problem(
        T=T, B=B, D=D, H=H, gru=int(type(cell) is GRUCell), x_t=x.stride(0), x_b=x.stride(1), b_p=update_bias.item()
    )
    return native.point(problem, **tensors), list(tensors.values())


def _packed_back(weight: Tensor, gates: int) -> Tensor:
    """(G*H, K) -> (KP/16, G*HP, 16), for products with gradients of the gates; KP and HP: padded to multiples of 16."""
    H, K = weight.shape[0] // gates, weight.shape[1]
    HP, KP = native.padded(H), native.padded(K)
    shaped = pad(weight.detach().view(gates, H, K), (0, KP - K, 0, HP - H))
    return shaped.reshape(gates * HP, KP // native.UNITS, native.UNITS).transpose(0, 1).contiguous()


def _workers(batch: int) -> int:
    blocks = -(-batch // int(native.LIBRARY.skiprnn_block()))  # type: ignore[union-attr]
    return min(torch.get_num_threads(), blocks)
