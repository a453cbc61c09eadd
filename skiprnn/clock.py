"""When the gate opens next: the update probability added up step by step, to the last bit as the reference does."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skiprnn import native

Clock = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

NEVER = torch.iinfo(torch.int64).max  # steps to an update that does not come
_CHUNK = 32_768  # sums in memory at a time


def next_update(p: Floats, acc: Floats, t: Clock, end: Clock) -> tuple[Clock, Floats, Floats]:
    """When the gate opens next.

    Args:
        p, acc: (A,) update probability and its sum after step t.
        t: (A,) the current step.
        end: (A,) the length of each sequence.

    Returns:
        The step of the next update, at least ``end`` if there is none; the sum at that step; and the sum after the
        sequence's last step if there is none, else 0.
    """
    room = end - t - 1
    n, opened, total = room + 1, np.zeros_like(acc), acc.copy()  # n: steps to the next update
    todo, done = np.flatnonzero(room > 0), 0
    while len(todo):
        slowest = np.nan_to_num(p[todo], nan=1.0).min()
        width = int(min(0.5 / max(slowest, 1e-9) + 2, room[todo].max() - done, max(_CHUNK // len(todo), 1)))
        sums = np.repeat(p[todo][None], width + 1, axis=0)
        sums[0] = total[todo]
        sums[1] = np.where(sums[1] <= 1 - sums[0], sums[1], 1 - sums[0])
        np.add.accumulate(sums, axis=0, out=sums)
        over = sums[1:] > 0.5
        step = np.where(over.any(0), over.argmax(0) + 1, width + 1)
        reached = step <= np.minimum(width, room[todo] - done)
        columns = np.arange(len(todo))
        hit = todo[reached]
        n[hit] = done + step[reached]
        opened[hit] = sums[step[reached], columns[reached]]
        total[todo] = sums[np.minimum(width, room[todo] - done), columns]
        total[hit] = 0
        done += width
        growing = sums[-1] != sums[-2]  # p may be too small to be added any more
        todo = todo[~reached & growing & (room[todo] > done)]
    return t + n, opened, total


def skipped_steps(p: Tensor, acc: Tensor) -> Tensor:
    """How many of the following steps do not open the gate, (B,), (B,) -> (B,) int64; ``NEVER`` if none will."""
    p, acc = p.detach(), acc.detach()
    if torch.compiler.is_compiling():
        return _traced_skipped_steps(p, acc)
    if native.counts(p):
        return native.skipped_steps(p, acc)
    end = np.full(p.shape, NEVER - 1)
    steps, _, _ = next_update(p.cpu().numpy(), acc.cpu().numpy(), np.zeros_like(end), end)
    return torch.from_numpy(np.where(steps < end, steps - 1, NEVER)).to(p.device)


def advance(p: Tensor, acc: Tensor, steps: int) -> Tensor:
    """The sum after ``steps`` more steps in all of which the gate is shut, (B,), (B,) -> (B,)."""
    start = np.full(p.shape, -1)
    _, _, sums = next_update(p.detach().cpu().numpy(), acc.detach().cpu().numpy(), start, np.full(p.shape, steps))
    return torch.from_numpy(sums).to(p)


def _traced_skipped_steps(p: Tensor, acc: Tensor) -> Tensor:
    """The same as a loop of torch operations that ``torch.export`` can trace.

    While the sum stays between two powers of 2, every addition of p adds the same. So all but one of the additions up
    to the next power are done at once, and a few dozen rounds are enough for any p.
    """
    never = p <= torch.finfo(p.dtype).eps / 8  # a sum between 0.25 and 0.5 would be rounded to itself
    powers = torch.exp2(torch.arange(-64.0, 1.0)).to(p)

    def shut(acc: Tensor, p: Tensor, never: Tensor) -> Tensor:
        return (_added(acc, p) <= 0.5) & ~never

    def any_shut(steps: Tensor, acc: Tensor, p: Tensor, never: Tensor, powers: Tensor) -> Tensor:
        return shut(acc, p, never).any()

    def add(steps: Tensor, acc: Tensor, p: Tensor, never: Tensor, powers: Tensor) -> tuple[Tensor, ...]:
        first = _added(acc, p)
        gain = _added(first, p) - first
        before, after = ((v[:, None] >= powers).sum(-1) for v in (acc, first))
        room = powers[after.clamp(max=len(powers) - 2)].clamp(max=0.5) - first
        many = torch.where((before == after) & (gain > 0), (room / gain).floor() - 1, 0).clamp(min=0)
        many = torch.where(shut(acc, p, never), many, -1)  # -1: leave the sum as it is
        acc = torch.where(many < 0, acc, first + many * gain)
        return steps + 1 + many.long(), acc, p.clone(), never.clone(), powers.clone()

    start = (torch.zeros_like(p, dtype=torch.int64), acc.clone(), p.clone(), never, powers)
    steps, acc, *_ = torch.while_loop(any_shut, add, start)  # type: ignore[no-untyped-call]
    return torch.where(shut(acc, p, torch.zeros_like(never)), NEVER, steps)


def _added(acc: Tensor, p: Tensor) -> Tensor:
    return acc + torch.where(p <= 1 - acc, p, 1 - acc)
