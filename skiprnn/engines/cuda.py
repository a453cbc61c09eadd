"""The event-driven engine on a GPU, one layer of up to 128 units: the loops of ``cuda_kernels`` and what is parallel.

Forward keeps a row for each update (c, when, and the gate's numbers; h is in the output, if that is wanted). Backward
starts with one product for all rows, walks the events in one kernel, which leaves the gates' gradients of every update,
and ends with one product for each weight: ``cuda_rows``. Within the kernels all is float32. Products around them follow
``torch.backends.cuda.matmul.fp32_precision``, and autocast but where they repeat what forward computed.

A step may be captured as a CUDA graph (``torch.cuda.graph``).
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from skiprnn import reference
from skiprnn.cells import Cell, GRUCell, GRUResetBeforeCell, LayerWeights, LSTMCell
from skiprnn.engines import cuda_kernels
from skiprnn.engines.cuda_kernels import FUSED, STEPS, TAKERS, Constants, Kernels
from skiprnn.engines.cuda_rows import Products, Rows, Stored
from skiprnn.gate import UNBOUNDED
from skiprnn.problem import Problem, Solution, refuse_double_backward, transformed

CELLS = (LSTMCell, GRUCell, GRUResetBeforeCell)
LARGEST = 128  # units whose recurrent weights a multiprocessor holds
MOST_ROWS = 4  # sequences of a block
LONGEST = 65_535 * STEPS - 1  # steps: so many blocks there may be beside each other
OLDEST = (7, 5)  # GPUs, by compute capability
MOST_KEPT = 2**28  # bytes that forward leaves as it stored them, lest the host wait for it
RESERVED = 28 * 1024  # bytes, more than what the kernels share without being asked
EMULATED: Any = None  # what runs the kernels on the CPU, for tests: Constants -> Kernels


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem; None if it can."""
    if torch.compiler.is_compiling():
        return "it cannot be traced"
    if len(problem.x) > LONGEST:
        return f"it runs up to {LONGEST:,} steps, not {len(problem.x):,}"
    size, tensors = (len(problem.layers), len(problem.update_weight)), problem.widened().tensors()
    return transformed() or unfit(problem.cell, *size, tensors)


def unfit(cell: Cell, num_layers: int, hidden_size: int, tensors: Sequence[Tensor]) -> str | None:
    """Why this engine cannot run a stack on such tensors; None if it can."""
    if type(cell) not in CELLS:
        return f"it has no {type(cell).__name__}, only the LSTM and the GRU"
    if num_layers != 1:
        return f"it runs one layer, not {num_layers}"
    if hidden_size > LARGEST:
        return f"it runs up to {LARGEST} units, not {hidden_size}"
    if wrong := {tensor.dtype for tensor in tensors} - {torch.float32}:
        return f"it computes float32 tensors, not {', '.join(sorted(map(str, wrong)))}"
    device, *other = {tensor.device for tensor in tensors}
    if other:  # of whose tensors the kernels would take the addresses
        return f"it computes tensors of one device, not of {', '.join(sorted(map(str, (device, *other))))}"
    lacking = None if EMULATED is not None and device.type == "cpu" else unfit_device(device)
    if lacking is None and not most_rows(cell, hidden_size, device)[0]:
        lacking = "the GPU's multiprocessors have too little shared memory for so many units"
    return lacking


@lru_cache
def unfit_device(device: torch.device) -> str | None:
    """Why kernels cannot be compiled for a device, or run there; None if they can."""
    if lacking := unfit_gpu(device, OLDEST):
        return lacking
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "it needs the package cuda-bindings"
    return None


def unfit_gpu(device: torch.device, oldest: tuple[int, int]) -> str | None:
    """Why a device is no GPU of NVIDIA's of some compute capability or more; None if it is."""
    if device.type != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if torch.version.hip is not None:
        return "it was made for NVIDIA's GPUs"
    if torch.cuda.get_device_capability(device) < oldest:
        return f"it needs a GPU of compute capability {oldest[0]}.{oldest[1]} or more"
    return None


@lru_cache
def most_rows(cell: Cell, hidden_size: int, device: torch.device) -> tuple[int, bool]:
    """How many sequences a block may own, 1, 2, 4, or none, and whether frugally, for a multiprocessor's memory."""
    if device.type == "cpu":
        return MOST_ROWS, False
    properties: Any = torch.cuda.get_device_properties(device)
    most = properties.shared_memory_per_block_optin - RESERVED
    for frugal, rows in itertools.product((False, True), (MOST_ROWS, 2, 1)):
        constants = _constants(cell, hidden_size, FUSED, rows, frugal=frugal)
        if max(map(constants.shared, "FB")) <= most:
            return rows, frugal
    return 0, False


