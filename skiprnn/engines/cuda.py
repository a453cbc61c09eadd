"""The event-driven engine on a GPU, one layer of up to 128 units: the loops of ``cuda_kernels`` and what is parallel.

Forward keeps a row for each update (c, when, and the gate's numbers; h is in the output, if that is wanted). Backward
starts with one product for all rows, walks the events in one kernel, which leaves the gates' gradients of every update,
and ends with one product for each weight. Within the kernels all is float32. Products around them follow
``torch.backends.cuda.matmul.fp32_precision``, and autocast but where they repeat what forward computed.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from skiprnn import reference
from skiprnn.cells import Cell, GRUCell, GRUResetBeforeCell, LayerWeights, LSTMCell
from skiprnn.engines import cuda_kernels
from skiprnn.engines.cuda_kernels import TAKERS, Constants, Kernels
from skiprnn.gate import UNBOUNDED
from skiprnn.problem import Problem, Solution, refuse_double_backward, transformed

CELLS = (LSTMCell, GRUCell, GRUResetBeforeCell)
LARGEST = 128  # units whose recurrent weights a multiprocessor holds
FUSED = 4  # features up to which the kernels multiply the inputs themselves, instead of one product before
MOST_ROWS = 4  # sequences of a block
STEPS = 8  # of a sequence, that a block of the kernels around the loops takes
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


class _Stored(NamedTuple):
    """What forward leaves for backward: the start, and at updates what they made, in places of every step."""

    p: Tensor  # (B,)
    acc: Tensor  # (B,)
    h: Tensor  # (B, H)
    c: Tensor  # (B, H)
    gates_at: Tensor  # (2, T, B), p, and the sum that opened, or CUT
    h_at: Tensor  # (T, B, H)
    c_at: Tensor  # (T, B, H), of a GRU h_at
    steps: Tensor  # (T + 1, B) int32, how many updates there were, and from there their steps


class _Rows(NamedTuple):
    """The same, a row for each sequence's first state and one for the state after each of its updates, in order."""

    t: Tensor  # (R,) int32, the update's step; -1 for a first state
    p: Tensor  # (R,)
    a: Tensor  # (R,)
    h: Tensor  # (R, H)
    c: Tensor  # (R, H), of a GRU h
    x: Tensor  # (R, D + 1), the sample used and a one, or (R, D)
    first: Tensor  # (B,) int64, row of the first state
    updates: Tensor  # (B,) int32, how many

    @classmethod
    def of(cls, stored: _Stored, x: Tensor, cell: Cell, kernels: Kernels, opened_always: bool) -> Self:
        """Here the host waits for the device, to know how many updates there were."""
        (T, B, D), H, updates = x.shape, stored.h.shape[1], stored.steps[0]
        counted = [T] * B if opened_always else updates.tolist()
        rows = sum(counted) + B
        is_gru, ones = not isinstance(cell, LSTMCell), int(D <= FUSED)
        p, a = x.new_empty(2, rows)
        h = x.new_empty(rows, H)
        taken = cls(
            torch.empty(rows, dtype=torch.int32, device=x.device), p, a, h, h if is_gru else torch.empty_like(h),
            x.new_empty(rows, D + ones), torch.empty(B, dtype=torch.int64, device=x.device), updates,
        )  # fmt: skip
        kernels.launch("take", (B, max(counted) // STEPS + 1), TAKERS, 0, (
            *stored, x, taken.first, *taken[:6], T, B, D, ones, *x.stride()[:2], stored.h.stride(0), stored.c.stride(0),
        ))  # fmt: skip
        return taken


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
            left = _Stored(p, acc, h, c, x.new_empty(2, T, B), stored, c_at, steps)
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
                kept = _Rows.of(left, x, cell, kernels, opens_always) if is_large else left
                ctx.has_shares = 4 * shares.numel() <= MOST_KEPT
                made = shares if ctx.has_shares else x
                ctx.save_for_backward(x, made, update_weight, update_bias, lengths, *weights, *kept)
                ctx.opened_always, ctx.draws, ctx.bounds = opens_always, draws is not None, problem.bounds
                ctx.kind, ctx.cell, ctx.gate_grad_clip = type(kept), cell, problem.gate_grad_clip
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
            if isinstance(kept, _Stored):
                rows = _Rows.of(kept, x, ctx.cell, kernels, ctx.opened_always)
            with _autocast(x.device.type, None):  # as the kernel computed it
                hidden, reset, reset_used = _states_share(rows, weights, constants, kernels, shares, lengths)
            R = len(rows.t)
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

            states_share, inputs = _of_shares(grad_gates, constants)
            grad_x = None
            if ctx.needs_input_grad[3]:
                b = torch.arange(B, device=x.device).repeat_interleave(rows.updates + 1, output_size=len(rows.t))
                of_steps = x.new_zeros(T + 1, B, D)  # the first is of first states: zeros
                of_steps[rows.t + 1, b] = (inputs @ weights.weight_ih).to(x.dtype)
                grad_x = of_steps[1:]
            by_weights = _by_weights(states_share, inputs, rows, reset_used, D)
            grad_update_weight = grad_logit @ rows.c
        return (
            None, None, None, grad_x, grad_update_weight, grad_logit.sum()[None], before_p, before_acc, *before,
            *by_weights,
        )  # fmt: skip


