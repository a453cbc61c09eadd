"""The event-driven engine against the definition: outputs, gates, states and every gradient."""

import copy
import functools
import pickle

import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM, budget_loss, gate
from skiprnn.engines import events, native
from skiprnn.engines.events import _Update as update
from tests.problems import BIASES, MODULES, SOME, assert_same, build, needs_compiled, problem, run

SHAPES = {  # T, B, D, H, layers
    "paper": (40, 6, 2, 11, 1),
    "one_step": (1, 4, 3, 5, 1),
    "one_sequence": (63, 1, 1, 8, 1),
    "odd": (63, 3, 5, 100, 1),
    "wide": (20, 70, 40, 16, 1),
    "two_layers": (30, 5, 3, 7, 2),
    "three_layers": (25, 4, 1, 6, 3),  # narrow samples: of the first layer the tape keeps another thing
    "wide_inputs": (15, 8, 300, 63, 2),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("per_step", [True, False], ids=["per_step", "last_step"])
@pytest.mark.parametrize("bias", [BIASES[name] for name in SOME], ids=SOME)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_reference_in_float64(name, shape, bias, per_step):
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = [
        run(build(name, shape, bias, engine, torch.float64), x, per_step=per_step) for engine in ("events", "reference")
    ]
    assert_same(*results, tolerance=1e-12)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_reference_on_random_problems(name, seed):
    draws = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=draws))

    shape = (integer(1, 40), integer(1, 9), integer(1, 6), integer(1, 12), integer(1, 3))
    bias = float(torch.empty(()).uniform_(-5, 1, generator=draws))
    x = torch.randn(shape[:3], generator=draws, dtype=torch.float64)
    lengths = torch.randint(0, shape[0] + 1, (shape[1],), generator=draws)
    state = build(name, shape, bias, "reference", torch.float64, seed)(x).state
    results = [
        run(build(name, shape, bias, engine, torch.float64, seed), x, lengths=lengths, state=state)
        for engine in ("events", "reference")
    ]
    assert_same(*results, tolerance=1e-12)


@pytest.mark.pairwise
@needs_compiled
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("per_step", [True, False], ids=["per_step", "last_step"])
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_the_compiled_path_equals_the_reference(name, shape, bias, per_step):
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.arange(shape[1]) * 7 % (shape[0] + 1) if per_step else None
    reference = build(name, shape, bias, "reference", torch.float64)
    state = reference(x).state
    ours = build(name, shape, bias, "events", torch.float32)
    assert native.why_not(problem(ours, x.float())) is None
    assert_same(
        run(ours, x, lengths=lengths, per_step=per_step, state=state),
        run(reference, x, lengths=lengths, per_step=per_step, state=state),
        tolerance=2e-5,
    )


@pytest.mark.usefixtures("two_threads", "instructions")
@pytest.mark.parametrize("bias", ["most", "few"])
@pytest.mark.parametrize("shape", ["paper", "odd", "wide", "wide_inputs"])
@pytest.mark.parametrize("name", MODULES)
def test_every_instruction_set_computes_the_same(name, shape, bias):
    shape = SHAPES[shape]
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.arange(shape[1]) * 7 % (shape[0] + 1)
    engines = (("events", torch.float32), ("reference", torch.float64))
    results = [run(build(name, shape, BIASES[bias], *engine), x, lengths=lengths) for engine in engines]
    assert_same(*results, tolerance=2e-5)
    with torch.no_grad():
        output = build(name, shape, BIASES[bias], *engines[0])(x.float(), None, lengths).output
    torch.testing.assert_close(output.double(), results[1][0].output, rtol=0, atol=1e-5)


@needs_compiled
@pytest.mark.usefixtures("two_threads")
def test_the_compiled_path_reads_any_layout_and_is_deterministic():
    shape = (30, 70, 3, 12, 1)
    rnn = build("lstm", shape, -1.0, "events", torch.float32)
    x = torch.randn(70, 3, 30).permute(2, 0, 1)
    first = run(rnn, x)
    for other in (run(rnn, x.contiguous()), run(rnn, x)):
        assert all(
            torch.equal(a, b) for a, b in zip((first[0].output, *first[1]), (other[0].output, *other[1]), strict=True)
        )
    rnn.batch_first = True
    assert torch.equal(rnn(x.transpose(0, 1)).output.transpose(0, 1), first[0].output)


