"""Losses on the number of updates."""

import pytest
import torch

from skiprnn import budget_loss, growing_budget_loss, target_budget_loss, used_samples

GATE = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])  # (T, B) = (3, 2); uses 2 and 3 samples


@pytest.mark.parametrize("batch_first", [False, True])
def test_values(batch_first):
    gate = GATE.T if batch_first else GATE
    options = {"batch_first": batch_first}
    assert used_samples(gate, **options).tolist() == [2, 3]
    assert budget_loss(gate, 0.1, **options).item() == pytest.approx(0.25)
    assert target_budget_loss(gate, 1.0, 0.1, **options).item() == pytest.approx(0.15)
    assert target_budget_loss(gate, 1.0, 0.1, norm="l2", **options).item() == pytest.approx(0.25)
    assert target_budget_loss(gate, torch.tensor([2.0, 2.0]), 1.0, **options).item() == pytest.approx(0.5)
    assert growing_budget_loss(gate, 0.1, 0.5, **options).item() == pytest.approx(0.1 * (1 + 2 + 1 + 1.5 + 2) / 2)


def test_gradient_of_the_budget_is_lambda_over_the_batch():
    gate = GATE.clone().requires_grad_()
    budget_loss(gate, 0.1).backward()
    torch.testing.assert_close(gate.grad, torch.full((3, 2), 0.05))


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be 'l1' or 'l2', got 'l3'"):
        target_budget_loss(GATE, 1.0, 1.0, norm="l3")
