"""The definition: its gate, its state carried over, its lengths, its gradients."""

import pytest
import torch

from skiprnn import SkipLSTM, budget_loss
from skiprnn.cells import GRU
from skiprnn.engines import ENGINES
from skiprnn.gate import binarize
from tests.problems import MODULES

pytestmark = pytest.mark.parametrize("engine", [e for e in ENGINES if e not in ("cuda", "graph")])  # float32


@pytest.fixture(params=list(MODULES))
def make(request, engine):
    """A module in float64 whose gate sometimes skips, and whose sums stay clear of 0.5."""

    def make(input_size=3, hidden_size=5, num_layers=1, update_bias=-1.2, **options):
        torch.manual_seed(11)
        options = {"engine": engine, "dtype": torch.float64, **options}
        return MODULES[request.param](input_size, hidden_size, num_layers, update_bias=update_bias, **options)

    return make


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def gru_cell_reset_before(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    (xr, xz, xn), (ur, uz, un) = (x @ weight_ih.T + bias_ih + bias_hh).chunk(3, 1), weight_hh.chunk(3)
    r, z = torch.sigmoid(xr + h @ ur.T), torch.sigmoid(xz + h @ uz.T)
    return (1 - z) * torch.tanh(xn + (r * h) @ un.T) + z * h


def constant_gate(rnn, update_prob):
    """Make every update probability the same."""
    with torch.no_grad():
        rnn.update_weight.zero_()
        rnn.update_bias.copy_(torch.logit(torch.tensor(update_prob, dtype=torch.float64)))


def test_gate_is_exactly_binary_with_the_gradient_of_the_identity(engine):
    a = torch.cat([torch.linspace(0, 1, 10_001), torch.tensor([0.5, 0.50000006, 0.49999997])]).requires_grad_()
    u = binarize(a)
    assert torch.equal(u, (a > 0.5).float())
    u.sum().backward()
    assert torch.equal(a.grad, torch.ones_like(a))


def test_a_sum_of_exactly_one_half_is_skipped(make):
    rnn = make()
    constant_gate(rnn, 0.25)  # sums 0.25, 0.5, 0.75
    gate = rnn(draw(10, 2, 3)).update_gate
    assert gate[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]


def test_first_sample_is_always_used(make):
    rnn = make(update_bias=-50.0)
    assert rnn(draw(6, 2, 3)).update_gate.sum(0).tolist() == [1, 1]


def test_skipped_steps_copy_the_state(make):
    rnn = make(num_layers=2)
    output, _, gate = rnn(draw(30, 4, 3))
    skipped = gate[1:] == 0
    assert 0 < skipped.sum() < skipped.numel()
    assert torch.equal(output[1:][skipped], output[:-1][skipped])
    assert (output[1:][~skipped] != output[:-1][~skipped]).any(-1).all()


@pytest.mark.pairwise
@pytest.mark.parametrize("cut", [0, 1, 14, 29, 30])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_two_halves_equal_the_whole(make, num_layers, cut):
    rnn = make(num_layers=num_layers)
    x = draw(30, 4, 3).requires_grad_()
    weight = draw(30, 4, 5)

    def gradients(output, gate):
        rnn.zero_grad()
        loss = (output * weight).sum() + budget_loss(gate, 0.3, batch_first=False)
        return torch.autograd.grad(loss, [x, *rnn.parameters()])

    whole = rnn(x)
    first = rnn(x[:cut])
    second = rnn(x[cut:], first.state)
    output = torch.cat([first.output, second.output])
    gate = torch.cat([first.update_gate, second.update_gate])

    assert torch.equal(gate, whole.update_gate)
    torch.testing.assert_close(output, whole.output, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(second.state, whole.state, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(gradients(output, gate), gradients(*whole[::2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_each_sequence_of_a_batch_with_lengths_equals_itself_alone(make):
    rnn = make(num_layers=2)
    lengths = [20, 1, 0, 13]
    x = draw(20, 4, 3)
    for b, length in enumerate(lengths):
        x[length:, b] = torch.nan
    x.requires_grad_()
    weight = draw(20, 4, 5)
    output, state, gate = rnn(x, lengths=torch.tensor(lengths))
    assert torch.equal(gate.sum(0)[2:3], torch.zeros(1, dtype=gate.dtype))
    loss = sum((output[:length, b] * weight[:length, b]).sum() for b, length in enumerate(lengths))
    gradients = torch.autograd.grad(loss + budget_loss(gate, 0.7, batch_first=False) * 4, list(rnn.parameters()))

    alone_loss = 0
    for b, length in enumerate(lengths):
        alone = rnn(x[:length, b : b + 1])
        torch.testing.assert_close(output[:length, b], alone.output[:, 0], rtol=1e-12, atol=1e-13)
        assert torch.equal(gate[:length, b], alone.update_gate[:, 0])
        assert not gate[length:, b].any()
        for ours, theirs in zip(state, alone.state, strict=True):
            torch.testing.assert_close(
                ours.select(ours.dim() - 2 if ours.dim() > 1 else 0, b).squeeze(), theirs.squeeze()
            )
        if length:
            assert torch.equal(output[length:, b], output[length - 1, b].expand(20 - length, -1))
        alone_loss += (alone.output[:, 0] * weight[:length, b]).sum() + budget_loss(alone, 0.7)
    expected = torch.autograd.grad(alone_loss, list(rnn.parameters()))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_padding_gets_no_gradient(make):
    rnn = make()
    x = draw(8, 2, 3).requires_grad_()
    output, _, gate = rnn(x, lengths=[8, 3])
    (output.sum() + gate.sum()).backward()
    assert not x.grad[3:, 1].any()
    assert x.grad[:3, 1].any()


@pytest.mark.parametrize("bound", [None, 0.2])
def test_gradients_equal_the_literal_equations(make, bound):
    """Written out for one layer, with nothing shared: eqs. 2-6 of the paper, s̃ of torch's own cells where it can."""
    rnn = make(gate_grad_clip=bound)
    x, weight = draw(25, 3, 3), draw(25, 3, 5)
    output, _, gate = rnn(x)
    loss = (output * weight).sum() + budget_loss(gate, 0.3, batch_first=False)
    parameters = dict(rnn.named_parameters())
    ours = torch.autograd.grad(loss, list(parameters.values()))

    lstm = isinstance(rnn, SkipLSTM)
    cell = torch.lstm_cell if lstm else torch.gru_cell if rnn.cell is GRU else gru_cell_reset_before
    weights = [parameters[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    h = rnn.initial_h.expand(3, -1)
    c = rnn.initial_c.expand(3, -1) if lstm else None
    p, acc = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    total, clamped, gates = 0, [], []
    for t in range(25):
        a = acc + torch.minimum(p, 1 - acc)
        u = torch.round(a).detach() + a - a.detach()
        if bound is not None and t:  # the first is open whatever there is to learn
            u.register_hook(lambda gradient: clamped.append(gradient.abs() > bound) or gradient.clamp(-bound, bound))
            gates.append(u.detach() > 0)
        new_h, new_c = cell(x[t], (h, c), *weights) if lstm else (cell(x[t], h, *weights), None)
        new_p = torch.sigmoid((new_c if lstm else new_h) @ rnn.update_weight + rnn.update_bias)
        h = u[:, None] * new_h + (1 - u[:, None]) * h
        c = u[:, None] * new_c + (1 - u[:, None]) * c if lstm else None
        p = u * new_p + (1 - u) * p
        acc = (1 - u) * a
        total = total + (h * weight[t]).sum() + 0.3 * u.mean()
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)
    for mine, theirs in zip(ours, torch.autograd.grad(total, list(parameters.values())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    if bound is not None:  # it acted, on used samples and on skipped ones, and not everywhere
        acted, used = torch.stack(clamped[::-1]), torch.stack(gates)
        for of in (used, ~used):
            assert 0 < int((acted & of).sum()) < int(of.sum())


def test_small_probabilities_add_up_under_autocast(make):
    rnn = make(dtype=torch.float32)
    constant_gate(rnn, 0.001)  # in bfloat16, 0.25 + 0.001 is 0.25
    with torch.autocast("cpu", torch.bfloat16):
        output, state, gate = rnn(torch.randn(1100, 1, 3))
    assert gate.dtype == state.update_prob.dtype == state.cum_update_prob.dtype == torch.float32
    assert gate[:, 0].nonzero().flatten().tolist()[:3] == [0, 501, 1002]
    assert output.isfinite().all()


@pytest.mark.pairwise
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_skipped_samples_are_not_read(make, num_layers, bad):
    rnn = make(num_layers=num_layers)
    x, lengths = draw(30, 4, 3), [30, 30, 30, 11]
    clean = rnn(x, lengths=lengths)
    skipped = clean.update_gate == 0
    assert skipped[:, :3].any(0).all()
    spoilt = rnn(x.masked_fill(skipped[..., None], bad), lengths=lengths)
    for ours, theirs in zip(
        (spoilt.output, spoilt.update_gate, *spoilt.state), (*clean[::2], *clean.state), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_nan_in_a_used_sample_spreads_and_opens_the_gate(make):
    rnn = make(num_layers=2)
    x = draw(30, 4, 3)
    clean = rnn(x)
    t = int(clean.update_gate[:, 1].nonzero()[3])
    x[t, 1, 2] = torch.nan
    output, state, gate = rnn(x)
    assert output[t:, 1].isnan().all()
    assert gate[t:, 1].all()
    assert state.update_prob.isnan().tolist() == [False, True, False, False]
    others = [0, 2, 3]
    torch.testing.assert_close(output[:, others], clean.output[:, others], rtol=1e-12, atol=1e-13)
    assert torch.equal(output[:t, 1], clean.output[:t, 1])
    torch.autograd.grad(output.sum() + gate.sum(), list(rnn.parameters()))  # ends
