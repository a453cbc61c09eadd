"""What nn.LSTM's options do to a Skip RNN: the same in all engines, and what the definition says."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_map

from examples.own_cell import MinGRUCell
from skiprnn import (
    SkipGRU,
    SkipLSTM,
    SkipRNN,
    Stream,
    budget_loss,
    growing_budget_loss,
    target_budget_loss,
    used_samples,
)
from skiprnn.cells import LAYER_NORM_GRU, LAYER_NORM_LSTM, RNN
from skiprnn.engines import events, native
from tests.problems import BIASES, MODULES, needs_compiled
from tests.problems import problem as problem_of

OPTIONS = {
    "no_bias": {"bias": False},
    "dropout": {"dropout": 0.4, "num_layers": 3},
    "both_ways": {"bidirectional": True},
    "all": {"bias": False, "dropout": 0.4, "bidirectional": True, "num_layers": 2},
}
LENGTHS = [23, 5, 30, 1, 12]


def build(name, engine, update_bias, dtype=torch.float64, *, num_layers=1, **options):
    torch.manual_seed(1)
    rnn = MODULES[name](3, 7, num_layers, engine=engine, update_bias=update_bias, dtype=torch.float64, **options)
    with torch.no_grad():
        for key, parameter in rnn.named_parameters():
            if key.startswith("update_weight"):
                parameter.mul_(3)  # probabilities that differ
    return rnn.to(dtype)


def result(rnn, x, *, lengths=None, every_step=True, seed=3):
    """All that a call returns, and the gradient of a loss on all of it by the input, the state and the parameters."""
    torch.manual_seed(seed)
    values = (x.data if isinstance(x, PackedSequence) else x).to(rnn.update_weight.dtype).requires_grad_()
    x = PackedSequence(values, *x[1:]) if isinstance(x, PackedSequence) else values
    output, state, gate = rnn(x, None, lengths, every_step=every_step)
    found = [t.data if isinstance(t, PackedSequence) else t for t in (output, gate, *state)]
    loss = sum((t * torch.linspace(-1, 1.5, t.numel()).to(t).view_as(t)).sum() for t in found)
    return found, torch.autograd.grad(loss, [values, *rnn.parameters()], materialize_grads=True)


def assert_same(ours, theirs, tolerance=1e-12):
    assert torch.equal(ours[0][1].double(), theirs[0][1].double())
    for mine, other in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        scale = max(other.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine.double() / scale, other.double() / scale, rtol=0, atol=tolerance)


@pytest.mark.pairwise
@pytest.mark.parametrize("form", ["lengths", "packed", "last_step"])
@pytest.mark.parametrize("bias", ["some", "few"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_events_equal_the_reference(name, options, bias, form):
    x = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(0))
    x = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if form == "packed" else x
    call = {"lengths": LENGTHS} if form == "lengths" else {"every_step": False} if form == "last_step" else {}
    ours, theirs = (
        result(build(name, engine, BIASES[bias], **options), x, **call) for engine in ("events", "reference")
    )
    assert_same(ours, theirs)
    assert theirs[0][1].mean() < 0.9


@needs_compiled
@pytest.mark.parametrize("form", ["batch", "packed"])
@pytest.mark.parametrize("options", [OPTIONS["no_bias"], OPTIONS["both_ways"]], ids=["no_bias", "both_ways"])
@pytest.mark.parametrize("name", MODULES)
def test_the_compiled_engine_equals_the_reference(name, options, form):
    x = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(0))
    x = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if form == "packed" else x
    ours = build(name, "events", -1.5, torch.float32, num_layers=2, **options)
    assert_same(result(ours, x), result(build(name, "reference", -1.5, num_layers=2, **options), x), tolerance=2e-5)


@needs_compiled
def test_dropout_is_left_to_other_engines_while_it_acts():
    rnn = SkipLSTM(2, 4, 2, dropout=0.5)
    x = torch.randn(6, 3, 2)
    active = problem_of(rnn, x)._replace(dropout=rnn._drawn_dropout(x))
    assert native.why_not(active) == "it has no dropout between layers"
    assert events.why_not(active) is None
    assert rnn.eval()._drawn_dropout(x) is None
    assert native.why_not(problem_of(rnn, x)) is None


def test_dropout_acts_on_what_skipped_candidates_read():
    """The gate's gradient reads candidates of skipped steps, which another draw there changes, the output unchanged."""
    rnn = build("lstm", "reference", -1.5, num_layers=2, dropout=0.5)
    x = torch.randn(30, 1, 3, dtype=torch.float64)
    gate, seen = rnn(x).update_gate, []
    problem = problem_of(rnn, x)._replace(dropout=rnn._drawn_dropout(x))
    solution = events.run(problem)
    skipped = int((solution.update_gate[:, 0] == 0).nonzero()[0])
    other = problem.dropout.kept.clone()
    other[:, skipped].logical_not_()
    for kept in (problem.dropout.kept, other):
        solution = events.run(problem._replace(dropout=problem.dropout._replace(kept=kept)))
        seen.append((solution.output, torch.autograd.grad(solution.output.sum(), rnn.update_bias)[0]))
    assert gate.mean() < 1
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])


