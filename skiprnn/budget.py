"""Losses on the number of updates: add one to the task's loss.

Each takes what a network returned, ``budget_loss(rnn(x), 1e-4)``, and gives a scalar, the mean over the batch of a cost
per sequence. Or it takes the gate alone: packed; (T,) of one sequence; or, of a batch, (T, B) with
``batch_first=False`` and (B, T) with ``batch_first=True``, which must be said, as it cannot be seen. Of a bidirectional
network a gate has a last dimension of 2, and a sequence costs what both directions use; of one sequence, (T, 2) is
taken for a batch, so pass ``gate.sum(-1)``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from skiprnn.stack import BatchFirstOutput, SkipRNNOutput

Gate = SkipRNNOutput | Tensor | PackedSequence

NEAR = 0.1  # usage is near its target, within so much of it
GROWTH = 1.02  # of a cost, each step, while usage is not near
RAISED, LOWERED = 1.15, 0.6  # λ times this where a metric holds, or does not


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


class MetricCost:
    """λ for as few samples as keep a metric: raised while it holds, lowered where it does not.

    Args:
        lowest: λ to begin with, which it never falls below.

    Attributes:
        cost_per_sample: λ of a training step.

    Raises:
        ValueError: ``lowest`` is not positive.
    """

    def __init__(self, lowest: float = 1e-5) -> None:
        if not lowest > 0:
            raise ValueError(f"a cost that is found must begin above 0, got {lowest}")
        self.lowest = self.cost_per_sample = lowest

    def note(self, holds: bool) -> None:
        """Go on after an evaluation that found the metric as good as it is to be, or not."""
        self.cost_per_sample = max(self.cost_per_sample * (RAISED if holds else LOWERED), self.lowest)


def budget_loss(update_gate: Gate, cost_per_sample: float | Tensor, *, batch_first: bool | None = None) -> Tensor:
    """The paper's budget: λ Σ_t u_t.

    Args:
        update_gate: what a network returned, or its gate, (T, B) or (B, T).
        cost_per_sample: λ, the cost of using one sample.
        batch_first: of a batch's gate, whether it is (B, T).

    Returns:
        The mean cost of a sequence, a scalar.

    Raises:
        TypeError: a batch's gate without ``batch_first``, or what is no gate.
        ValueError: ``batch_first`` contradicts what the network returned.

    Source: Campos et al., ICLR 2018, section 3.2.
    """
    return cost_per_sample * used_samples(update_gate, batch_first=batch_first).mean()


def target_budget_loss(
    update_gate: Gate, target: float | Tensor, weight: float, *, norm: str = "l1", batch_first: bool | None = None
) -> Tensor:
    """Distance of the number of updates from a target: weight·|Σ_t u_t - target| (L1) or its square (L2).

    Args:
        update_gate: what a network returned, or its gate, (T, B) or (B, T).
        target: updates wanted of each sequence, one number or (B,).
        weight: the loss of a distance of 1.
        norm: ``"l1"`` or ``"l2"``.
        batch_first: of a batch's gate, whether it is (B, T).

    Returns:
        The mean loss of a sequence, a scalar.

    Raises:
        TypeError, ValueError: as ``budget_loss``; an unknown norm.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
    distance = used_samples(update_gate, batch_first=batch_first) - target
    return weight * (distance.abs() if norm == "l1" else distance.square()).mean()


def growing_budget_loss(
    update_gate: Gate, cost_per_sample: float, growth: float, *, batch_first: bool | None = None
) -> Tensor:
    """A budget that asks for early decisions: λ Σ_t (1 + growth·t) u_t, with t = 0 for the first sample.

    Args:
        update_gate: what a network returned, or its gate, (T, B) or (B, T).
        cost_per_sample: λ, the cost of using the first sample.
        growth: how much dearer each step makes a sample, in units of λ.
        batch_first: of a batch's gate, whether it is (B, T).

    Returns:
        The mean cost of a sequence, a scalar.

    Raises:
        TypeError, ValueError: as ``budget_loss``.
    """
    gate = _time_major(update_gate, batch_first)
    price = 1 + growth * torch.arange(len(gate), device=gate.device, dtype=gate.dtype)
    return cost_per_sample * _sums((gate.movedim(0, -1) * price).movedim(-1, 0)).mean()


