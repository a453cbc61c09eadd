"""The plain cells, and the plain cells that skip at random."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from skiprnn import RandomSkipGRU, RandomSkipLSTM, SkipGRU, SkipLSTM
from skiprnn.reference import candidate_states

BASELINES = [(RandomSkipLSTM, SkipLSTM), (RandomSkipGRU, SkipGRU)]


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_without_skipping_it_is_torchs_own_cell(baseline, skip, batch_first):
    ours = baseline(3, 5, 2, batch_first=batch_first, learn_initial_state=False)
    plain = {RandomSkipLSTM: nn.LSTM, RandomSkipGRU: nn.GRU}[baseline](3, 5, 2, batch_first=batch_first)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(4, 7, 3)
    output, state, gate = ours(x)
    expected, last = plain(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(state.h, last[0] if isinstance(last, tuple) else last)
    assert gate.shape == (4, 7)
    assert gate.all()


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # compiled, and torch's own
def test_it_takes_the_weights_of_a_skip_rnn(baseline, skip, dtype):
    rnn = skip(3, 5, 2, update_bias=100.0, dtype=dtype)
    plain = baseline(3, 5, 2, dtype=dtype)
    assert plain.load_state_dict(rnn.state_dict(), strict=False).unexpected_keys == ["update_weight", "update_bias"]
    x = torch.randn(9, 4, 3, dtype=dtype)
    for lengths in (None, [9, 2, 0, 5], [4, 2, 1, 0]):
        ours, expected = plain(x, lengths=lengths), rnn(x, lengths=lengths)
        torch.testing.assert_close(ours.output, expected.output)
        torch.testing.assert_close(ours.state.h, expected.state.h)


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
def test_random_skipping_copies_the_state_at_the_wanted_rate(baseline, skip):
    torch.manual_seed(0)
    rnn = baseline(3, 5, p_skip=0.25)
    output, _, gate = rnn(torch.randn(400, 20, 3))
    assert gate.mean().item() == pytest.approx(0.75, abs=0.02)
    skipped = gate[1:] == 0
    assert torch.equal(output[1:][skipped], output[:-1][skipped])
    assert (output[1:][~skipped] != output[:-1][~skipped]).any(-1).all()


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
def test_always_skipping_keeps_the_initial_state(baseline, skip):
    rnn = baseline(3, 5, p_skip=1.0)
    output, _, gate = rnn(torch.randn(6, 2, 3))
    assert not gate.any()
    assert torch.equal(output, rnn.initial_h.expand(6, 2, 5))


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
@pytest.mark.parametrize("lengths", [None, [12, 1, 0, 7, 12]])
def test_random_skipping_equals_the_cell_step_by_step(baseline, skip, lengths):
    torch.manual_seed(3)
    rnn = baseline(3, 5, 2, p_skip=0.6).double()
    x = torch.randn(12, 5, 3, dtype=torch.float64, requires_grad=True)
    start = rnn.initial_state(5)
    output, state, gate = rnn(x, lengths=lengths)
    if lengths is not None:
        assert not any(gate[length:, b].any() for b, length in enumerate(lengths))
    states = [tuple(s[k] for s in start[: rnn.cell.num_states]) for k in range(2)]
    expected = []
    for x_t, u in zip(x, gate, strict=True):
        new = candidate_states(rnn.cell, rnn.cell.input_share(x_t, rnn.layer(0)), states, rnn.layers())
        states = [
            tuple(torch.where(u[:, None] > 0, n, o) for n, o in zip(fresh, old, strict=True))
            for fresh, old in zip(new, states, strict=True)
        ]
        expected.append(states[-1][0])
    torch.testing.assert_close(output, torch.stack(expected))
    for index, tensor in enumerate(state[: rnn.cell.num_states]):
        torch.testing.assert_close(tensor, torch.stack([layer[index] for layer in states]))
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), [x, *rnn.parameters()], retain_graph=True)
    theirs = torch.autograd.grad((torch.stack(expected) * weight).sum(), [x, *rnn.parameters()])
    torch.testing.assert_close(ours, theirs)


def test_state_carries_over():
    rnn = RandomSkipLSTM(3, 5, 2)
    x = torch.randn(8, 2, 3)
    first = rnn(x[:3])
    torch.testing.assert_close(rnn(x[3:], first.state).output, rnn(x).output[3:])


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
def test_packed_batches_and_single_sequences(baseline, skip):
    rnn, x = baseline(3, 5, 2), torch.randn(8, 3, 3)
    packed = pack_padded_sequence(x, [5, 8, 2], enforce_sorted=False)
    output, state, gate = rnn(packed)
    expected = rnn(x, lengths=[5, 8, 2])
    torch.testing.assert_close(state.h, expected.state.h)
    for mine, other in ((output, expected.output), (gate, expected.update_gate)):
        torch.testing.assert_close(mine.data, pack_padded_sequence(other, [5, 8, 2], enforce_sorted=False).data)
    torch.testing.assert_close(rnn(x[:, 0]).output, rnn(x).output[:, 0])


def test_bad_probability():
    with pytest.raises(ValueError, match=r"p_skip must lie in 0\.\.1, got 1\.5"):
        RandomSkipLSTM(3, 5, p_skip=1.5)


@pytest.mark.parametrize(("baseline", "skip"), BASELINES)
def test_torchs_own_cell_may_be_asked_for(baseline, skip):
    rnn = baseline(3, 5, p_skip=0.3, engine="torch")
    x = torch.randn(6, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(rnn(x).output.square().sum(), x, create_graph=True)
    gradient.sum().backward()
    with pytest.raises(ValueError, match="unknown engine 'events'; choose auto or torch"):
        baseline(3, 5, engine="events")
