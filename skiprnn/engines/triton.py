"""The event-driven engine on a GPU, one layer of up to 128 units: the loops of ``triton_kernels`` and what is parallel.

Forward keeps a row for each update (c, when, and the gate's numbers; h is in the output). Backward starts with one
product for all rows, walks the events in one kernel, which leaves the gates' gradients of every update, and ends with
one product for each weight. Products are float32, or TF32 where ``torch.backends.cuda.matmul.allow_tf32`` asks for it,
or bfloat16 under autocast; sums of gates, states and the update probability are float32 always.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear
from triton import knobs

from skiprnn import reference
from skiprnn.cells import Cell, GRUCell, LayerWeights, LSTMCell
from skiprnn.engines import triton_kernels
from skiprnn.gate import UNBOUNDED, GateState, saturated
from skiprnn.problem import Problem, Solution, refuse_double_backward, transformed

LARGEST = 128  # units whose recurrent weights one program can own
FUSED = 8  # features up to which the kernels multiply the inputs themselves, instead of one product before
MOST_ROWS = 8  # sequences of a program
PLACES = 8  # skipped steps that it takes at a time, over all its sequences
WARPS = 8


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if problem.bounds != UNBOUNDED:
        return "it has no bounds of how many samples are skipped"
    return transformed() or unfit(problem.cell, len(problem.layers), len(problem.update_weight), problem.tensors())


def unfit(cell: Cell, num_layers: int, hidden_size: int, tensors: Sequence[Tensor]) -> str | None:
    """Why this engine cannot run a stack on such tensors; None if it can."""
    if type(cell) not in (LSTMCell, GRUCell):
        return f"it has no {type(cell).__name__}, only the LSTM and the GRU, and of that not reset_after=False"
    if num_layers != 1:
        return f"it runs one layer, not {num_layers}"
    if hidden_size > LARGEST:
        return f"it runs up to {LARGEST} units, not {hidden_size}"
    if wrong := {str(tensor.dtype) for tensor in tensors if tensor.dtype != torch.float32}:
        return f"it computes float32 tensors (under autocast with bfloat16 products), not {', '.join(sorted(wrong))}"
    if not (tensors[0].is_cuda or knobs.runtime.interpret):
        return f"it runs on CUDA devices, not on {tensors[0].device}"
    return None


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    if not problem.x.shape[0] or not problem.x.shape[1]:
        return reference.run(problem)
    given = problem.bare(), problem.differentiable
    return Solution.of_tensors(problem, _TritonEvents.apply(*given, *problem.tensors()))


class _Rows(NamedTuple):
    """A row for each sequence's first state and one for the state after each of its updates, in order."""

    t: Tensor  # (R,) int64, the update's step; -1 for a first state
    b: Tensor  # (R,) int64, the sequence
    first: Tensor  # (B,) int64, row of the first state
    updates: Tensor  # (B,) int64, how many

    @classmethod
    def of(cls, update_gate: Tensor) -> Self:
        """From the gate, (T, B); the host waits here, to know how many updates there were."""
        b, t = torch.cat([torch.ones_like(update_gate[:1]), update_gate]).t().nonzero(as_tuple=True)
        updates = update_gate.sum(0).long()
        return cls(t - 1, b, (updates + 1).cumsum(0) - (updates + 1), updates)

    def take(self, first: Tensor, at: Tensor) -> Tensor:
        """The rows' values, (B, ...) before the first step and (T, B, ...) after each update -> (R, ...)."""
        is_first = (self.t < 0).view(-1, *[1] * (first.dim() - 1))
        return torch.where(is_first, first[self.b], at[self.t.clamp(min=0), self.b])


