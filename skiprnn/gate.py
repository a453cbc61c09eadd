"""The update gate: when it opens, how it is differentiated, and how long it stays shut.

    a = acc + min(p, 1 - acc)   u = binarize(a)   p̃ = sigmoid(w_p · top + b_p), or within bounds

u is 1 where a > 0.5, or, in a Bernoulli gate, where a > r, r ~ U[0, 1) drawn anew for every step: with probability a.

Since p is added up from 0 after an update, its bounds are bounds of how many samples are skipped.

The sum is made step by step, to the last bit, however many steps are counted at once.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, sigmoid

from skiprnn import compiled

MOST_SKIPS = 4096  # up to where float32 tells n skips from n + 1
NEVER = torch.iinfo(torch.int64).max  # steps to an update that does not come
_WINDOW = 32_768  # sums in memory at a time

Steps = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


class Bounds(NamedTuple):
    """Of the update probability."""

    low: float = 0.0
    high: float = 1.0


UNBOUNDED = Bounds()
_MARGIN = 2.0**-16


class GateState(NamedTuple):
    """What the update gate carries from step to step."""

    update_prob: Tensor  # (B,)
    cum_update_prob: Tensor  # (B,)


def added(acc: Tensor, p: Tensor) -> Tensor:
    """The next step's sum."""
    return acc + torch.where(p <= 1 - acc, p, 1 - acc)


def binarize(a: Tensor, gate_grad_clip: float | None = None, draw: Tensor | None = None) -> Tensor:
    """1 where a > 0.5, else 0 (a tie rounds to even), with the straight-through gradient, du/da = 1, clamped or not.

    ``draw``: what a is compared with instead, (B,).
    """
    if draw is None:
        hard = (a > 0.5).to(a.dtype)
        u = a + (hard - a).detach()  # exactly 0 or 1: 1 - a is exact for a in (0.5, 1]
    else:
        u = (a > draw).to(a.dtype) + (a - a.detach())
    if gate_grad_clip is None or not torch.is_grad_enabled():
        return u
    return _ClampedGradient.apply(u, gate_grad_clip)  # type: ignore[no-any-return]


def update_probability(top: Tensor, update_weight: Tensor, update_bias: Tensor, bounds: Bounds) -> Tensor:
    """low + (high - low) · sigmoid(w_p · top + b_p), (B, H) -> (B,).

    A sum, since autocast would run a matmul in half precision.
    """
    dtype = torch.promote_types(top.dtype, torch.float32)
    p = sigmoid((top.to(dtype) * update_weight.to(dtype)).sum(-1) + update_bias.to(dtype))
    return p if bounds == UNBOUNDED else bounds.low + (bounds.high - bounds.low) * p


def bounds_of_skips(min_skip: int, max_skip: int | None) -> Bounds:
    """Where the update probability must lie for the gate to skip so many samples in a row, at least and at most.

    Raises:
        ValueError: the numbers contradict each other, or are larger than float32 counts well.
    """
    if not 0 <= min_skip <= (MOST_SKIPS if max_skip is None else max_skip) <= MOST_SKIPS:
        raise ValueError(f"0 <= min_skip <= max_skip <= {MOST_SKIPS:,} is asked for, got {min_skip} and {max_skip}")
    low, high = UNBOUNDED
    if max_skip is not None:
        low = 0.5 / (max_skip + 1)  # so many make more than 0.5, also as float32 adds them
        while max(_skips(low)) > max_skip:
            low *= 1 + _MARGIN
    if min_skip:
        high = 0.5 / min_skip * (1 - _MARGIN)
        while min(_skips(high)) < min_skip:
            high *= 1 - _MARGIN
        high *= 1 - _MARGIN  # low + (high - low) is rounded
    return Bounds(low, high)


def _skips(p: float) -> list[int]:
    """Samples that the gate skips after an update with a probability, in float32 and float64."""
    probabilities = (torch.tensor([p], dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64))
    return [int(skipped_steps(p, torch.zeros_like(p))) for p in probabilities]


def saturated(gate: GateState, ends: Tensor) -> Tensor:
    """Whether the first sum is 1 whatever p and acc, so that they get no gradient: only states made by hand are so."""
    return (gate.update_prob > 1 - gate.cum_update_prob) & (ends > 0)


def skipped_steps(p: Tensor, acc: Tensor) -> Tensor:
    """How many of the following steps do not open the gate, (B,), (B,) -> (B,) int64; ``NEVER`` if none will."""
    return count(p.detach(), acc.detach(), NEVER)[0]


def advance(p: Tensor, acc: Tensor, steps: int) -> Tensor:
    """The sum after ``steps`` more steps in all of which the gate is shut, (B,), (B,) -> (B,)."""
    return count(p.detach(), acc.detach(), steps)[1]


def sums_of(p: Tensor, acc: Tensor, steps: int) -> Tensor:
    """The sums of one sequence while its gate is shut, after 0, 1, ... and ``steps`` steps, (1,), (1,) -> (steps + 1,).

    Beside ``advance`` this is for a gate that draws, whose sum may pass 0.5.
    """
    added_up = torch.cat([acc.detach(), p.detach().expand(steps)]).cpu().numpy()
    return torch.from_numpy(np.add.accumulate(added_up)).clamp(max=1).to(acc)  # as added() cuts them