def _states_share(
    rows: _Rows, weights: LayerWeights, constants: Constants, kernels: Kernels, shares: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The states' share of the gates in all rows. Of a GRU that resets before, r's and z's; n's at all steps; and r⊙h
    of the updates, as rows.
    """
    H = rows.h.shape[1]
    if not constants.reset_before:
        return torch.addmm(weights.bias_hh, rows.h, weights.weight_hh.T), None, None
    (T, B), of_n = shares.shape[:2], slice(2 * H, None)
    hidden = torch.addmm(weights.bias_hh[: 2 * H], rows.h, weights.weight_hh[: 2 * H].T)
    states, used = hidden.new_empty(T * B, H), torch.empty_like(rows.h)
    kernels.launch("reset", (B, T // STEPS + 1), TAKERS, 0, (
        shares, weights.weight_ih, weights.bias_ih, hidden, rows.h, rows.t, rows.first, rows.updates, lengths,
        states, used, T, B, *shares.stride()[:2],
    ))  # fmt: skip
    return hidden, torch.addmm(weights.bias_hh[of_n], states, weights.weight_hh[of_n].T), used


def _of_shares(grad_gates: Tensor, constants: Constants) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the state's share of the gates and to the input's, (R, N*H).

    They are the same, but of a GRU that resets after: its last two are n's, the state's and the input's.
    """
    of_state = grad_gates[:, : constants.gates].flatten(1)
    if grad_gates.shape[1] == constants.gates:
        return of_state, of_state
    return of_state, torch.cat([grad_gates[:, :2], grad_gates[:, 3:]], 1).flatten(1)


def _by_weights(
    of_state: Tensor, of_input: Tensor, rows: _Rows, reset_used: Tensor | None, features: int
) -> tuple[Tensor, ...]:
    """Gradients by weight_ih, weight_hh, bias_ih and bias_hh."""
    both, H = of_input.T @ rows.x, rows.h.shape[1]
    bias_ih = both[:, features] if features <= FUSED else of_input.sum(0)
    by_h = of_state if reset_used is None else of_state[:, : 2 * H]
    weight_hh = by_h[1:].T @ rows.h[:-1]  # a row's update began from the row before
    if reset_used is not None:
        weight_hh = torch.cat([weight_hh, of_state[:, 2 * H :].T @ reset_used])
    return both[:, :features], weight_hh, bias_ih, bias_ih if of_state is of_input else of_state.sum(0)


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