def used_samples(update_gate: Gate, *, batch_first: bool | None = None) -> Tensor:
    """The number of updates of each sequence, (B,); of one sequence, ().

    Args:
        update_gate: what a network returned, or its gate, (T, B) or (B, T).
        batch_first: of a batch's gate, whether it is (B, T).

    Raises:
        TypeError, ValueError: as ``budget_loss``.
    """
    return _sums(_time_major(update_gate, batch_first))


def used_cost(update_gate: Gate, weights: Tensor | PackedSequence, *, batch_first: bool | None = None) -> Tensor:
    """What the updates of each sequence cost where samples have prices: Σ_t w_t u_t.

    Args:
        update_gate: what a network returned, or its gate, (T, B) or (B, T).
        weights: the price of each sample, in the form of the gate, without its last dimension where that is of both
            directions; or (T,), the same of all sequences.
        batch_first: of a batch's gate, whether it is (B, T).

    Returns:
        (B,), or () of one sequence.

    Raises:
        TypeError, ValueError: as ``budget_loss``; the prices have another shape than the gates.
    """
    gate = _time_major(update_gate, batch_first)
    if isinstance(update_gate, SkipRNNOutput):
        batch_first = isinstance(update_gate, BatchFirstOutput)
    price = _time_major(weights, batch_first)
    shape = gate.shape[: min(gate.dim(), 2)]
    if price.shape not in (shape, shape[:1]):
        raise ValueError(
            f"weights must have the shape of the gates, {tuple(shape)} with time first, or ({len(gate)},), got "
            f"{tuple(price.shape)}"
        )
    return _sums(gate * price.to(gate).reshape(*price.shape, *[1] * (gate.dim() - price.dim())))


def weighted_budget_loss(
    update_gate: Gate,
    cost_per_sample: float | Tensor,
    weights: Tensor | PackedSequence,
    *,
    batch_first: bool | None = None,
) -> Tensor:
    """A budget in which samples have prices, as where one is dearer to measure: λ Σ_t w_t u_t.

    Args:
        update_gate, weights, batch_first: as for ``used_cost``.
        cost_per_sample: λ, the cost of using a sample of price 1.

    Returns:
        The mean cost of a sequence, a scalar.

    Raises:
        TypeError, ValueError: as ``used_cost``.
    """
    return cost_per_sample * used_cost(update_gate, weights, batch_first=batch_first).mean()


def _sums(gate: Tensor) -> Tensor:
    return gate.sum((0, 2)) if gate.dim() == 3 else gate.sum(0)


def _time_major(given: Gate, batch_first: bool | None) -> Tensor:
    """Gates of (T, B), (T, B, 2) or (T,)."""
    gate: Any = given
    if isinstance(given, SkipRNNOutput):
        found = isinstance(given, BatchFirstOutput)
        if batch_first not in (None, found):
            raise ValueError(f"batch_first={batch_first}, but the network has batch_first={found}; leave it out")
        gate, batch_first = given.update_gate, found
        if given.state[0].dim() == 2 and gate.dim() == 2:  # of one sequence, both directions: (T, 2)
            gate = gate.sum(1)
    if isinstance(gate, PackedSequence):
        return pad_packed_sequence(gate)[0]
    if not isinstance(gate, Tensor):
        what = "None, before the module's first call" if gate is None else f"a {type(gate).__name__}"
        raise TypeError(
            f"update_gate must be what a Skip RNN returned, or its gate, got {what}; of a module made by as_lstm() or "
            "as_gru() pass its gate after the call: lstm.update_gate"
        )
    steps: Tensor = gate
    if steps.dim() < 2:
        return steps
    if batch_first is None:
        raise TypeError(
            f"is a gate of shape {tuple(steps.shape)} (T, B) or (B, T)? Pass all that the network returned, or say "
            "batch_first=False or True"
        )
    return steps.transpose(0, 1) if batch_first else steps
