"""The compiled engine as operators of torch, which ``torch.compile`` and ``torch.export`` take as they are.

A program that was exported with them needs ``import skiprnn`` before it is loaded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skiprnn.engines import native
from skiprnn.gate import Bounds
from skiprnn.problem import Problem, Solution


def why_not(problem: Problem) -> str | None:
    """Why this engine cannot run a problem, or should not; None if it can."""
    if not torch.compiler.is_compiling():
        return "nothing is traced"
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()  # where 2.11 says both
    if exporting and isinstance(problem.x.shape[0], int):
        return "so many steps are written out in torch's own operations, for others than torch to read"
    if problem.draws is not None:
        return "its gate does not draw"
    return native.unable(problem)


def run(problem: Problem) -> Solution:
    """The same function as ``reference.run``."""
    problem, kind = problem.widened(), native.KINDS[type(problem.cell)]
    shape = kind, len(problem.layers), problem.gate_grad_clip, problem.every_step, *problem.bounds, native.rounding()
    given = list(problem.tensors()), problem.lengths, *shape, problem.differentiable
    _, _, *computed = torch.ops.skiprnn.forward(*given)
    return native.solution(computed)


def _problem(
    tensors: Sequence[Tensor], lengths: Tensor | None, kind: int, layers: int, bound: float | None, every_step: bool,
    low: float, high: float,
) -> Problem:  # fmt: skip
    each: list[Any] = [None] * layers
    rest = (lengths, bound, every_step, Bounds(low, high))
    return Problem(native.CELLS[kind], each, None, None, None, each, None, *rest).with_tensors(tensors)  # type: ignore[arg-type]


@torch.library.custom_op("skiprnn::forward", mutates_args=())
def _forward(
    tensors: list[Tensor], lengths: Tensor | None, kind: int, layers: int, bound: float | None, every_step: bool,
    low: float, high: float, rounded: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    problem = _problem(tensors, lengths, kind, layers, bound, every_step, low, high)
    if keep:
        tape = native.empty_tape(problem)
        return [tape, *native.forward(problem, native.packed(problem, rounded=rounded), tape)]
    return [problem.x.new_empty(0), *native.forward(problem, native.packed(problem, rounded=rounded), None)]


@_forward.register_fake
def _(
    tensors: list[Tensor], lengths: Tensor | None, kind: int, layers: int, bound: float | None, every_step: bool,
    low: float, high: float, rounded: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    problem = _problem(tensors, lengths, kind, layers, bound, every_step, low, high)
    x, H = problem.x, problem.update_weight.shape[0]
    T, B, _ = x.shape
    states = [x.new_empty(layers, B, H) for _ in range(problem.cell.num_states)]
    output = x.new_empty(T, B, H) if every_step else x.new_empty(0)
    ends = x.new_empty(B, dtype=torch.int64)
    return [
        x.new_empty(native.tape_floats(problem) if keep else 0),
        ends,
        output,
        x.new_empty(T, B),
        x.new_empty(B),
        x.new_empty(B),
        *states,
    ]


@torch.library.custom_op("skiprnn::backward", mutates_args=())
def _backward(
    tensors: list[Tensor], lengths: Tensor | None, kind: int, layers: int, bound: float | None, every_step: bool,
    low: float, high: float, rounded: bool, ends: Tensor, tape: Tensor, grads: list[Tensor | None], needs_x: bool,
) -> list[Tensor]:  # fmt: skip
    problem = _problem(tensors, lengths, kind, layers, bound, every_step, low, high)
    stack = native.packed(problem, rounded=rounded, training=True)
    grad_x, *others = native.backward(problem, stack, ends, tape, grads, needs_x=needs_x)
    grad_x = tensors[0].new_empty(0) if grad_x is None else grad_x
    return [grad_x, *(g.clone() for g in others if g is not None)]  # of its own, as an operator's results must be


@_backward.register_fake
def _(
    tensors: list[Tensor], lengths: Tensor | None, kind: int, layers: int, bound: float | None, every_step: bool,
    low: float, high: float, rounded: bool, ends: Tensor, tape: Tensor, grads: list[Tensor | None], needs_x: bool,
) -> list[Tensor]:  # fmt: skip
    x, *others = tensors
    return [x.new_empty(x.shape if needs_x else 0), *(tensor.new_empty(tensor.shape) for tensor in others)]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    tensors, lengths, *shape, _ = inputs
    tape, ends, *_ = output
    ctx.shape, ctx.has_lengths = shape, lengths is not None
    ctx.save_for_backward(tape, ends, *([] if lengths is None else [lengths]), *tensors)


def _go_back(ctx, grads):  # type: ignore[no-untyped-def]
    tape, ends, *tensors = ctx.saved_tensors
    lengths = tensors.pop(0) if ctx.has_lengths else None
    needs_x = ctx.needs_input_grad[0][0]
    grad_x, *others = torch.ops.skiprnn.backward(tensors, lengths, *ctx.shape, ends, tape, list(grads[2:]), needs_x)
    return [grad_x if needs_x else None, *others], *[None] * 9


_forward.register_autograd(_go_back, setup_context=_keep)
