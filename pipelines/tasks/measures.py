"""What losses and metrics of several answers are made of: steps of a sequence, F1 and average precision."""

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of a task, which the host would wait to see copied to a GPU if that were done in each step."""
    with torch.inference_mode(False):  # they are for training too
        return torch.tensor(values, dtype=dtype, device=device)


def is_step(target: Tensor, lengths: Tensor | None) -> Tensor:
    """Which steps of (B, T, ...) belong to the sequences: (B, T), bool."""
    if lengths is None:
        return torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
    return torch.arange(target.shape[1], device=target.device) < lengths[:, None]


def mean_of_steps(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence's mean over its steps: (B, T) -> (B,)."""
    there = is_step(values, lengths)
    return values.where(there, 0).sum(1) / there.sum(1).clamp(min=1)


def sums_of_steps(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence's sum over its steps, and how many they are: (B, T) -> (B, 2)."""
    there = is_step(values, lengths)
    return torch.stack([values.where(there, 0).sum(1), there.sum(1).to(values.dtype)], dim=1)


def items(values: Tensor, lengths: Tensor | None, each_step: bool) -> Tensor:
    """Sequences, or with ``each_step`` the steps of all of them end to end: (B, ...) or (B, T, ...) -> (M, ...)."""
    return values[is_step(values, lengths)] if each_step else values


def hits(said: Tensor, true: Tensor) -> Tensor:
    """What F1 is made of, of 0 and 1 each: hits, false alarms and misses, (..., K) -> (..., 3 K)."""
    said, true = said.float(), true.float()
    return torch.cat([said * true, said * (1 - true), (1 - said) * true], dim=-1)


def macro_f1(counts: Tensor) -> Tensor:
    """The mean of the labels' F1 = 2 hits / (2 hits + false alarms + misses), from the sums of ``hits``: (3 K,).

    Labels that neither are nor are said anywhere do not count; where there is no other it is 0.
    """
    right, false, missed = counts.double().chunk(3)
    whole = 2 * right + false + missed
    return (2 * right / whole.clamp(min=1)).sum() / (whole > 0).sum().clamp(min=1)


def mean_average_precision(scores: Tensor, true: Tensor) -> float:
    """The mean over labels of Σ (R_n - R_n-1) P_n, n running through the different scores from the highest on.

    Args:
        scores: (M, K), higher where a label is likelier.
        true: (M, K) of 0 and 1.

    Returns:
        A share; labels that occur nowhere do not count, and where there is no other it is NaN.
    """
    found = []
    for column, truth in zip(scores.T, true.T.double(), strict=True):
        if not truth.any():
            continue
        ordered, order = column.sort(descending=True, stable=True)
        last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])  # of equal scores
        right, place = truth[order].cumsum(0)[last], torch.arange(1, len(ordered) + 1)[last]
        found.append(((right.diff(prepend=right.new_zeros(1)) / truth.sum()) * (right / place)).sum())
    return float(torch.stack(found).mean()) if found else float("nan")