def test_dropout_is_drawn_anew_in_training_alone():
    rnn, x = SkipLSTM(2, 4, 2, dropout=0.5), torch.randn(6, 3, 2)
    assert not torch.equal(rnn(x).output, rnn(x).output)
    rnn.eval()
    assert torch.equal(rnn(x).output, rnn(x).output)
    rnn.train().dropout = 0.0  # an attribute that may be changed, as nn.LSTM's
    assert torch.equal(rnn(x).output, rnn(x).output)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", MODULES)
def test_both_ways_are_two_stacks_of_which_one_reads_from_the_end(name, layers, lengths):
    both = build(name, "auto", -1.0, num_layers=layers, bidirectional=True)
    x = torch.randn(30, 5, 3, dtype=torch.float64)
    output, state, gate = both(x, lengths=lengths)
    assert output.shape == (30, 5, 14)
    assert gate.shape == (30, 5, 2)
    assert state.h.shape == (2 * layers, 5, 7)
    assert state.update_prob.shape == (2, 5)
    for direction, suffix in enumerate(("", "_reverse")):
        one = build(name, "auto", -1.0, num_layers=layers)
        with torch.no_grad():
            for key, parameter in one.named_parameters():
                initial = key.startswith("initial")
                source = both.get_parameter(key if initial else key + suffix)
                parameter.copy_(source[direction::2] if initial else source)
        ends = [30] * 5 if lengths is None else lengths
        for b, end in enumerate(ends):
            part = x[:end, b : b + 1]
            alone = one(part.flip(0) if direction else part)
            found = output[:end, b, 7 * direction : 7 * direction + 7], gate[:end, b, direction]
            for mine, other in zip(found, (alone.output[:, 0], alone.update_gate[:, 0]), strict=True):
                torch.testing.assert_close(mine, other.flip(0) if direction else other)
            torch.testing.assert_close(state.h[direction::2, b], alone.state.h[:, 0])
            torch.testing.assert_close(state.update_prob[direction, b], alone.state.update_prob[0])
            assert not gate[end:, b].any()
            assert torch.equal(output[end:, b], output.new_zeros(30 - end, 1) + torch.cat([*state.h[-2:, b]]))
    torch.testing.assert_close(both(x, lengths=lengths, every_step=False).output, torch.cat([*state.h[-2:]], dim=-1))


