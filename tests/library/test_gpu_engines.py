"""What both GPU engines owe the definition: on a GPU where there is one, else in emulators."""

import numpy as np
import pytest
import torch

from skiprnn import SkipLSTM, SkipRNN
from skiprnn.cells import LAYER_NORM_GRU
from skiprnn.engines import cuda
from skiprnn.gate import added
from tests.problems import MODULES, assert_same, build, run

graph = pytest.importorskip("skiprnn.engines.graph", reason="triton is not installed")
iterations = pytest.importorskip("skiprnn.engines.graph_iterations")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = {"cuda": 1, "graph": 2}
each_cell = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(params=LAYERS)
def engine(request, monkeypatch):
    """The interpreter is slow, and runs the iterations of a chunk of graphs that nobody needs."""
    if DEVICE == "cpu":
        monkeypatch.setattr(iterations, "CHUNK", 2)
    return request.param


def pair(engine, name, shape, bias, seed=1):
    """Ours, and the definition in float64, of (T, B, D, H) and the engine's number of layers."""
    both = ((engine, torch.float32), ("reference", torch.float64))
    shape = shape if len(shape) == 5 else (*shape, LAYERS[engine])
    return [build(name, shape, bias, kind, dtype, seed).to(DEVICE) for kind, dtype in both]


def inputs(shape):
    return torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def steps(engine, wanted, few):
    """So many as are wanted, but in the interpreter, where each takes half a second, few."""
    return few if (engine, DEVICE) == ("graph", "cpu") else wanted


def small(engine):
    """T, B, D, H."""
    return steps(engine, 9, 6), 3, 2, 11


@pytest.mark.parametrize(
    ("engine", "kept"),
    [("cuda", 0), ("cuda", 2**28), ("graph", 0)],
    indirect=["engine"],
    ids=["cuda-in_rows", "cuda-as_stored", "graph"],
)
@each_cell
def test_where_only_the_last_state_and_the_budget_count(engine, name, kept, monkeypatch):
    monkeypatch.setattr(cuda, "MOST_KEPT", kept)
    shape = small(engine)
    both = pair(engine, name, shape, -1.5)
    assert_same(*(run(rnn, inputs(shape), per_step=False) for rnn in both), tolerance=1e-5)


@pytest.mark.parametrize("bias", [0.0, -4.0])
@each_cell
def test_a_bounded_gradient_of_the_gate_is_the_references(engine, name, bias):
    shape = (steps(engine, 8, 6), 3, 2, 11)
    both = pair(engine, name, shape, bias)
    unbounded = run(both[1], inputs(shape))
    for rnn in both:
        rnn.gate_grad_clip = 0.05
    ours, expected = (run(rnn, inputs(shape)) for rnn in both)
    assert_same(ours, expected, tolerance=1e-5)
    assert not torch.allclose(expected[1][-2], unbounded[1][-2], rtol=0.01)  # it acted on the update weights


@pytest.mark.parametrize(("engine", "seed"), [*(("cuda", k) for k in range(6)), ("graph", 0)], indirect=["engine"])
@each_cell
def test_random_problems(engine, name, seed):
    draws = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=draws))

    steps, sequences, layers = {"cuda": (40, 9, 1), "graph": (8, 4, 3)}[engine]
    shape = (integer(4, steps), integer(3, sequences), integer(1, 12), integer(1, 20), integer(1, layers))
    both = pair(engine, name, shape, float(torch.empty(()).uniform_(-5, 1, generator=draws)), seed)
    x = torch.randn(shape[:3], generator=draws, dtype=torch.float64)
    lengths = torch.randint(0, shape[0] + 1, (shape[1],), generator=draws)
    assert_same(*(run(rnn, x, lengths=lengths) for rnn in both), tolerance=1e-5)


