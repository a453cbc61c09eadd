"""The gate that draws: the same in every engine, with the probability that it says, and rounding after training."""

import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM, Stream
from tests.problems import assert_same, build, run

SHAPE = (40, 7, 2, 9)  # T, B, D, H


def drawing(name, layers, bias, engine, dtype):
    rnn = build(name, (*SHAPE, layers), bias, engine, dtype)
    rnn.gate = "bernoulli"
    return rnn


def ran(rnn, **options):
    x = torch.randn(SHAPE[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(5)
    return run(rnn, x, **options)


@pytest.mark.parametrize("lengths", [None, [40, 0, 7, 40, 13, 1, 29]], ids=["whole", "padded"])
@pytest.mark.parametrize("bias", [0.0, -1.5, -4.0])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "compiled"])
def test_events_equal_the_reference(dtype, name, layers, bias, lengths):
    ours = ran(drawing(name, layers, bias, "events", dtype), lengths=lengths)
    theirs = ran(drawing(name, layers, bias, "reference", torch.float64), lengths=lengths)
    assert_same(ours, theirs, tolerance=1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "compiled"])
def test_sums_that_are_cut_at_one_pass_no_gradient(dtype, clip, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, 0.95))  # 0.4 + 0.4 + 0.2
    both = [drawing("lstm", 1, -0.4, "events", dtype), drawing("lstm", 1, -0.4, "reference", torch.float64)]
    for rnn in both:
        rnn.gate_grad_clip = clip
        with torch.no_grad():
            rnn.update_weight.mul_(0.1)
    ours, theirs = map(ran, both)
    assert 0.3 < theirs[0].update_gate.mean() < 0.4  # every third step
    assert_same(ours, theirs, tolerance=1e-11 if dtype == torch.float64 else 1e-5)


def test_a_state_goes_on_and_its_sum_may_be_cut():
    both = [drawing("gru", 1, -1.0, "events", torch.float64), drawing("gru", 1, -1.0, "reference", torch.float64)]
    state = both[0].initial_state(SHAPE[1])
    state = state._replace(
        update_prob=torch.linspace(0.05, 0.45, SHAPE[1], dtype=torch.float64),
        cum_update_prob=torch.linspace(0.9, 0.3, SHAPE[1], dtype=torch.float64),
    )
    assert_same(*(ran(rnn, state=state) for rnn in both), tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "compiled"])
def test_it_waits_as_long_as_its_law_says(dtype):
    p = 0.1
    rnn = SkipLSTM(1, 2, gate="bernoulli", dtype=dtype)
    with torch.no_grad():
        rnn.update_weight.zero_()
        rnn.update_bias.fill_(torch.logit(torch.tensor(p)))
        gate = rnn(torch.zeros(400, 200, 1, dtype=dtype)).update_gate
    waits = torch.cat([row.nonzero().flatten().diff() for row in gate.T])
    shut = torch.cumprod(1 - torch.arange(1, 11) * p, 0)  # P(no update in n steps)
    law = torch.cat([torch.ones(1), shut[:-1]]) - shut
    found = torch.bincount(waits, minlength=12)[1:11] / len(waits)
    assert waits.max() <= 10
    assert ((found - law).abs() < 5 * (law / len(waits)).sqrt() + 1e-3).all()


def test_it_draws_in_training_and_rounds_afterwards():
    x = torch.randn(60, 4, 2)
    draws, rounds = SkipLSTM(2, 5, update_bias=-1.0, gate="bernoulli"), SkipLSTM(2, 5, update_bias=-1.0)
    rounds.load_state_dict(draws.state_dict())
    torch.manual_seed(1)
    first = draws(x).update_gate
    assert not torch.equal(first, draws(x).update_gate)
    torch.manual_seed(1)
    assert torch.equal(first, draws(x).update_gate)
    assert first[0].all()  # the first sample is always used
    draws.eval()
    assert torch.equal(draws(x).update_gate, rounds(x).update_gate)
    assert torch.equal(draws(x).output, rounds(x).output)
    assert "gate='bernoulli'" in repr(draws)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="unknown gate 'coin'; choose round or bernoulli"):
        SkipGRU(2, 3, gate="coin")
    with pytest.raises(ValueError, match="min_skip and max_skip are for gate='round'"):
        SkipGRU(2, 3, gate="bernoulli", max_skip=4)
    rnn = SkipLSTM(2, 3, gate="bernoulli")
    with pytest.raises(ValueError, match=r"call eval\(\), then it rounds"):
        rnn.step(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"call eval\(\), then it rounds"):
        Stream(rnn)
    assert Stream(rnn.eval()).push(torch.zeros(2))
