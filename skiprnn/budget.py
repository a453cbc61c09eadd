"""Losses on the number of updates: add one to the task's loss.

Each takes ``update_gate`` as the modules return it, (T, B), or (B, T) with ``batch_first=True``, and gives a scalar:
the mean over the batch of a cost per sequence.
"""

import torch
from torch import Tensor


def budget_loss(update_gate: Tensor, cost_per_sample: float, *, batch_first: bool = False) -> Tensor:
    """The paper's budget: λ Σ_t u_t.

    Args:
        update_gate: (T, B) gates, or (B, T).
        cost_per_sample: λ, the cost of using one sample.
        batch_first: ``update_gate`` is (B, T).

    Returns:
        The mean cost of a sequence, a scalar.

    Source: Campos et al., ICLR 2018, section 3.2.
    """
    return cost_per_sample * used_samples(update_gate, batch_first=batch_first).mean()


def target_budget_loss(
    update_gate: Tensor, target: float | Tensor, weight: float, *, norm: str = "l1", batch_first: bool = False
) -> Tensor:
    """Distance of the number of updates from a target: weight·|Σ_t u_t - target| (L1) or its square (L2).

    Args:
        update_gate: (T, B) gates, or (B, T).
        target: updates wanted of each sequence, one number or (B,).
        weight: the loss of a distance of 1.
        norm: ``"l1"`` or ``"l2"``.
        batch_first: ``update_gate`` is (B, T).

    Returns:
        The mean loss of a sequence, a scalar.

    Raises:
        ValueError: an unknown norm.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
    distance = used_samples(update_gate, batch_first=batch_first) - target
    return weight * (distance.abs() if norm == "l1" else distance.square()).mean()


def growing_budget_loss(
    update_gate: Tensor, cost_per_sample: float, growth: float, *, batch_first: bool = False
) -> Tensor:
    """A budget that asks for early decisions: λ Σ_t (1 + growth·t) u_t, with t = 0 for the first sample.

    Args:
        update_gate: (T, B) gates, or (B, T).
        cost_per_sample: λ, the cost of using the first sample.
        growth: how much dearer each step makes a sample, in units of λ.
        batch_first: ``update_gate`` is (B, T).

    Returns:
        The mean cost of a sequence, a scalar.
    """
    steps = update_gate.shape[1 if batch_first else 0]
    price = 1 + growth * torch.arange(steps, device=update_gate.device, dtype=update_gate.dtype)
    weighted = update_gate * (price if batch_first else price[:, None])
    return cost_per_sample * used_samples(weighted, batch_first=batch_first).mean()


def used_samples(update_gate: Tensor, *, batch_first: bool = False) -> Tensor:
    """The number of updates of each sequence, (T, B) -> (B,), or (B, T) -> (B,)."""
    return update_gate.sum(1 if batch_first else 0)