def drawn_steps(p: Tensor, acc: Tensor, draws: Tensor) -> int:
    """How many of the following steps do not open a gate that draws, of one sequence.

    Args:
        p, acc: (1,), constant probability and the sum so far.
        draws: (n,), on the CPU, what the sums of the following steps are compared with.

    Returns:
        0 to n, where none of them does.
    """
    sums = sums_of(p, acc, len(draws))[1:].cpu()
    opens = (~(sums <= draws)).nonzero()  # NaN opens it, as everywhere
    return int(opens[0]) if len(opens) else len(draws)


def count(p: Tensor, acc: Tensor, limit: Tensor | int) -> tuple[Tensor, Tensor]:
    """How long the gate stays shut.

    Args:
        p, acc: (B,), constant probability and the sum so far.
        limit: how many steps to look at, one number, or (B,) int64 where all lie on the CPU.

    Returns:
        How many of them do not open it, (B,) int64; and the sum which then opens it, or where none of them does that
        after the last, (B,).
    """
    if not torch.compiler.is_compiling() and compiled.counts(p, acc):
        return compiled.count(p, acc, limit)
    if isinstance(limit, Tensor):
        steps_and_sums = _count_in_windows(p.numpy(), acc.numpy(), limit.numpy())
        return torch.from_numpy(steps_and_sums[0]), torch.from_numpy(steps_and_sums[1])
    steps, sums = _shut(p, acc, limit)
    return steps, torch.where(steps < limit, added(sums, p), sums)


def _count_in_windows(p: Floats, acc: Floats, limit: Steps) -> tuple[Steps, Floats]:
    """``count`` for limits that can be reached, on the host: some additions of all sequences at a time."""
    steps, sums = limit.copy(), acc.copy()
    todo, done = np.flatnonzero(limit > 0), 0
    while len(todo):
        slowest = np.nan_to_num(p[todo], nan=1.0).min()
        width = int(min(0.5 / max(slowest, 1e-9) + 2, limit[todo].max() - done, max(_WINDOW // len(todo), 1)))
        added_up = np.repeat(p[todo][None], width + 1, axis=0)
        added_up[0] = sums[todo]
        added_up[1] = np.where(added_up[1] <= 1 - added_up[0], added_up[1], 1 - added_up[0])
        with np.errstate(invalid="ignore"):  # states made by hand may hold anything
            np.add.accumulate(added_up, axis=0, out=added_up)
        over, left = added_up[1:] > 0.5, np.minimum(width, limit[todo] - done)
        shut = np.where(over.any(0), over.argmax(0), width)
        opens = shut < left
        sums[todo] = added_up[np.where(opens, shut + 1, left), np.arange(len(todo))]
        steps[todo[opens]] = done + shut[opens]
        done += width
        todo = todo[~opens & (limit[todo] > done)]
    return steps, sums


def _shut(p: Tensor, acc: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """How many steps do not open the gate, at most ``limit``, and the sum after them.

    A loop of torch operations that ``torch.export`` can trace. While the sum stays between two powers of 2, every
    addition of p adds the same, after one in which a tie may have been rounded. So most of the additions up to the next
    power are done at once, and a few rounds for each power are enough for any p.
    """
    finfo = torch.finfo(p.dtype)
    powers = p.new_tensor([2.0**k for k in range(round(math.log2(finfo.tiny)), 1)])

    def shut(steps: Tensor, acc: Tensor, p: Tensor) -> Tensor:
        return ~(added(acc, p) > 0.5) & (steps < limit)

    def any_shut(steps: Tensor, acc: Tensor, p: Tensor, powers: Tensor) -> Tensor:
        return shut(steps, acc, p).any()

    def add(steps: Tensor, acc: Tensor, p: Tensor, powers: Tensor) -> tuple[Tensor, ...]:
        first = added(acc, p)
        gain = added(first, p) - first
        before, after = ((v[:, None] >= powers).sum(-1) for v in (acc, first))  # between which powers
        room = powers[after.clamp(max=len(powers) - 1)].clamp(max=0.5) - first
        more = torch.where((before == after) & (gain > 0), (room / gain).floor() - 1, 0).clamp(min=0).long()
        # p is too small to be added any more; or the sum is of no use, as NaN is, and the loop has to end all the same
        more = torch.where(~(gain > 0) | (p < finfo.tiny), limit, more)
        more = torch.minimum(more, limit - steps - 1)
        going = shut(steps, acc, p)
        acc = torch.where(going, first + more * gain, acc)
        return steps + torch.where(going, 1 + more, 0), acc, p.clone(), powers.clone()

    start = (torch.zeros_like(p, dtype=torch.int64), acc.clone(), p.clone(), powers)
    loop = torch.while_loop if torch.compiler.is_compiling() else _while_loop
    steps, acc, *_ = loop(any_shut, add, start)
    return steps, acc


def _while_loop(go_on: Any, body: Any, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    while go_on(*carried):
        carried = body(*carried)
    return carried


class _ClampedGradient(torch.autograd.Function):
    """The identity, whose gradient is clamped, going back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, bound: float) -> Tensor:
        return u.view_as(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.bound = inputs[1]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clamp(-ctx.bound, ctx.bound), None
