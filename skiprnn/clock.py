"""When the gate opens next: the update probability added up step by step, to the last bit as the reference does."""

import math
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
        todo = todo[~reached & (room[todo] > done)]
    return t + n, opened, total


def skipped_steps(p: Tensor, acc: Tensor) -> Tensor:
    """How many of the following steps do not open the gate, (B,), (B,) -> (B,) int64; ``NEVER`` if none will."""
    p, acc = p.detach(), acc.detach()
    if native.counts(p, acc) and not torch.compiler.is_compiling():
        return native.skipped_steps(p, acc)
    return _add_up(p, acc, NEVER)[0]


def advance(p: Tensor, acc: Tensor, steps: int) -> Tensor:
    """The sum after ``steps`` more steps in all of which the gate is shut, (B,), (B,) -> (B,)."""
    p, acc = p.detach(), acc.detach()
    return native.advance(p, acc, steps) if native.counts(p, acc) else _add_up(p, acc, steps)[1]


def _add_up(p: Tensor, acc: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Add p until the gate would open, or ``limit`` times: how often, (B,) int64, and the sum, (B,).

    A loop of torch operations that ``torch.export`` can trace. While the sum stays between two powers of 2, every
    addition of p adds the same, after one in which a tie may have been rounded. So most of the additions up to the next
    power are done at once, and a few rounds for each power are enough for any p.
    """
    finfo = torch.finfo(p.dtype)
    powers = p.new_tensor([2.0**k for k in range(round(math.log2(finfo.tiny)), 1)])

    def shut(steps: Tensor, acc: Tensor, p: Tensor) -> Tensor:
        return ~(_added(acc, p) > 0.5) & (steps < limit)

    def any_shut(steps: Tensor, acc: Tensor, p: Tensor, powers: Tensor) -> Tensor:
        return shut(steps, acc, p).any()

    def add(steps: Tensor, acc: Tensor, p: Tensor, powers: Tensor) -> tuple[Tensor, ...]:
        first = _added(acc, p)
        gain = _added(first, p) - first
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


def _added(acc: Tensor, p: Tensor) -> Tensor:
    return acc + torch.where(p <= 1 - acc, p, 1 - acc)