@needs_compiled
@pytest.mark.parametrize("name", MODULES)
def test_without_the_compiled_path_torch_does_the_same(name, monkeypatch):
    shape = SHAPES["odd"]
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0))
    rnn = build(name, shape, -1.5, "events", torch.float32)
    fast = run(rnn, x)
    monkeypatch.setattr("skiprnn.compiled.LIBRARY", None)
    assert_same(fast, run(rnn, x), tolerance=2e-5)


@functools.cache
def of_the_reference(name, shape, bias, per_step, bound):
    """What the definition returns, gradients included, with a bound of the gate's gradient."""
    rnn = build(name, SHAPES[shape], BIASES[bias], "reference", torch.float64)
    rnn.gate_grad_clip = bound
    return run(rnn, **some_sequences(shape), per_step=per_step)


def some_sequences(shape):
    T, B, D = SHAPES[shape][:3]
    x = torch.randn(T, B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"x": x, "lengths": T - torch.arange(B) % 3}


@pytest.mark.pairwise
@pytest.mark.parametrize("path", ["torch", pytest.param("compiled", marks=needs_compiled)])
@pytest.mark.parametrize("per_step", [True, False], ids=["per_step", "last_step"])
@pytest.mark.parametrize("bias", ["most", "some", "few"])
@pytest.mark.parametrize("shape", ["paper", "odd", "wide", "two_layers"])
@pytest.mark.parametrize("name", MODULES)
def test_a_bounded_gradient_of_the_gate_is_the_references(path, name, shape, bias, per_step):
    bound = 0.5 if shape == "wide" else 0.05  # where gradients are large, a small one has float32's error of those
    dtype, tolerance = (torch.float64, 1e-12) if path == "torch" else (torch.float32, 2e-5)
    ours = build(name, SHAPES[shape], BIASES[bias], "events", dtype)
    ours.gate_grad_clip = bound
    expected, unbounded = (of_the_reference(name, shape, bias, per_step, clip) for clip in (bound, None))
    assert_same(run(ours, **some_sequences(shape), per_step=per_step), expected, tolerance)
    of_weight = -2  # of update_weight and update_bias, the last parameters before the initial state
    difference = (expected[1][of_weight] - unbounded[1][of_weight]).abs().max()
    assert difference > 1e-2 * unbounded[1][of_weight].abs().max()  # it acted


@pytest.mark.pairwise
@pytest.mark.parametrize("bias", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("shape", ["paper", "two_layers"])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=needs_compiled)])
def test_bounded_skips_are_the_references(name, shape, bias, dtype):
    shape = SHAPES[shape]
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engines = (("events", dtype), ("reference", torch.float64))
    rnns = ours, _ = [build(name, shape, bias, *engine) for engine in engines]
    for rnn in rnns:
        rnn.bounds = gate.bounds_of_skips(2, 6)
    if dtype is torch.float32:
        assert native.why_not(problem(ours, x.float())) is None
    results = [run(rnn, x, lengths=shape[0] - torch.arange(shape[1]) % 3) for rnn in rnns]
    assert_same(*results, tolerance=1e-12 if dtype is torch.float64 else 2e-5)


