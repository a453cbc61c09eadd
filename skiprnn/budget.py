"""Losses on the number of updates: add one to the task's loss.

Each takes ``update_gate`` as the modules return it, and gives a scalar, the mean over the batch of a cost per sequence:
(T, B), or (B, T) with ``batch_first=True``; packed; or (T,) of one sequence. Of a bidirectional network it has a last
dimension of 2, and a sequence costs what both directions use; of one sequence alone, pass ``update_gate[:, None]``.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

Gate = Tensor | PackedSequence


def budget_loss(update_gate: Gate, cost_per_sample: float, *, batch_first: bool = False) -> Tensor:
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
    update_gate: Gate, target: float | Tensor, weight: float, *, norm: str = "l1", batch_first: bool = False
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
    update_gate: Gate, cost_per_sample: float, growth: float, *, batch_first: bool = False
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
    gate = _time_major(update_gate, batch_first)
    price = 1 + growth * torch.arange(len(gate), device=gate.device, dtype=gate.dtype)
    return cost_per_sample * used_samples((gate.movedim(0, -1) * price).movedim(-1, 0)).mean()


def used_samples(update_gate: Gate, *, batch_first: bool = False) -> Tensor:
    """The number of updates of each sequence, (T, B) -> (B,), (B, T) -> (B,), or (T,) -> ()."""
    gate = _time_major(update_gate, batch_first)
    return gate.sum((0, 2)) if gate.dim() == 3 else gate.sum(0)


def _time_major(update_gate: Gate, batch_first: bool) -> Tensor:
    if isinstance(update_gate, PackedSequence):
        return pad_packed_sequence(update_gate)[0]
    return update_gate.transpose(0, 1) if batch_first and update_gate.dim() > 1 else update_gate
