"""Losses on the number of updates: add one to the task's loss.

Each takes ``update_gate`` as the modules return it, and gives a scalar, the mean over the batch of a cost per sequence:
(T, B), or (B, T) with ``batch_first=True``; packed; or (T,) of one sequence. Of a bidirectional network it has a last
dimension of 2, and a sequence costs what both directions use; of one sequence alone, pass ``update_gate[:, None]``.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

Gate = Tensor | PackedSequence

NEAR = 0.1  # usage is near its target, within so much of it
GROWTH = 1.02  # of a cost, each step, while usage is not near
LOWERED, RAISED = 0.95, 1.1  # a target times this where a metric holds, or does not


class UsageCost:
    """λ for a share of the samples: positive where a batch uses more, negative where it uses fewer.

    It is proportional to what usage is off, up to a tenth of the target, and grows while that is more.

    Args:
        target: the share of the samples that is to be used, 0 to 1.
        largest: λ where usage is a tenth off, to begin with.

    Attributes:
        target: which may be changed.
        largest: as it is by now, a scalar tensor.

    Raises:
        ValueError: the target lies outside of 0..1, or λ is not positive.
    """

    def __init__(self, target: float, largest: float = 1e-5) -> None:
        if not 0 < target <= 1:
            raise ValueError(f"target must be a share of the samples, above 0 and up to 1, got {target}")
        if not largest > 0:
            raise ValueError(f"a cost that is found must begin above 0, got {largest}")
        self.target = target
        self.largest = torch.tensor(largest, dtype=torch.float64)

    def cost_per_sample(self, usage: Tensor) -> Tensor:
        """λ of a training step whose batch uses such a share of its samples; a scalar, computed where that lies."""
        off = (usage.detach() / self.target - 1) / NEAR
        self.largest = torch.where(off.abs() > 1, GROWTH, 1.0) * self.largest.to(usage.device)
        return (self.largest * off.clamp(-1, 1)).to(usage.dtype)


class MetricCost(UsageCost):
    """λ for as few samples as keep a metric: the share aimed at falls while it holds, and rises where it does not.

    Until it holds for the first time, λ is 0.

    Args:
        target: the share aimed at, where training goes on; None: it has not held yet.
        largest: as for ``UsageCost``.

    Raises:
        ValueError: as ``UsageCost``.
    """

    def __init__(self, target: float | None = None, largest: float = 1e-5) -> None:
        super().__init__(1.0 if target is None else target, largest)
        self.has_held = target is not None

    def cost_per_sample(self, usage: Tensor) -> Tensor:
        return super().cost_per_sample(usage) if self.has_held else usage.new_zeros(())

    def note(self, holds: bool, usage: float) -> None:
        """Set the target after an evaluation that found the metric as good as it is to be, or not, at such a usage."""
        if not self.has_held:
            self.target, self.has_held = usage, holds
        if self.has_held:
            self.target = min(self.target * (LOWERED if holds else RAISED), 1.0)


def budget_loss(update_gate: Gate, cost_per_sample: float | Tensor, *, batch_first: bool = False) -> Tensor:
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


def used_cost(update_gate: Gate, weights: Gate, *, batch_first: bool = False) -> Tensor:
    """What the updates of each sequence cost where samples have prices: Σ_t w_t u_t.

    Args:
        update_gate: (T, B) gates, or (B, T); packed; or (T,) of one sequence.
        weights: the price of each sample, in the form of ``update_gate``; or (T,), the same of all sequences.
        batch_first: ``update_gate`` is (B, T).

    Returns:
        (B,), or () of one sequence.

    Raises:
        ValueError: the prices have another shape than the gates.
    """
    gate = _time_major(update_gate, batch_first)
    price = _time_major(weights, batch_first)
    shape = gate.shape[: min(gate.dim(), 2)]
    if price.shape not in (shape, shape[:1]):
        raise ValueError(
            f"weights must have the shape of the gates, {tuple(shape)} with time first, or ({len(gate)},), got "
            f"{tuple(price.shape)}"
        )
    return used_samples(gate * price.to(gate).reshape(*price.shape, *[1] * (gate.dim() - price.dim())))


def weighted_budget_loss(
    update_gate: Gate, cost_per_sample: float | Tensor, weights: Gate, *, batch_first: bool = False
) -> Tensor:
    """A budget in which samples have prices, as where one is dearer to measure: λ Σ_t w_t u_t.

    Args:
        update_gate, weights, batch_first: as for ``used_cost``.
        cost_per_sample: λ, the cost of using a sample of price 1.

    Returns:
        The mean cost of a sequence, a scalar.

    Raises:
        ValueError: the prices have another shape than the gates.
    """
    return cost_per_sample * used_cost(update_gate, weights, batch_first=batch_first).mean()


def _time_major(update_gate: Gate, batch_first: bool) -> Tensor:
    if isinstance(update_gate, PackedSequence):
        return pad_packed_sequence(update_gate)[0]
    return update_gate.transpose(0, 1) if batch_first and update_gate.dim() > 1 else update_gate
