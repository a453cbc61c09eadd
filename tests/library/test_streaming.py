"""Steps and streams against ``forward`` and the definition: gates, outputs, states; and what is never read."""

import functools
import threading

import numpy as np
import pytest
import torch
from torch import nn

from skiprnn import RandomSkipLSTM, SkipGRU, SkipLSTM, Stream, gate
from skiprnn.engines import native
from tests.problems import BIASES, GOLDEN, MODULES, SOME, build, load_golden, needs_compiled, problem

SHAPES = {  # T, B, D, H, layers
    "paper": (60, 1, 2, 110, 1),
    "one_step": (1, 1, 3, 5, 1),
    "odd": (63, 1, 5, 17, 1),
    "aligned": (30, 1, 16, 32, 1),
    "two_layers": (50, 1, 3, 20, 2),
    "three_layers": (25, 1, 2, 16, 3),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def sequence(shape, seed=0):
    return torch.randn(shape[:3], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_states_close(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other.detach().double(), rtol=0, atol=tolerance)


@functools.cache
def of_the_reference(name, shape, bias):
    """Output, state and gate."""
    with torch.no_grad():
        return tuple(build(name, shape, bias, "reference", torch.float64)(sequence(shape)))


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("either_path", "dtype"),
    [("compiled", torch.float32), ("torch", torch.float32), ("torch", torch.float64)],
    indirect=["either_path"],
)
@pytest.mark.parametrize("bias", [BIASES[name] for name in SOME], ids=SOME)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_a_stream_equals_the_reference(name, shape, bias, dtype, either_path):
    x = sequence(shape)
    output, state, gate = of_the_reference(name, shape, bias)
    stream = Stream(build(name, shape, bias, "auto", dtype))
    used, outputs = [], []
    for sample in x[:, 0]:
        used.append(stream.push(sample if stream.skip_next == 0 else "not looked at"))
        outputs.append(stream.output)
    assert used == gate[:, 0].bool().tolist()
    assert (stream.position, stream.used) == (len(x), sum(used))
    torch.testing.assert_close(torch.stack(outputs).double(), output[:, 0], rtol=0, atol=TOLERANCE[dtype])
    assert_states_close(stream.state, state, TOLERANCE[dtype])

    stream.reset()
    for part in x[:, 0].split(7):
        stream.feed(part)
    assert stream.used == sum(used)
    assert_states_close(stream.state, state, TOLERANCE[dtype])


def test_a_stream_bounds_its_skips(either_path):
    x, rnn = sequence((200, 1, 2, 9, 1)).float(), SkipGRU(2, 9, min_skip=2, max_skip=4)
    with torch.no_grad():
        rnn.update_weight.mul_(20)
        expected = rnn(x).update_gate[:, 0]
    stream = Stream(rnn)
    used = [stream.push(sample) for sample in x[:, 0]]
    assert used == expected.bool().tolist()
    skipped = expected.nonzero()[:, 0].diff() - 1
    assert 2 <= skipped.min() < skipped.max() <= 4


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_stream_equals_the_authors_cells(path, either_path):
    with np.load(path) as arrays:
        golden = dict(arrays)
    rnn, _ = load_golden(golden, "auto", torch.float32)
    stream = Stream(rnn)
    for b, x in enumerate(torch.from_numpy(golden["x"])):
        wanted = set(np.flatnonzero(golden["update_gate"][b]).tolist())
        stream.reset()
        read = {}

        def fetch(t, x=x, wanted=wanted, read=read):
            assert t in wanted
            read[t] = x[t]
            return x[t]

        for t, prediction in stream.pull(fetch, len(x)):
            assert np.abs(prediction.numpy() - golden["output"][b, t]).max() <= 1e-6
        assert set(read) == wanted
        assert np.abs(stream.output.numpy() - golden["output"][b, -1]).max() <= 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", MODULES)
def test_steps_equal_forward(name, layers, dtype):
    shape = (40, 3, 2, 9, layers)
    x = sequence(shape).to(dtype)
    rnn = build(name, shape, -1.0, "auto", dtype)
    expected = build(name, shape, -1.0, "reference", torch.float64)(x.double())
    state, counts = None, []
    with torch.no_grad():
        for t, sample in enumerate(x):
            output, state, skip_next = rnn.step(sample, state)
            torch.testing.assert_close(output.double(), expected.output[t].detach(), rtol=0, atol=TOLERANCE[dtype])
            counts.append(skip_next)
    assert skip_next.dtype == torch.int64
    assert_states_close(state, expected.state, TOLERANCE[dtype])
    gate = expected.update_gate.bool()
    for t in range(len(x) - 1):
        assert torch.equal(counts[t] == 0, gate[t + 1])
        assert torch.equal(counts[t][~gate[t + 1]] - 1, counts[t + 1][~gate[t + 1]])


def test_advance_passes_over_skipped_steps():
    shape = (200, 2, 2, 9, 1)
    x = sequence(shape).float()
    rnn = build("lstm", shape, -4.0, "auto", torch.float32)
    _, state, skip_next = rnn.step(x[0])
    n = int(skip_next.min())
    assert n > 2
    assert torch.equal(rnn.advance(state, n).cum_update_prob, rnn(x[1 : n + 1], state).state.cum_update_prob)
    for wrong in (n + 1, -1):
        with pytest.raises(ValueError, match=f"cannot advance by {wrong} steps: the samples of the next {n} are all"):
            rnn.advance(state, wrong)


@pytest.mark.parametrize("name", MODULES)
def test_steps_have_the_gradients_of_forward(name):
    shape = (12, 2, 2, 5, 1)
    x = sequence(shape)
    rnn = build(name, shape, -0.5, "auto", torch.float64)
    output, state = [], None
    for sample in x:
        out, state, _ = rnn.step(sample, state)
        output.append(out)
    gradients = torch.autograd.grad(torch.stack(output).square().sum(), list(rnn.parameters()))
    expected = torch.autograd.grad(rnn(x).output.square().sum(), list(rnn.parameters()))
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.pairwise
@needs_compiled
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("bias", [BIASES[name] for name in SOME], ids=SOME)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_inference_equals_the_reference(name, shape, bias, batch):
    shape = (shape[0], batch, *shape[2:])
    x = sequence(shape)
    lengths = torch.arange(batch) * 7 % (shape[0] + 1) if batch > 1 else None
    reference = build(name, shape, bias, "reference", torch.float64)
    state = reference(x).state
    expected = reference(x, state, lengths)
    rnn = build(name, shape, bias, "auto", torch.float32)
    start = type(state)(*(s.detach().float() for s in state))
    with torch.inference_mode():
        assert native.why_not(problem(rnn, x.float())) is None
        ours = rnn(x.float(), start, lengths)
    assert torch.equal(ours.update_gate.double(), expected.update_gate)
    torch.testing.assert_close(ours.output.double(), expected.output.detach(), rtol=0, atol=1e-5)
    assert_states_close(ours.state, expected.state, 1e-5)
    assert all(torch.equal(a, b.detach().float()) for a, b in zip(start, state, strict=True))  # left as it was


@needs_compiled
@pytest.mark.usefixtures("two_threads")
def test_inference_reads_any_layout(monkeypatch):
    rnn = build("gru", (30, 3, 4, 12, 2), -1.0, "auto", torch.float32)
    x = torch.randn(3, 4, 30).permute(2, 0, 1)
    tapes, forward = [], native.forward
    monkeypatch.setattr(native, "forward", lambda p, s, tape: tapes.append(tape) or forward(p, s, tape))
    with torch.no_grad():
        expected = rnn(x.contiguous()).output
        assert torch.equal(rnn(x).output, expected)
        rnn.batch_first = True
        assert torch.equal(rnn(x.transpose(0, 1)).output.transpose(0, 1), expected)
    assert tapes == [None] * 3
    rnn(x.transpose(0, 1)).output.sum().backward()
    assert tapes[3] is not None


def test_head_and_embedding_see_used_samples_only(either_path):
    rnn = build("lstm", (80, 1, 4, 7, 1), -2.0, "auto", torch.float32)
    head, table = nn.Linear(7, 3), nn.Embedding(11, 4)
    words = torch.randint(11, (80,), generator=torch.Generator().manual_seed(0))
    embedded = []

    def embed(word):
        embedded.append(int(word))
        return table(word)

    stream = Stream(rnn, head, embed)
    predictions = list(stream.pull(words.__getitem__, 80))
    with torch.no_grad():
        output, _, gate = rnn(table(words)[:, None])
        expected = head(output[:, 0])
    assert embedded == words[gate[:, 0].bool()].tolist()
    assert [t for t, _ in predictions] == gate[:, 0].nonzero()[:, 0].tolist()
    for t, prediction in predictions:
        torch.testing.assert_close(prediction, expected[t])
    stream.reset()
    torch.testing.assert_close(stream.run(words.__getitem__, 80), expected[-1])
    assert not stream.prediction.requires_grad


def test_samples_may_be_anything_that_holds_numbers(either_path):
    rnn = build("lstm", (9, 1, 1, 4, 1), 50.0, "auto", torch.float32)
    values = np.linspace(-1, 1, 9, dtype=np.float64)
    frozen = values[:, None].copy()
    frozen.flags.writeable = False
    expected = rnn(torch.from_numpy(values).float()[:, None, None]).state.h[0, 0]
    for samples in (values, values.tolist(), values[:, None], values[:, None].tolist(), frozen, torch.tensor(values)):
        stream = Stream(rnn)
        for sample in samples:
            assert stream.push(sample)
        torch.testing.assert_close(stream.output, expected.detach())


def test_a_stream_ends_where_its_source_ends():
    rnn = build("lstm", (80, 1, 1, 7, 1), -2.0, "auto", torch.float32)
    values = torch.randn(80).tolist()
    stream = Stream(rnn)
    used = [t for t, _ in stream.pull(lambda t: values[t] if t < 80 else None)]
    assert used == rnn(torch.tensor(values)[:, None, None]).update_gate[:, 0].nonzero()[:, 0].tolist()
    stream.reset()
    assert [t for t, _ in stream.pull(values.__getitem__, 80)] == used
    assert stream.position == 80


def test_a_stream_goes_on_from_a_state(either_path):
    rnn = build("gru", (60, 1, 2, 7, 2), -2.5, "auto", torch.float32)
    x = torch.randn(60, 2)
    stream = Stream(rnn)
    stream.feed(x[:33])
    state = stream.state
    stream.feed(x[33:])
    again = Stream(rnn, state=state)
    again.feed(x[33:])
    assert_states_close(again.state, stream.state, 1e-6)
    with torch.no_grad():
        assert_states_close(rnn(x[:, None]).state, stream.state, 1e-5)
        assert_states_close(rnn(x[33:, None], state).state, stream.state, 1e-5)


def test_batch_first_makes_no_difference(either_path):
    rnn = build("lstm", (60, 1, 2, 7, 1), -1.0, "auto", torch.float32)
    x = torch.randn(60, 2)
    first, second = Stream(rnn), Stream(rnn)
    first.feed(x)
    step = rnn.step(x[:1])
    rnn.batch_first = True
    second.feed(x)
    assert torch.equal(first.output, second.output)
    assert torch.equal(step.output, rnn.step(x[:1]).output)


def test_a_gate_that_opens_no_more(either_path):
    rnn = build("lstm", (5, 1, 1, 4, 1), -60.0, "auto", torch.float32)
    stream = Stream(rnn)
    assert stream.push(1.0)
    assert stream.skip_next == gate.NEVER
    stream.advance(10**12)
    assert not stream.push(None)
    assert (stream.position, stream.used, stream.skip_next) == (10**12 + 2, 1, gate.NEVER)
    assert list(stream.pull(lambda t: pytest.fail("not to be read"))) == []


@needs_compiled
def test_streams_run_in_threads():
    rnn = build("lstm", (3000, 1, 2, 32, 1), -1.0, "auto", torch.float32)
    x = torch.randn(4, 3000, 2)
    streams = [Stream(rnn) for _ in x]
    threads = [threading.Thread(target=stream.feed, args=(part,)) for stream, part in zip(streams, x, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = rnn(x.transpose(0, 1)).state.h[-1]
    torch.testing.assert_close(torch.stack([s.output for s in streams]), expected.detach(), rtol=0, atol=1e-5)


@needs_compiled
def test_a_stream_keeps_the_weights_it_was_made_with():
    rnn = build("lstm", (20, 1, 2, 8, 1), 0.0, "auto", torch.float32)
    x = torch.randn(20, 2)
    stream = Stream(rnn)
    expected = rnn(x[:, None]).output[-1, 0].detach()
    with torch.no_grad():
        rnn.weight_hh_l0.zero_()
    stream.feed(x)
    torch.testing.assert_close(stream.output, expected)


def test_wrong_arguments(either_path):
    rnn = SkipLSTM(3, 4)
    stream = Stream(rnn)
    with pytest.raises(ValueError, match=r"sample 0 must have 3 numbers, got shape \(2,\)"):
        stream.push([1.0, 2.0])
    with pytest.raises(ValueError, match=r"samples must be \(n, 3\), got shape \(5, 2\)"):
        stream.feed(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="cannot let 1 samples pass: of the next ones 0 are skipped"):
        stream.advance(1)
    assert (stream.position, stream.used) == (0, 0)
    with pytest.raises(TypeError, match="a stream needs a SkipLSTM, SkipGRU or other SkipRNN, got RandomSkipLSTM"):
        Stream(RandomSkipLSTM(3, 4))
    with pytest.raises(ValueError, match="state must hold tensors of shapes"):
        Stream(rnn, state=rnn.initial_state(2))
    with pytest.raises(ValueError, match=r"x must be \(B, D\) with D = 3, got shape \(3,\)"):
        rnn.step(torch.zeros(3))
    with pytest.raises(ValueError, match="input must be"):
        SkipGRU(3, 4).step(torch.zeros(2, 5))


def test_a_stream_takes_a_state_of_any_kind(either_path):
    """Other dtypes and layouts are converted, since compiled code reads the numbers as they lie in memory."""
    rnn = build("lstm", (40, 1, 2, 16, 2), -1.0, "auto", torch.float32)
    x = torch.randn(40, 2)
    state = rnn(x[:20, None]).state
    expected = rnn(x[20:, None], state).state
    crooked = state._replace(h=state.h.transpose(0, 2).contiguous().transpose(0, 2), c=state.c.mT.contiguous().mT)
    for given in (state, crooked, type(state)(*(s.double() for s in state))):
        stream = Stream(rnn, state=given)
        stream.feed(x[20:])
        assert_states_close(stream.state, expected, 1e-5)


@needs_compiled
def test_a_stream_does_not_follow_its_module():
    rnn = build("lstm", (40, 1, 2, 16, 1), -1.0, "auto", torch.float32)
    x = torch.randn(40, 2)
    expected = rnn(x[:, None]).state
    with torch.inference_mode():
        stream = Stream(rnn)
    with torch.no_grad():
        rnn.initial_h.add_(5)
    rnn.double()
    for _ in range(2):
        stream.reset()
        stream.feed(x)
        assert_states_close(stream.state, expected, 1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_half_precision_streams(layers):
    rnn = SkipLSTM(2, 16, layers, dtype=torch.bfloat16)
    stream = Stream(rnn)
    x = torch.randn(30, 2, dtype=torch.bfloat16)
    stream.feed(x)
    assert torch.equal(stream.output, rnn(x[:, None]).output[-1, 0])


def test_states_that_do_not_fit_are_refused():
    rnn = SkipLSTM(2, 4)
    state = rnn.initial_state(3)
    with pytest.raises(ValueError, match="state must hold tensors of shapes"):
        rnn.advance(state._replace(cum_update_prob=torch.zeros(1)), 0)
    with pytest.raises(ValueError, match="state must hold tensors of shapes"):
        rnn.advance(state._replace(update_prob=torch.zeros(3000)), 0)
    with pytest.raises(TypeError):
        rnn.advance(state, 0.5)


@pytest.mark.parametrize("field", ["update_prob", "cum_update_prob"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -0.1, 1.5])
def test_a_stream_refuses_a_gate_that_cannot_be(field, value, either_path):
    rnn = build("lstm", (9, 1, 2, 7, 1), -1.0, "auto", torch.float32)
    state = rnn.initial_state(1)._replace(**{field: torch.tensor([value])})
    message = rf"{field} of a state must lie in 0\.\.1, got"
    with pytest.raises(ValueError, match=message):
        Stream(rnn, state=state)
    stream = Stream(rnn)
    stream.feed(torch.randn(9, 2))
    before = stream.state
    with pytest.raises(ValueError, match=message):
        stream.reset(state)
    assert stream.position == 9
    assert_states_close(stream.state, before, 0)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_stream_reads_used_samples_alone_and_ends_after_nan(layers, either_path):
    rnn = build("lstm", (60, 1, 2, 7, layers), -2.0, "auto", torch.float32)
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    output, _, gate = rnn(x[:, None])
    stream = Stream(rnn)
    stream.feed(x.masked_fill(gate == 0, torch.nan))
    torch.testing.assert_close(stream.output, output[-1, 0].detach())
    stream.reset()
    assert stream.push([torch.nan, 0.0])
    assert stream.feed(x) == 60  # p is NaN, which opens the gate
    assert stream.skip_next == 0
    assert stream.push(x[0])
    assert stream.state.h.isnan().all()