def run(problem: Problem, opens_always: bool = False) -> Solution:
    """The same function as ``reference.run``; told that the gate opens at every step, it need not ask the device."""
    if not problem.x.shape[0] or not problem.x.shape[1]:
        return reference.run(problem)
    problem = problem.widened()
    tensors = problem.tensors()
    saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    given = problem, saves, opens_always and problem.lengths is None
    return Solution.of_tensors(problem, _CudaEvents.apply(*given, *tensors))


class _CudaEvents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, saves: bool, opens_always: bool, *_: Tensor) -> tuple[Tensor, ...]:
        cell, x, update_bias, every = problem.cell, problem.x, problem.update_bias, problem.every_step
        T, B, D = x.shape
        x = x if x.stride(2) == 1 else x.contiguous()
        lengths = None if problem.lengths is None else problem.ends()
        draws = None if problem.draws is None else problem.draws.contiguous()
        h, c = (_rows_dense(problem.states[0][k]) for k in (0, -1))
        weights = LayerWeights(*(weight.contiguous() for weight in problem.layers[0]))
        update_weight = problem.update_weight.contiguous()
        p, acc = (tensor.contiguous() for tensor in problem.gate)
        H, is_lstm = len(update_weight), isinstance(cell, LSTMCell)
        h_end, p_end, acc_end = x.new_empty(B, H), torch.empty_like(p), torch.empty_like(acc)
        c_end = x.new_empty(B, H) if is_lstm else h_end
        stored = x.new_empty(T if every or saves else 0, B, H)
        update_gate = x.new_zeros(T, B)
        until = torch.empty(T + 1, B, dtype=torch.int32, device=x.device) if every else None
        c_at, left = stored, None
        if saves:
            c_at = torch.empty_like(stored) if is_lstm else stored
            steps = torch.empty(T + 1, B, dtype=torch.int32, device=x.device)
            left = Stored(p, acc, h, c, x.new_empty(2, T, B), stored, c_at, steps)
        shares = _widened(cell.input_share(x, weights)) if D > FUSED else x
        at_updates = (None,) * 3 if left is None else (left.c_at, left.gates_at, left.steps)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            constants, kernels = _kernels(cell, H, D, shares, draws is not None, problem.bounds != UNBOUNDED)
            kernels.launch("forward", (-(-B // constants.rows),), constants.block, constants.shared("F"), (
                shares, weights.weight_ih, weights.bias_ih, weights.weight_hh, weights.bias_hh,
                update_weight, update_bias, h, c, p, acc, h_end, c_end, p_end, acc_end, lengths,
                stored if every or saves else None, update_gate, until, *at_updates, draws, *map(float, problem.bounds),
                saves, T, B, *shares.stride()[:2], h.stride(0), c.stride(0),
            ))  # fmt: skip
            if every:
                kernels.launch("fill", (B, -(-T // STEPS)), TAKERS, 0, (
                    stored, h, update_gate, until, T, B, h.stride(0)
                ))  # fmt: skip
            if left is not None:
                is_large = 4 * (stored.numel() + c_at.numel()) > MOST_KEPT
                ctx.opened_always, ctx.captured = opens_always, not opens_always and _captures(x)
                kept = Rows.of(left, x, cell, kernels, _updates(ctx, left)) if is_large else left
                ctx.has_shares = 4 * shares.numel() <= MOST_KEPT
                made = shares if ctx.has_shares else x
                ctx.save_for_backward(x, made, update_weight, update_bias, lengths, *weights, *kept)
                ctx.kind, ctx.cell, ctx.gate_grad_clip = type(kept), cell, problem.gate_grad_clip
                ctx.draws, ctx.bounds = draws is not None, problem.bounds
                kind = x.device.type
                ctx.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
                ctx.set_materialize_grads(False)
        output = stored if every else stored.new_empty(0, B, H)
        return output, update_gate, p_end, acc_end, *((h_end, c_end) if is_lstm else (h_end,))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        x, shares, update_weight, update_bias, lengths, *tensors = ctx.saved_tensors
        weights, kept, is_lstm = LayerWeights(*tensors[:4]), ctx.kind(*tensors[4:]), isinstance(ctx.cell, LSTMCell)
        with _autocast(x.device.type, ctx.autocast), torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            T, B, D = x.shape
            H = len(update_weight)
            grad_output, grad_gate, grad_p, grad_acc, grad_h, grad_c = (*grads, None)[:6]
            grad_output = None if grad_output is None else _rows_dense(grad_output)
            if grad_output is not None and lengths is not None:  # past its end an output repeats the last state
                past = torch.arange(T, device=x.device)[:, None] >= lengths
                later = torch.where(past[..., None], grad_output, 0).sum(0)
                grad_h = later if grad_h is None else grad_h + later
            grads_end = [None if grad is None else grad.contiguous() for grad in (grad_h, grad_c, grad_p, grad_acc)]
            if D > FUSED and not ctx.has_shares:
                shares = _widened(ctx.cell.input_share(x, weights))
            constants, kernels = _kernels(ctx.cell, H, D, shares, ctx.draws, ctx.bounds != UNBOUNDED)
            rows = kept
            if isinstance(kept, Stored):
                rows = Rows.of(kept, x, ctx.cell, kernels, _updates(ctx, kept))
            products, R = Products(rows, kernels, constants, not ctx.captured), len(rows.t)
            with _autocast(x.device.type, None):  # as the kernel computed it
                hidden, reset, reset_used = products.states_share(weights, shares, lengths)
            grad_gates, grad_logit = x.new_empty(R, 3 if constants.reset_before else 4, H), x.new_empty(R)
            before_p, before_acc = x.new_empty(2, B).unbind()
            before = [x.new_empty(B, H) for _ in range(1 + is_lstm)]
            bound = math.inf if ctx.gate_grad_clip is None else float(ctx.gate_grad_clip)
            kernels.launch("backward", (-(-B // constants.rows),), constants.block, constants.shared("B"), (
                shares, weights.weight_ih, weights.bias_ih, weights.weight_hh, update_weight, update_bias,
                hidden, reset, rows.h, rows.c, rows.p, rows.a, rows.t, rows.first, rows.updates, lengths,
                grad_output, grad_gate, *grads_end, before[0], before[-1], before_p, before_acc,
                grad_gates, grad_logit, *map(float, ctx.bounds), bound, T, B, *shares.stride()[:2],
                *((0, 0) if grad_output is None else grad_output.stride()[:2]),
                *((0, 0) if grad_gate is None else grad_gate.stride()),
            ))  # fmt: skip

            grad_x = of_input = None
            if ctx.needs_input_grad[3] or products.counted:
                of_input = products.of_input(grad_gates)
            if of_input is not None and ctx.needs_input_grad[3]:
                of_steps = x.new_zeros(T + 1, B, D)  # the first is of first states: zeros
                of_steps[rows.t + 1, rows.sequences()] = (of_input @ weights.weight_ih).to(x.dtype)
                grad_x = of_steps[1:]
            by_weights = products.by_weights(grad_gates, of_input, reset_used, D)
            by_gate = products.by_gate(grad_logit)
        return None, None, None, grad_x, *by_gate, before_p, before_acc, *before, *by_weights


def _captures(x: Tensor) -> bool:
    """Whether this is being captured as a CUDA graph, so that the host must not wait for the device."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _updates(ctx: Any, stored: Stored) -> list[int] | None:
    """How many there were of each sequence, for which the host waits; None if it must not."""
    if ctx.captured:
        return None
    steps, batch = stored.gates_at.shape[1:]
    return [steps] * batch if ctx.opened_always else stored.steps[0].tolist()


def _kernels(
    cell: Cell, units: int, features: int, shares: Tensor, draws: bool, bounded: bool
) -> tuple[Constants, Kernels]:
    """Those for a problem. A block has no more sequences than it must for all blocks to run beside each other."""
    batch, device = shares.shape[1], shares.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count if shares.is_cuda else 2
    wanted = 1 << (-(-batch // processors) - 1).bit_length()
    most, frugal = most_rows(cell, units, device)
    fused = features if features <= FUSED else 0
    others = {"draws": draws, "bounded": bounded, "narrow": shares.dtype == torch.bfloat16, "frugal": frugal}
    constants = _constants(cell, units, fused, min(wanted, most), **others)
    return constants, cuda_kernels.kernels(constants, device) if shares.is_cuda else EMULATED(constants)


def _constants(cell: Cell, units: int, features: int, rows: int, **others: bool) -> Constants:
    reset_before = isinstance(cell, GRUResetBeforeCell)
    return Constants(units, features, isinstance(cell, GRUCell) or reset_before, rows, reset_before, **others)


def _autocast(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to a type, or none, whatever is set where this is called; where nothing changes it costs nothing."""
    if dtype is None and not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, dtype, enabled=dtype is not None)


def _rows_dense(tensor: Tensor) -> Tensor:
    """A tensor whose last dimension is dense; others may be repeated, as a state that all sequences begin with."""
    return tensor if tensor.dim() == 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _widened(shares: Tensor) -> Tensor:
    """Shares of the gates as the kernels read them."""
    return shares if shares.dtype in (torch.float32, torch.bfloat16) else shares.float()