def test_both_ways_go_on_from_a_state():
    rnn = build("lstm", "auto", -1.0, num_layers=2, bidirectional=True)
    x = torch.randn(8, 3, 3, dtype=torch.float64)
    state = rnn(x).state
    again = rnn(x, state)
    assert again.state.h.shape == state.h.shape
    for field in ("update_prob", "cum_update_prob"):
        wrong = getattr(state, field).clone()
        wrong[1, 2] = 1.5
        with pytest.raises(ValueError, match=rf"{field} of a state must lie in 0..1, got 1.5 for sequence 2"):
            rnn(x, state._replace(**{field: wrong}))


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=["", "both", "batch_first"]
)
def test_a_packed_batch_is_its_sequences(options, enforce_sorted):
    rnn = build("lstm", "auto", -1.0, **options)
    lengths = sorted(LENGTHS, reverse=True) if enforce_sorted else LENGTHS
    x = torch.randn(30, 5, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    start = rnn(x.transpose(0, 1) if rnn.batch_first else x).state
    output, state, gate = rnn(packed, start)
    for mine in (output, gate):
        for ours, theirs in zip(mine[1:], packed[1:], strict=True):
            assert ours is theirs or torch.equal(ours, theirs)
    assert gate.data.shape == (sum(LENGTHS), 2) if rnn.bidirectional else (sum(LENGTHS),)
    rnn.batch_first = False
    expected = rnn(x, start, lengths)
    for mine, other in zip((output, gate), (expected.output, expected.update_gate), strict=True):
        same = pack_padded_sequence(other, lengths, enforce_sorted=enforce_sorted)
        torch.testing.assert_close(mine.data, same.data)
    for mine, other in zip(state, expected.state, strict=True):
        torch.testing.assert_close(mine, other)
    last = torch.cat([*expected.state.h[-rnn.num_directions :]], dim=-1)
    torch.testing.assert_close(rnn(packed, start, every_step=False).output, last)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("both", [False, True])
def test_one_sequence_is_a_batch_of_one(name, both):
    rnn = build(name, "auto", -1.0, num_layers=2, bidirectional=both)
    x = torch.randn(12, 3, dtype=torch.float64)
    whole = rnn(x[:, None])
    for rnn.batch_first in (False, True):
        output, state, gate = rnn(x)
        assert torch.equal(output, whole.output[:, 0])
        assert torch.equal(gate, whole.update_gate[:, 0])
        assert state.update_prob.shape == ((2,) if both else ())
        again, batch = rnn(x, state), rnn(x[None] if rnn.batch_first else x[:, None], whole.state)
        assert torch.equal(again.state.h, batch.state.h[:, 0])
        assert torch.equal(rnn(x, every_step=False).output, torch.cat([*whole.state.h[-rnn.num_directions :, 0]]))
    with pytest.raises(ValueError, match=r"update_prob of a state must lie in 0\.\.1, got 2\.0 for sequence"):
        rnn(x, state._replace(update_prob=torch.full_like(state.update_prob, 2)))


def test_states_of_torch_begin_with_a_used_sample():
    rnn, x = build("lstm", "auto", -3.0, num_layers=2), torch.randn(8, 3, 3, dtype=torch.float64)
    _, state, _ = rnn(x)
    short = rnn(x, (state.h, state.c))
    opened = state._replace(update_prob=torch.ones(3).double(), cum_update_prob=torch.zeros(3).double())
    assert torch.equal(short.output, rnn(x, opened).output)
    assert short.update_gate[0].all()
    gru = build("gru", "auto", -3.0)
    h = torch.randn(1, 3, 7, dtype=torch.float64)
    assert torch.equal(gru(x, h).output, gru(x, (h,)).output)


def test_without_biases_there_are_none():
    names = {name for name, _ in SkipGRU(2, 4, 2, bias=False, bidirectional=True).named_parameters()}
    assert not {name for name in names if name.startswith("bias")}
    assert {"update_bias", "update_bias_reverse", "weight_hh_l1_reverse"} <= names
    zeros = build("gru", "auto", -1.0, num_layers=2)
    without = build("gru", "auto", -1.0, num_layers=2, bias=False)
    with torch.no_grad():
        for name, parameter in zeros.named_parameters():
            parameter.copy_(parameter * 0 if name.startswith("bias") else without.get_parameter(name))
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    assert torch.equal(zeros(x).output, without(x).output)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_streams_and_steps_of_what_goes_sample_by_sample(dropout, either_path):
    rnn = SkipLSTM(2, 4, 2, bias=False, dropout=dropout, update_bias=-1.0)
    x = torch.randn(30, 2)
    expected, stream = rnn.eval()(x), Stream(rnn.train())  # a stream drops nothing out
    assert stream.feed(x) == expected.update_gate.sum()
    torch.testing.assert_close(stream.output, expected.output[-1])
    rnn.eval()
    _, state, skip_next = rnn.step(x[:1])
    assert rnn.advance(state, int(skip_next)).h.shape == (2, 1, 4)


def test_both_ways_do_not_go_sample_by_sample():
    rnn = SkipGRU(2, 4, bidirectional=True)
    state = rnn.initial_state(1)
    for call in (lambda: Stream(rnn), lambda: rnn.step(torch.randn(1, 2)), lambda: rnn.advance(state, 0)):
        with pytest.raises(
            ValueError, match="a bidirectional network cannot go sample by sample: it also reads from the"
        ):
            call()


def test_budgets_of_every_form_of_gate():
    rnn, x = build("lstm", "auto", -1.0, bidirectional=True), torch.randn(30, 5, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    gate, out = rnn(packed).update_gate, rnn(x, lengths=LENGTHS)
    padded = out.update_gate
    assert torch.equal(used_samples(gate), padded.sum((0, 2)))
    assert torch.equal(used_samples(out), used_samples(padded.transpose(0, 1), batch_first=True))
    assert budget_loss(gate, 0.1).item() == pytest.approx(0.1 * padded.sum().item() / 5)
    assert growing_budget_loss(gate, 0.1, 0.5).item() == growing_budget_loss(out, 0.1, 0.5).item()
    one = build("lstm", "auto", -1.0)(x[:, 0]).update_gate
    assert used_samples(one).item() == used_samples(one, batch_first=True).item() == one.sum()
    both = rnn(x[:, 0])
    assert used_samples(both).item() == used_samples(rnn(x[:, :1])).item() == both.update_gate.sum()


@pytest.mark.parametrize("batch_first", [False, True])
def test_what_a_network_returns_says_its_layout(batch_first):
    torch.manual_seed(0)
    rnn = SkipLSTM(3, 4, batch_first=batch_first, update_bias=-1.0)
    out = rnn(torch.randn(6, 10, 3))
    counts = out.update_gate.sum(1 if batch_first else 0)
    assert torch.equal(used_samples(out), counts)
    assert budget_loss(out, 0.1).item() == pytest.approx(0.1 * counts.mean().item())
    assert target_budget_loss(out, 2.0, 1.0).item() == pytest.approx((counts - 2).abs().mean().item())
    assert budget_loss(out, 0.1, batch_first=batch_first).item() == budget_loss(out, 0.1).item()
    kept = tree_map(lambda tensor: tensor, out)  # as DataParallel and torch.export rebuild it
    assert torch.equal(used_samples(kept), counts)
    with pytest.raises(ValueError, match=f"batch_first={not batch_first}, but the network has batch_first="):
        budget_loss(out, 0.1, batch_first=not batch_first)
    for loss in (lambda gate: budget_loss(gate, 0.1), lambda gate: growing_budget_loss(gate, 1.0, 1.0), used_samples):
        with pytest.raises(
            TypeError, match=r"is a gate of shape \(6, 10\) \(T, B\) or \(B, T\)\? Pass all that the network returned"
        ):
            loss(out.update_gate)


@pytest.mark.parametrize(
    "cell", [RNN, LAYER_NORM_LSTM, LAYER_NORM_GRU, MinGRUCell()], ids=lambda cell: type(cell).__name__
)
def test_any_cell_has_the_options_too(cell):
    results = []
    for engine in ("events", "reference"):
        torch.manual_seed(0)
        rnn = SkipRNN(cell, 3, 7, 2, bias=False, dropout=0.3, bidirectional=True, engine=engine, update_bias=-1.0)
        results.append(result(rnn.double(), torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0))))
    assert_same(*results)
