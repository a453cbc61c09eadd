"""The gate that draws: the same in every engine, with the probability that it says, and rounding after training."""

import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM, SkipRNN, Stream
from skiprnn.cells import GRU, GRU_RESET_BEFORE, LAYER_NORM_GRU, LAYER_NORM_LSTM, LSTM, RNN, RNN_RELU
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


@pytest.mark.pairwise
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


CELLS = {
    "lstm": LSTM,
    "gru": GRU,
    "gru_reset_before": GRU_RESET_BEFORE,
    "rnn": RNN,
    "rnn_relu": RNN_RELU,
    "layer_norm_lstm": LAYER_NORM_LSTM,
    "layer_norm_gru": LAYER_NORM_GRU,
}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("gate", ["round", "bernoulli"])
@pytest.mark.parametrize("name", CELLS)
def test_events_equal_the_reference_with_every_cell_and_gate_from_a_state_on(name, gate, layers):
    found, x = [], torch.randn(15, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for engine in ("events", "reference"):
        torch.manual_seed(3)
        rnn = SkipRNN(
            CELLS[name], 2, 5, layers, update_bias=-0.7, gate=gate, gate_grad_clip=0.5, engine=engine,
            dtype=torch.float64,
        )  # fmt: skip
        torch.manual_seed(5)
        state = rnn(x[:6]).state  # some sequences are about to update, some are not
        found.append(run(rnn, x[6:], lengths=[9, 0, 4, 9, 1], state=state))
    assert 0.1 < found[0][0].update_gate.mean() < 0.9
    assert_same(*found, tolerance=1e-11)


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


def test_it_may_draw_after_training():
    x = torch.randn(60, 4, 2)
    rnn = SkipLSTM(2, 5, update_bias=-1.0, gate="bernoulli")
    torch.manual_seed(1)
    drawn = rnn(x).update_gate
    rounded = rnn.eval()(x).update_gate
    assert rnn.draw_in_eval() is rnn
    torch.manual_seed(1)
    assert torch.equal(rnn(x).update_gate, drawn)
    assert torch.equal(rnn.as_lstm().as_skip().draw_in_eval(False)(x).update_gate, rounded)
    assert "gate='bernoulli', draws_in_eval=True" in repr(rnn.draw_in_eval())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "compiled"])
@pytest.mark.parametrize("bias", [0.0, -3.0])
def test_a_stream_draws_ahead_what_a_call_draws(dtype, bias):
    x = torch.randn(90, 2, dtype=dtype)
    rnn = drawing("gru", 2, bias, "auto", dtype).eval().draw_in_eval()
    torch.manual_seed(3)
    with torch.no_grad():
        calls = [rnn(x) for _ in range(3)]
    stream = Stream(rnn, generator=torch.Generator().manual_seed(3))
    for way, call in enumerate(calls):  # of three sequences on end
        used = []
        stream.reset()
        if way == 0:
            for sample in x:
                shut = stream.skip_next
                used.append(stream.push(sample))
                assert used[-1] == (shut == 0)
        elif way == 1:
            for part in x.split(13):
                stream.feed(part)
        else:
            half = [t for t, _ in stream.pull(x.__getitem__, 45)]
            stream.reset(stream.state)  # goes on within a wait
            assert half == call.update_gate[:45].nonzero()[:, 0].tolist()
            stream.feed(x[45:])
        assert not used or used == call.update_gate.bool().tolist()
        for mine, other in zip(stream.state, call.state, strict=True):
            torch.testing.assert_close(mine.reshape(-1), other.reshape(-1), rtol=0, atol=1e-6)
    assert stream.used == calls[2].update_gate[45:].sum()


def test_a_stream_that_draws_ends_where_the_gate_cannot_open():
    rnn = SkipGRU(1, 2, update_bias=-200.0, gate="bernoulli").eval().draw_in_eval()  # in float32 that is never
    torch.nn.init.zeros_(rnn.update_weight)
    stream = Stream(rnn)
    assert [t for t, _ in stream.pull(lambda t: torch.zeros(1))] == [0]
    rnn.update_weight.data.fill_(torch.nan)
    stream = Stream(rnn)
    assert [stream.push(torch.zeros(1)) for _ in range(3)] == [True] * 3  # as a call has it


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
    state = rnn.step(torch.zeros(1, 2)).state
    rnn.draw_in_eval()
    for call in (lambda: rnn.step(torch.zeros(1, 2)), lambda: rnn.advance(state, 0)):
        with pytest.raises(ValueError, match="a state does not hold what a Bernoulli gate will draw: follow the seq"):
            call()
    with pytest.raises(ValueError, match="a gate that rounds has nothing to draw: make the module with gate='bern"):
        SkipGRU(2, 3).draw_in_eval()
