"""The generators against their definition."""

import math

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.seeds import generator
from pipelines.tasks import Adding, Sine


@pytest.mark.parametrize("length", [10, 50, 73])
def test_adding_follows_its_definition(length):
    drawn = Adding(length).sample(20_000, generator(0))
    x, y = drawn.x, drawn.y
    assert x.shape == (20_000, length, 2)
    assert x.dtype == y.dtype == torch.float32
    values, markers = x.unbind(-1)
    assert -0.5 <= values.min() < -0.499
    assert 0.499 < values.max() < 0.5
    assert set(markers.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(markers.sum(1), torch.full((20_000,), 2.0))
    first, second = markers.nonzero()[:, 1].reshape(-1, 2).unbind(1)
    assert set(first.tolist()) == set(range(length // 10))
    assert set(second.tolist()) == set(range(length // 2, length))
    counts = torch.bincount(second)[length // 2 :].float()
    assert counts.std() < 5 * counts.mean().sqrt()
    torch.testing.assert_close(y, (values * markers).sum(1))
    assert y.var().item() == pytest.approx(1 / 6, rel=0.05)


def test_adding_is_solved_at_a_hundredth_of_the_target_variance():
    assert Adding().solved(1 / 600)
    assert not Adding().solved(1 / 599)
    prediction, target = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 2.0])
    assert Adding().scores(prediction, target).mean() == 0.5
    assert Adding().loss(prediction, target) == 0.25


def period_of(wave, sampling_period):
    """The period of each sampled sine, from x_{t-1} + x_{t+1} = 2 cos(ω) x_t by least squares."""
    wave = wave.double()
    middle = wave[:, 1:-1]
    cosine = ((wave[:, :-2] + wave[:, 2:]) * middle).sum(1) / (2 * middle.square().sum(1))
    return 2 * math.pi * sampling_period / torch.arccos(cosine.clamp(-1, 1))


@pytest.mark.parametrize(("sampling_period", "length"), [(1.0, 100), (0.5, 200), (0.25, 400)])
def test_sine_follows_its_definition(sampling_period, length):
    drawn = Sine(sampling_period=sampling_period).sample(10_000, generator(0))
    assert drawn.x.shape == (10_000, length, 1)
    assert drawn.x.dtype == torch.float32
    assert drawn.y.dtype == torch.int64
    assert torch.bincount(drawn.y).tolist() == [5_000, 5_000]
    assert torch.bincount(drawn.y[:256]).tolist() == [128, 128]
    assert drawn.x.abs().max() <= 1
    period = period_of(drawn.x[..., 0], sampling_period)
    target, distractor = period[drawn.y == 0], period[drawn.y == 1]
    assert 4.99 < target.min() < 5.01
    assert 5.99 < target.max() < 6.01
    aliased = 0.05 / 98 if sampling_period == 1.0 else 0  # sampled each ms, periods of 1.2 to 1.25 ms look like 6 to 5
    inside = (distractor > 5.01) & (distractor < 5.99)
    assert aliased / 3 <= inside.float().mean() <= 3 * aliased
    assert 99 < distractor.max() < 101
    if sampling_period < 1.0:
        assert (distractor < 5).float().mean().item() == pytest.approx(4 / 98, abs=0.01)
    starts = drawn.x[drawn.y == 0, 0, 0]
    assert starts.mean().abs() < 0.05  # the shift is uniform over a period
    assert starts.var().item() == pytest.approx(0.5, abs=0.03)


def test_sine_is_solved_above_99_percent():
    assert Sine().solved(0.9901)
    assert not Sine().solved(0.99)


def test_impossible_parameters():
    with pytest.raises(SkipRNNError, match="at least 10 steps"):
        Adding(length=9)
    with pytest.raises(SkipRNNError, match="sampling period"):
        Sine(sampling_period=0.0)
    with pytest.raises(SkipRNNError, match="sampling period"):
        Sine(sampling_period=2.0, duration=1.0)


def test_parameters_survive_the_attributes():
    task = Sine(sampling_period=0.5, duration=80.0)
    assert Sine.from_attributes({**task.parameters(), "seed": 1}) == task