@pytest.fixture
def bfloat16_dot(monkeypatch):
    """Triton's interpreter keeps bfloat16 as the integers of its bits, and multiplies those."""
    if DEVICE == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def value(handle):
        narrow = handle.data.dtype == np.uint16
        return (handle.data.astype(np.uint32) << 16).view(np.float32) if narrow else handle.data

    def create_dot(self, a, b, d, *_):
        return TensorHandle(np.matmul(value(a), value(b)) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("bfloat16_dot")
@pytest.mark.parametrize(
    ("engine", "name", "shape"),
    [
        ("cuda", "lstm", (15, 5, 2, 9)),
        ("cuda", "gru", (15, 5, 12, 100)),
        ("graph", "lstm", (8, 2, 2, 40)),
        ("graph", "gru", (8, 2, 2, 40)),
    ],
    indirect=["engine"],
)
def test_bfloat16_products_are_as_good_as_bfloat16(engine, name, shape):
    """Gates that follow from the bias alone: rounding may not flip them. Sums of gates stay float32."""
    both = pair(engine, name, shape, -1.0)
    for rnn in both:
        with torch.no_grad():
            rnn.update_weight.zero_()
    x = inputs(shape)
    exact = run(both[1], x)
    with torch.autocast(DEVICE, torch.bfloat16):
        rounded = run(both[0], x)
    assert rounded[0].output.dtype == rounded[0].state.update_prob.dtype == torch.float32
    assert_same(rounded, exact, tolerance=0.02)


@each_cell
def test_nothing_is_read_that_was_not_written(engine, name, monkeypatch):
    """Fresh memory and padding hold NaN."""
    for owner, make in ((torch.Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty")):
        original = getattr(owner, make)

        def poisoned(*arguments, original=original, **options):
            fresh = original(*arguments, **options)
            return fresh.fill_(torch.nan if fresh.is_floating_point() else 2**30)

        monkeypatch.setattr(owner, make, poisoned)
    monkeypatch.setattr(graph, "forwards", iterations.Kept())
    monkeypatch.setattr(graph, "backwards", iterations.Kept())
    shape = small(engine)
    end = 2 * shape[0] // 3
    both = pair(engine, name, shape, -1.5)
    x, lengths = inputs(shape), torch.tensor([shape[0], 0, end])
    x[0, 1] = x[end:, 2] = torch.nan
    assert_same(*(run(rnn, x, lengths=lengths) for rnn in both), tolerance=1e-5)


def test_gate_sums_are_those_of_adding_step_by_step(engine):
    torch.manual_seed(0)
    logits = torch.cat([torch.empty(6).uniform_(-6, 1), torch.logit(0.5 ** torch.arange(1.0, 9))])
    both = [SkipLSTM(1, 1, LAYERS[engine], engine=kind).to(DEVICE) for kind in (engine, "reference")]
    x = torch.zeros(150, len(logits), 1, device=DEVICE)
    p = torch.sigmoid(logits).to(DEVICE)
    state = both[0].initial_state(len(logits))
    state = state._replace(update_prob=p, cum_update_prob=p * 0.37 * (p < 0.5))
    with torch.no_grad():
        for rnn in both:  # after its first update the gate stays shut, whatever the inputs
            rnn.update_weight.zero_()
            rnn.update_bias.fill_(-50)
        ours, theirs = (rnn(x, state) for rnn in both)
    assert torch.equal(ours.update_gate, theirs.update_gate)
    now, total = state.update_prob, state.cum_update_prob
    for u in ours.update_gate:
        now = torch.where(u > 0, ours.state.update_prob, now)
        total = torch.where(u > 0, 0, added(total, now))
    assert torch.equal(ours.state.cum_update_prob, total)


def test_a_gate_state_made_by_hand_may_be_saturated(engine):
    end = steps(engine, 8, 5)
    both = pair(engine, "lstm", (end, 4, 2, 6), -1.0)
    state = both[1].initial_state(4)
    state = state._replace(
        update_prob=torch.tensor([0.3, 0.7, 0.2, 1.0], dtype=torch.float64),
        cum_update_prob=torch.tensor([0.9, 0.45, 0.1, 0.0], dtype=torch.float64),
    )
    x = inputs((end, 4, 2))
    assert_same(*(run(rnn, x, state=state, lengths=[end, end, 3, 0]) for rnn in both), tolerance=1e-5)


@pytest.mark.parametrize("features", [2, 10])
@each_cell
def test_skipped_samples_are_not_read_and_nan_in_used_ones_spreads(engine, name, features):
    shape = (steps(engine, 12, 9), 3, features, 11)
    x, both = inputs(shape), pair(engine, name, shape, -1.0)
    gate = both[1](x.to(both[1].update_weight)).update_gate.cpu()
    x[gate == 0] = torch.nan
    x[int(gate[:, 1].nonzero()[1]), 1, 0] = torch.nan
    ours, reference = (rnn(x.to(rnn.update_weight)) for rnn in both)
    assert torch.equal(ours.update_gate.double(), reference.update_gate)
    for mine, other in zip((ours.output, *ours.state), (reference.output, *reference.state), strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=1e-5, equal_nan=True)
    assert reference.state.update_prob.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("steps", [0, 3])
def test_empty_batches_and_sequences(engine, steps):
    for shape in ((steps, 0, 2, 5), (0, 2, 2, 5)):
        ours, reference = (rnn(inputs(shape).to(rnn.update_weight)) for rnn in pair(engine, "gru", shape, 0.0))
        assert ours.output.shape == reference.output.shape
        assert_same((ours, []), (reference, []), tolerance=1e-5)


@pytest.mark.parametrize(
    ("rnn", "reason"),
    [
        (lambda **engine: SkipRNN(LAYER_NORM_GRU, 2, 5, **engine), "it has no LayerNormGRUCell"),
        (lambda **engine: SkipLSTM(2, 5, dtype=torch.float64, **engine), r"not torch\.float64"),
    ],
)
def test_says_what_it_cannot_run(engine, rnn, reason):
    rnn = rnn(engine=engine).to(DEVICE)
    with pytest.raises(RuntimeError, match=reason):
        rnn(torch.zeros(3, 1, 2, device=DEVICE, dtype=rnn.update_weight.dtype))


def test_needs_a_gpu_outside_the_interpreter(engine, monkeypatch):
    monkeypatch.setattr(cuda, "EMULATED", None)
    monkeypatch.setattr(graph.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="CUDA devices, not on cpu"):
        SkipLSTM(2, 5, engine=engine)(torch.zeros(3, 1, 2))


def test_cannot_be_differentiated_twice(engine):
    rnn = SkipLSTM(2, 5, engine=engine).to(DEVICE)
    loss = rnn(torch.randn(3, 2, 2, device=DEVICE)).output.square().sum()
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(loss, list(rnn.parameters()), create_graph=True)


def test_samples_may_be_what_another_module_rounded(engine):
    rnn, first = SkipLSTM(2, 5, engine=engine).to(DEVICE), torch.nn.Linear(3, 2).to(DEVICE)
    with torch.no_grad():
        rnn.update_weight.zero_()
    x = torch.randn(4, 3, 3, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        samples = first(x)
        assert samples.dtype == torch.bfloat16
        rnn(samples).output.sum().backward()
    assert first.weight.grad.abs().max() > 0
