"""Losses on the number of updates."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from skiprnn import (
    MetricCost,
    SkipGRU,
    SkipLSTM,
    UsageCost,
    budget_loss,
    growing_budget_loss,
    target_budget_loss,
    used_cost,
    used_samples,
    weighted_budget_loss,
)

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
    budget_loss(gate, 0.1, batch_first=False).backward()
    torch.testing.assert_close(gate.grad, torch.full((3, 2), 0.05))


WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize("batch_first", [False, True])
def test_samples_that_have_prices(batch_first):
    gate = (GATE.T if batch_first else GATE).clone().requires_grad_()
    weights = WEIGHTS.T if batch_first else WEIGHTS
    assert used_cost(gate, weights, batch_first=batch_first).tolist() == [6, 12]
    loss = weighted_budget_loss(gate, 0.1, weights, batch_first=batch_first)
    assert loss.item() == pytest.approx(0.9)
    torch.testing.assert_close(torch.autograd.grad(loss, gate)[0], 0.1 * weights / 2)
    loss = weighted_budget_loss(gate, 0.1, torch.tensor([1.0, 1.5, 2.0]), batch_first=batch_first)
    other = growing_budget_loss(gate, 0.1, 0.5, batch_first=batch_first)
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(*(torch.autograd.grad(one, gate)[0] for one in (loss, other)))


def test_prices_of_every_form():
    assert used_cost(GATE[:, 0], WEIGHTS[:, 0]) == 6
    packed = [pack_padded_sequence(tensor, [2, 3], enforce_sorted=False) for tensor in (GATE, WEIGHTS)]
    assert used_cost(*packed).tolist() == [1, 12]
    assert used_cost(packed[0], torch.tensor([1.0, 3.0, 5.0])).tolist() == [1, 9]
    both_ways = torch.stack([GATE, 1 - GATE], dim=-1)
    assert used_cost(both_ways, WEIGHTS, batch_first=False).tolist() == [9, 12]
    assert used_cost(both_ways, WEIGHTS[:, 0], batch_first=False).tolist() == [9, 9]
    for weights in (torch.ones(2), torch.ones(2, 3), torch.ones(3, 1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"weights must have the shape of the gates, \(3, 2\) with time first, or"):
            used_cost(GATE, weights, batch_first=False)


def test_what_is_no_gate():
    lstm, x = SkipLSTM(2, 3).as_lstm(), torch.randn(4, 2, 2)
    remedy = "of a module made by as_lstm() or as_gru() pass its gate after the call: lstm.update_gate"
    cases = (
        (lstm, "a DropIn"), (lstm.update_gate, "None, before the module's first call"), (lstm(x), "a tuple")
    )  # fmt: skip
    for given, shown in cases:
        with pytest.raises(TypeError) as refused:
            budget_loss(given, 1e-3)
        assert str(refused.value) == f"update_gate must be what a Skip RNN returned, or its gate, got {shown}; {remedy}"
    budget_loss(lstm.update_gate, 1e-3, batch_first=False).backward()


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be 'l1' or 'l2', got 'l3'"):
        target_budget_loss(GATE, 1.0, 1.0, norm="l3", batch_first=False)


def test_a_cost_that_keeps_a_metric():
    cost = MetricCost(2e-5)
    assert cost.cost_per_sample == 2e-5
    for holds, expected in ((False, 2e-5), (True, 2.3e-5), (True, 2.645e-5), (False, 2e-5), (True, 2.3e-5)):
        cost.note(holds)
        assert cost.cost_per_sample == pytest.approx(expected)


def test_a_cost_that_leads_to_a_share_of_the_samples():
    cost = UsageCost(0.2, 1e-3)
    for usage, expected in ((0.3, 1.02e-3), (0.21, 0.51e-3), (0.19, -0.51e-3), (0.2, 0), (0.1, -1.0404e-3)):
        assert cost.cost_per_sample(torch.tensor(usage)).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_costs_that_cannot_be():
    for make in (lambda: MetricCost(0.0), lambda: UsageCost(0.5, -1.0)):
        with pytest.raises(ValueError, match="a cost that is found must begin above 0"):
            make()
    with pytest.raises(ValueError, match="target must be a share of the samples, above 0 and up to 1, got"):
        UsageCost(1.5)


@pytest.mark.parametrize("target", [0.2, 0.6])
def test_a_share_of_the_samples_is_found(target):
    torch.manual_seed(0)
    rnn, cost = SkipGRU(1, 4), UsageCost(target, 1e-3)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=1e-2)
    shares = []
    for _ in range(400):
        x = torch.randn(20, 16, 1)
        output, _, gate = rnn(x)
        loss = (output[..., 0] - x.cumsum(0)[..., 0].tanh()).square().mean()
        loss = loss + budget_loss(gate, cost.cost_per_sample(gate.mean()), batch_first=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(gate.mean().item())
    assert sum(shares[-50:]) / 50 == pytest.approx(target, rel=0.1)