class _TritonEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bare: Problem, saves: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = bare.with_tensors(tensors)
        cell, x, update_bias, (start,) = problem.cell, problem.x, problem.update_bias, problem.states
        T, B, _ = x.shape
        x = x if x.stride(2) == 1 else x.contiguous()
        ends = problem.ends()
        states = [state.contiguous().clone() for state in start]
        weights = LayerWeights(*(weight.contiguous() for weight in problem.layers[0]))
        update_weight = problem.update_weight.contiguous()
        p, acc = (tensor.contiguous() for tensor in problem.gate)
        p_now, sums = p.clone(), acc.clone()
        output = x.new_empty(T, B, len(update_weight))
        update_gate, p_at, a_at = x.new_zeros(T, B), x.new_empty(T, B), x.new_empty(T, B)
        c_at = torch.empty_like(output) if saves and isinstance(cell, LSTMCell) else output
        shares, recurrent, steps, launch = _inputs(cell, x, weights)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            triton_kernels.forward[(triton.cdiv(B, launch["ROWS"]),)](
                shares, weights.weight_ih, weights.bias_ih, recurrent, weights.bias_hh,
                update_weight, update_bias, states[0], states[-1], p_now, sums, ends,
                output, update_gate, c_at, p_at, a_at, T, B, *steps, SAVES=saves, **launch,
            )  # fmt: skip
        if saves:
            rows = _Rows.of(update_gate)
            kept = [rows.take(p, p_at), rows.take(acc, a_at)]
            if isinstance(cell, LSTMCell):
                kept.append(rows.take(start[1], c_at))
            ctx.save_for_backward(x, update_weight, update_bias, p, acc, ends, output, start[0], *weights, *rows, *kept)
            ctx.cell, ctx.padded, ctx.gate_grad_clip = cell, problem.lengths is not None, problem.gate_grad_clip
            ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
            ctx.set_materialize_grads(False)
        return output, update_gate, p_now, sums, *states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        enabled, dtype = ctx.autocast
        x, update_weight, update_bias, p, acc, ends, output, h_first, *tensors = ctx.saved_tensors
        with torch.autocast(x.device.type, dtype, enabled=enabled):
            cell, weights, rows, (p_rows, a_rows, *c_rows) = (
                ctx.cell, LayerWeights(*tensors[:4]), _Rows(*tensors[4:8]), tensors[8:]
            )  # fmt: skip
            T, B, _ = x.shape
            H = len(update_weight)
            grad_output, grad_gate, grad_p, grad_acc, *grad_states = grads
            states = [x.new_zeros(B, H) if g is None else g.contiguous().clone() for g in grad_states]
            gp, ga = (x.new_zeros(B) if g is None else g.contiguous().clone() for g in (grad_p, grad_acc))
            if grad_output is not None:
                grad_output = grad_output if grad_output.stride(2) == 1 else grad_output.contiguous()
                if ctx.padded:  # past its end a sequence's output repeats its last state
                    past = torch.arange(T, device=x.device)[:, None] >= ends
                    states[0] += torch.where(past[..., None], grad_output, 0).sum(0)
            steps_output = (0, 0) if grad_output is None else grad_output.stride()[:2]
            steps_gate = (0, 0) if grad_gate is None else grad_gate.stride()

            h_rows = rows.take(h_first, output)
            top = c_rows[0] if c_rows else h_rows
            hidden = linear(h_rows, weights.weight_hh, weights.bias_hh)
            grad_gates, grad_logit = x.new_empty(len(rows.t), 4, H), x.new_empty(len(rows.t))
            shares, recurrent, steps, launch = _inputs(cell, x, weights, backward=True)
            bound = math.inf if ctx.gate_grad_clip is None else ctx.gate_grad_clip
            triton_kernels.backward[(triton.cdiv(B, launch["ROWS"]),)](
                shares, weights.weight_ih, weights.bias_ih, recurrent, update_weight, update_bias,
                hidden, h_rows, top, p_rows, a_rows, rows.t, rows.first, rows.updates, acc, ends,
                x if grad_output is None else grad_output, x if grad_gate is None else grad_gate,
                states[0], states[-1], gp, ga, grad_gates, grad_logit, bound, B, *steps, *steps_output, *steps_gate,
                HAS_OUTPUT=grad_output is not None, HAS_GATE=grad_gate is not None, **launch,
            )  # fmt: skip

            count = len(weights.bias_ih) // H
            inputs = grad_gates[:, :count].flatten(1)  # with respect to the input's share of the gates
            states_share = inputs if isinstance(cell, LSTMCell) else grad_gates[:, [0, 1, 3]].flatten(1)
            x_rows = rows.take(torch.zeros_like(x[0]), x)
            grad_x = None
            if ctx.needs_input_grad[2]:
                grad_x = torch.zeros_like(x)
                is_update = rows.t >= 0
                grad_x[rows.t[is_update], rows.b[is_update]] = (inputs[is_update] @ weights.weight_ih).to(x.dtype)
            grad_weight_ih, grad_weight_hh = inputs.T @ x_rows, states_share[1:].T @ h_rows[:-1]
        shut = saturated(GateState(p, acc), ends)
        return (
            None, None, grad_x, grad_logit @ top, grad_logit.sum()[None],
            gp.masked_fill(shut, 0), ga.masked_fill(shut, 0), *states,
            grad_weight_ih, grad_weight_hh, inputs.sum(0), states_share.sum(0),
        )  # fmt: skip


def options(
    cell: Cell, hidden_size: int, input_size: int, batch: int, precision: str, processors: int, backward: bool
) -> dict[str, Any]:
    """How a kernel is launched for a problem, on a GPU of so many multiprocessors."""
    padded = max(triton.next_power_of_2(hidden_size), 16)
    rows = min(triton.next_power_of_2(triton.cdiv(batch, processors)), MOST_ROWS)
    held = 4 if isinstance(cell, LSTMCell) else 3  # gates, fewer where registers would be spilled
    if padded == LARGEST:
        held = 0 if precision != "bf16" else 2 if backward and isinstance(cell, LSTMCell) else held
    elif padded == LARGEST // 2 and precision == "tf32x3":
        held = 0
    chosen = {
        "H": hidden_size,
        "HP": padded,
        "D": input_size if input_size <= FUSED else 0,
        "GRU": isinstance(cell, GRUCell),
        "HELD": held,
        "PRECISION": precision,
        "ROWS": rows,
        "num_warps": WARPS,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }
    if backward:
        chosen["WINDOW"] = PLACES // rows
    return chosen


def _inputs(
    cell: Cell, x: Tensor, weights: LayerWeights, backward: bool = False
) -> tuple[Tensor, Tensor, tuple[int, int], dict[str, Any]]:
    """The inputs and the recurrent weights as the kernels want them, the inputs' strides, and how to launch."""
    B, D = x.shape[1:]
    recurrent, precision = weights.weight_hh, _precision(x.device)
    if D > FUSED:
        x = cell.input_share(x, weights)
    if precision == "bf16" and backward:  # which need not be kept in registers, that forward has to spare
        recurrent = recurrent.bfloat16()
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    launch = options(cell, recurrent.shape[1], D, B, precision, processors, backward)
    return x, recurrent, (x.stride(0), x.stride(1)), launch


def _precision(device: torch.device) -> str:
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16:
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"  # x3: as good as float32
