"""When the gate opens next, however it is computed, against adding step by step."""

import numpy as np
import pytest
import torch

from skiprnn import gate

DTYPES = [torch.float32, torch.float64]


def problems(dtype):
    draws = torch.Generator().manual_seed(0)
    logits = torch.empty(500).uniform_(-8, 3, generator=draws)
    p = torch.cat([torch.sigmoid(logits), 0.5 ** torch.arange(1.0, 14), 1 / torch.arange(2.0, 60)]).to(dtype)
    acc = torch.empty(len(p)).uniform_(0, 0.5, generator=draws).to(dtype)
    acc[::2] = 0
    return p, acc


def add_step_by_step(p, acc):
    """Steps until the gate opens, by the definition, for one sequence."""
    one, half = p.dtype.type(1), p.dtype.type(0.5)
    for skipped in range(10_000):
        acc = acc + (p if p <= one - acc else one - acc)
        if acc > half:
            return skipped
    raise AssertionError("p is too small for this")


@pytest.mark.parametrize("dtype", DTYPES)
def test_skipped_steps(either_path, dtype):
    p, acc = problems(dtype)
    expected = [add_step_by_step(*pair) for pair in zip(p.numpy(), acc.numpy(), strict=True)]
    assert gate.skipped_steps(p, acc).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0.0, 0.1234567])
def test_millions_of_additions(either_path, dtype, start):
    """Small probabilities, powers of 2 and odd multiples of what rounding halves among them."""
    smallest = torch.finfo(dtype).eps if dtype == torch.float32 else 1e-6
    p = torch.tensor([3e-4, 1e-6, 2**-12, 2**-19, 5 * 2**-23, 13 * 2**-26, 2 * smallest], dtype=dtype)
    expected = []
    for value in p.numpy():
        sums = np.full(6_000_000, value)
        sums[0] = start
        expected.append(int((np.add.accumulate(sums) > 0.5).argmax()) - 1)
    assert min(expected) > 0
    assert gate.skipped_steps(p, torch.full_like(p, start)).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_gates_open_no_more(either_path, dtype):
    eps = torch.finfo(dtype).eps
    p = torch.tensor([0.0, 1e-30, eps / 64, 0.25, torch.nan], dtype=dtype)
    steps = gate.skipped_steps(p, torch.tensor([0.0, 0.3, 0.4, 0.0, 0.2], dtype=dtype))
    assert steps.tolist() == [gate.NEVER] * 3 + [2, 0]


def test_a_saturated_sum_opens_the_gate_whatever_p(either_path):
    assert gate.skipped_steps(torch.tensor([0.0, 1e-9, 0.3]), torch.tensor([0.9, 0.6, 0.51])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_advance_adds_step_by_step(either_path, dtype):
    p, acc = problems(dtype)
    p = p / 64
    expected = acc.clone()
    for _ in range(int(gate.skipped_steps(p, acc).min())):
        expected = expected + p
    steps = int(gate.skipped_steps(p, acc).min())
    assert torch.equal(gate.advance(p, acc, steps), expected)
    assert torch.equal(gate.advance(p, acc, 0), acc)


@pytest.mark.parametrize("dtype", DTYPES)
def test_advance_ends_for_any_number_of_steps(either_path, dtype):
    p, acc = torch.tensor([1e-30, 1e-9, 0.0, 1e-44], dtype=dtype), torch.tensor([0.25, 0.0, 0.4, 0.0], dtype=dtype)
    sums = gate.advance(p, acc, 10**8)
    assert sums[0] == 0.25
    assert sums[1] == pytest.approx(0.1, rel=1e-6) if dtype == torch.float64 else sums[1] <= 0.25
    assert sums[2] == acc[2]
    assert sums[3] <= 1e-30


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_clock_ends_for_values_that_no_sum_can_have(either_path, dtype):
    """A GPU is not waited for to check them, so that they get here."""
    odd = [torch.nan, torch.inf, -torch.inf, -1e30, -1.0, 0.0, 0.4, 0.9, 1.5]
    p, acc = torch.cartesian_prod(*[torch.tensor(odd, dtype=dtype)] * 2).unbind(1)
    after = acc + torch.where(p <= 1 - acc, p, 1 - acc)
    steps = gate.skipped_steps(p, acc)
    assert torch.equal(steps == 0, after > 0.5)
    assert set(steps[after.isnan()].tolist()) == {gate.NEVER}
    assert gate.advance(p, acc, 10**12).shape == acc.shape
    steps, sums = gate.count(p, acc, torch.full((len(p),), 100))
    assert torch.equal(steps == 0, after > 0.5)
    assert steps.max() <= 100
    assert torch.equal(sums[after > 0.5], after[after > 0.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_counting_to_limits_says_what_opens_or_is_left(either_path, dtype):
    p, acc = problems(dtype)
    limits = torch.arange(len(p)) % 7
    steps, sums = gate.count(p, acc, limits)
    for now, start, limit, counted, total in zip(p, acc, limits.tolist(), steps.tolist(), sums, strict=True):
        a, shut = start.clone(), 0
        while shut < limit and (after := gate.added(a, now)) <= 0.5:
            a, shut = after, shut + 1
        assert counted == shut
        assert total == (gate.added(a, now) if shut < limit else a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("least", "most"),
    [(0, 0), (0, 5), (1, 1), (3, None), (7, 7), (10, 999), (500, 501), (0, 4096), (4095, 4095), (4096, 4096)],
)
def test_bounds_keep_the_number_of_skipped_samples(dtype, least, most):
    low, high = gate.bounds_of_skips(least, most)
    logits = torch.cat([torch.tensor([-1e4, 1e4]), torch.empty(2000).uniform_(-30, 30)]).to(dtype)
    p = gate.update_probability(logits[:, None], torch.ones(1), torch.zeros(1), gate.Bounds(low, high))
    skipped = gate.skipped_steps(p, torch.zeros_like(p))
    assert skipped.min() == least
    assert most is None or 0.999 * most <= skipped.max() <= most
    assert low < high


def test_bounds_that_contradict_each_other():
    assert gate.bounds_of_skips(0, None) == gate.UNBOUNDED == (0, 1)
    for least, most in ((-1, None), (3, 2), (0, -1), (4097, None), (0, 4097)):
        message = f"0 <= min_skip <= max_skip <= 4,096 is asked for, got {least} and {most}"
        with pytest.raises(ValueError, match=message):
            gate.bounds_of_skips(least, most)