@pytest.mark.parametrize("engine", ["events", "reference"])
@pytest.mark.parametrize(("least", "most"), [(0, 5), (2, 5), (4, 4), (3, None)])
def test_bounded_skips_are_kept_by_any_sequence(engine, least, most):
    torch.manual_seed(0)
    steps, batch = 60, 10_000 if engine == "events" else 200
    rnn = SkipGRU(1, 2, min_skip=least, max_skip=most, engine=engine)
    with torch.no_grad():
        rnn.update_weight.mul_(30)
        used = rnn(torch.randn(steps, batch, 1) * 3).update_gate.cumsum(0)
    before = torch.cat([torch.zeros(1, batch), used])
    assert (before[least + 1 :] - before[: -least - 1]).max() == 1  # of so many samples in a row one is used, at most
    if most is not None:
        assert (before[most + 1 :] - before[: -most - 1]).min() >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_sums_are_those_of_adding_step_by_step(dtype):
    """Thousands of probabilities, ties among them: the gate of the events is bit for bit that of the reference."""
    torch.manual_seed(0)
    logits = torch.cat([torch.empty(4000).uniform_(-7, 1), torch.logit(0.5 ** torch.arange(1.0, 9))])
    rnns = [SkipLSTM(1, 1, engine=engine, dtype=dtype) for engine in ("events", "reference")]
    x = torch.zeros(400, len(logits), 1, dtype=dtype)
    state = rnns[0].initial_state(len(logits))
    p = torch.sigmoid(logits.to(dtype))
    state = state._replace(update_prob=p, cum_update_prob=p * 0.37 * (p < 0.5))
    with torch.no_grad():
        for rnn in rnns:  # after its first update the gate stays shut, whatever the inputs
            rnn.update_weight.zero_()
            rnn.update_bias.fill_(-50)
        ours, theirs = (rnn(x, state) for rnn in rnns)
    assert torch.equal(ours.update_gate, theirs.update_gate)
    assert torch.equal(ours.state.cum_update_prob, theirs.state.cum_update_prob)
    assert ours.update_gate.argmax(0).unique().numel() > 1


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", MODULES)
def test_a_gate_state_made_by_hand_may_be_saturated(name, layers):
    shape = (12, 4, 2, 6, layers)
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        rnns = [build(name, shape, -1.0, "events", dtype), build(name, shape, -1.0, "reference", torch.float64)]
        state = (
            rnns[1]
            .initial_state(4)
            ._replace(
                update_prob=torch.tensor([0.3, 0.7, 0.2, 1.0], dtype=torch.float64),
                cum_update_prob=torch.tensor([0.9, 0.45, 0.1, 0.0], dtype=torch.float64),
            )
        )
        assert_same(*(run(rnn, x, state=state, lengths=[12, 12, 3, 0]) for rnn in rnns), tolerance=tolerance)


def test_rows_without_gradient_do_not_poison_the_others():
    rnns = [build("gru", (300, 2, 1, 6, 2), -4.0, engine, torch.float32) for engine in ("events", "reference")]
    x = torch.randn(300, 2, 1, generator=torch.Generator().manual_seed(0)) * 30
    gradients = []
    for rnn in rnns:
        with torch.no_grad():
            rnn.update_weight.mul_(20)
        gradients.append(torch.autograd.grad(rnn(x).output[:, 0].sum(), list(rnn.parameters())))
    assert all(g.isfinite().all() for g in gradients[1])
    assert all(g.isfinite().all() for g in gradients[0])


@pytest.mark.parametrize("layers", [1, 2])
def test_inputs_that_are_not_finite_give_what_the_reference_gives(layers):
    for bad in (torch.nan, torch.inf):
        x = torch.randn(10, 3, 2, generator=torch.Generator().manual_seed(0))
        x[0, 1] = bad  # used; a skipped sample is not even read
        ours, theirs = (
            build("gru", (10, 3, 2, 11, layers), -0.5, engine, torch.float32)(x) for engine in ("events", "reference")
        )
        assert torch.equal(ours.update_gate, theirs.update_gate)
        assert torch.equal(ours.output.isfinite(), theirs.output.isfinite())


@needs_compiled
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", MODULES)
def test_the_compiled_path_reads_of_samples_that_are_not_finite_what_the_reference_reads(name, grad):
    shape = (40, 3, 2, 11, 1)
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0))
    ours, reference = (build(name, shape, -1.5, engine, torch.float32) for engine in ("events", "reference"))
    with torch.set_grad_enabled(grad):
        clean = ours(x)
        x[clean.update_gate == 0] = torch.nan
        for a, b in zip((*ours(x)[::2], *ours(x).state), (*clean[::2], *clean.state), strict=True):
            assert torch.equal(a, b)
        x[int(clean.update_gate[:, 1].nonzero()[3]), 1, 0] = torch.nan  # used
        spoilt, expected = ours(x), reference(x)
    assert torch.equal(spoilt.update_gate, expected.update_gate)
    torch.testing.assert_close(spoilt.output, expected.output, equal_nan=True)
    assert expected.output[-1].isnan().any(-1).tolist() == [False, True, False]


@needs_compiled
def test_defaults_of_torch_do_not_reach_the_compiled_path():
    shape = SHAPES["paper"]
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0))
    rnn = build("lstm", shape, -1.0, "events", torch.float32)
    expected = run(rnn, x, per_step=False)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            out = rnn(x, every_step=False)
            gradients = torch.autograd.grad(out.state.h.sum(), list(rnn.parameters()), allow_unused=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out.output, expected[0].output)
    assert torch.equal(out.update_gate, expected[0].update_gate)
    assert all(g is None or (g.device.type == "cpu" and g.dtype == torch.float32) for g in gradients)


@needs_compiled
def test_copies_take_the_compiled_path():
    rnn = SkipGRU(3, 5)
    for copied in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert type(copied(torch.randn(4, 2, 3)).output.grad_fn) is type(rnn(torch.randn(4, 2, 3)).output.grad_fn)


def test_inference_keeps_no_tape(monkeypatch):
    kept = []
    monkeypatch.setattr(events, "_Update", lambda *values: kept.append(update(*values)) or kept[-1])
    rnn, x = build("lstm", (20, 3, 2, 8, 2), 0.0, "events", torch.float64), torch.randn(20, 3, 2).double()
    with torch.no_grad():
        rnn(x)
    assert not kept
    rnn(x)
    assert kept


def test_double_backward_is_refused():
    x = torch.randn(5, 2, 3, requires_grad=True)
    for dtype in (torch.float32, torch.float64):
        rnn = SkipLSTM(3, 4, engine="events", dtype=dtype)
        with pytest.raises(
            RuntimeError, match="cannot be differentiated twice; make the module with engine='reference'"
        ):
            torch.autograd.grad(rnn(x.to(dtype)).output.sum(), x, create_graph=True)


def test_bfloat16_autocast_trains():
    for name in MODULES:
        rnn = build(name, (20, 3, 2, 8, 2), 0.0, "events", torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            output, state, gate = rnn(torch.randn(20, 3, 2))
            loss = output.float().square().mean() + budget_loss(gate, 0.1, batch_first=False)
        loss.backward()
        assert gate.dtype == state.update_prob.dtype == torch.float32
        assert all(p.grad is not None and p.grad.isfinite().all() for p in rnn.parameters())


def test_long_sequences_train_in_bounded_memory():
    """20,000 steps of which some 1 % are used: the tape follows the updates."""
    rnn = build("lstm", (20_000, 2, 1, 16, 1), -5.0, "events", torch.float64)
    with torch.no_grad():
        rnn.update_weight.zero_()
    output, state, gate = rnn(torch.randn(20_000, 2, 1, dtype=torch.float64))
    saved = output.grad_fn.updates
    assert len(saved) == gate.sum(0).max() < 400
    (state.h.sum() + budget_loss(gate, 0.1, batch_first=False)).backward()
    assert rnn.update_bias.grad.isfinite().all()


@needs_compiled
def test_outputs_may_be_changed_in_place():
    for every_step in (True, False):
        for rnn in (SkipLSTM(3, 40), SkipGRU(3, 5, 2), SkipGRU(3, 5, 2, engine="reference")):
            output = rnn(torch.randn(60, 120, 3), every_step=every_step).output
            output.relu_()
            output.sum().backward()


@needs_compiled
def test_memory_is_used_again_and_what_is_too_small_given_back():
    rnn = SkipLSTM(2, 40)
    native.forget_memory()
    sizes = []
    for steps in (150, 150, 140, 170, 200):
        rnn(torch.randn(steps, 60, 2), every_step=False).state.h.sum().backward()
        sizes.append([len(memory) for memory in native._KEPT])
    assert sizes[0] == sizes[1] == sizes[2]
    assert [len(kept) for kept in sizes] == [1] * 5
    assert sizes[4] > sizes[3] > sizes[2]
    native.forget_memory()


@needs_compiled
@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own use of it
def test_what_compiled_code_cannot_differentiate_is_left_to_others():
    rnn, x = SkipLSTM(2, 4), torch.randn(5, 3, 2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert native.why_not(problem(rnn, dual)) is not None
        slow = SkipLSTM(2, 4, engine="reference")
        assert torch.autograd.forward_ad.unpack_dual(slow(dual).output).tangent is not None

    def loss(x):
        assert native.why_not(problem(rnn, x)) is not None
        return x.sum()

    torch.func.grad(loss)(x)


def test_other_default_devices_change_nothing():
    for dtype in (torch.float32, torch.float64):
        rnn = SkipLSTM(2, 4, dtype=dtype)
        x = torch.randn(5, 3, 2, dtype=dtype)
        state = rnn(x).state
        expected = rnn.step(x[0], state).skip_next, rnn(x, lengths=[5, 2, 0]).output
        with torch.device("meta"):
            assert torch.equal(rnn.step(x[0], state).skip_next, expected[0])
            if dtype is torch.float32:
                assert torch.equal(rnn(x, lengths=[5, 2, 0]).output, expected[1])
