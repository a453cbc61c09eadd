"""The GPU engine for large stacks against the definition: on a GPU where there is one, else in Triton's interpreter."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM
from tests.problems import MODULES, assert_same, build, problem, run

graph = pytest.importorskip("skiprnn.engines.graph", reason="triton is not installed")
iterations = pytest.importorskip("skiprnn.engines.graph_iterations")
triton = pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BIASES = {"all": 100.0, "some": -1.5, "few": -4.0}
SMALL = (9, 3, 2, 11, 2)  # T, B, D, H, layers
LONGER = 8 if DEVICE == "cuda" else 5  # steps where gradients are wanted, each of which takes the interpreter a second
each_cell = pytest.mark.parametrize("name", MODULES)


def few_of(*choices):
    """All combinations on a GPU; in the interpreter, which is slow, as few as have each two of the choices together."""
    whole = itertools.product(*(enumerate(each) for each in choices))
    numbered = [tuple(zip(*combination, strict=True)) for combination in whole]
    return [values for numbers, values in numbered if DEVICE == "cuda" or sum(numbers) % 3 == 0]


def pair(name, shape, bias, seed=1):
    """Ours, and the definition in float64."""
    both = (("graph", torch.float32), ("reference", torch.float64))
    return [build(name, shape, bias, engine, dtype, seed).to(DEVICE) for engine, dtype in both]


def inputs(shape):
    return torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """The interpreter is slow, and runs the iterations of a chunk that nobody needs."""
    if DEVICE == "cpu":
        monkeypatch.setattr(iterations, "CHUNK", 2)


@pytest.fixture
def small_pieces(monkeypatch):
    """Several replays and segments, and several parts of the units and of the skipped steps."""
    for name, value in {"CHUNK": 2, "SEGMENT": 4, "SKIPPED": 7, "BLOCK": 16, "WINDOW": 2}.items():
        monkeypatch.setattr(iterations, name, value)


@pytest.mark.parametrize(("name", "layers", "bias"), few_of(MODULES, [1, 2, 3], BIASES))
def test_equals_the_reference(name, layers, bias):
    shape = (6, 3, 2, 11, layers)
    ours, reference = pair(name, shape, BIASES[bias])
    x = inputs(shape)
    state = reference(x.to(reference.update_weight)).state  # from another sequence
    lengths = torch.tensor([0, 4, 6])
    assert_same(*(run(rnn, x, lengths=lengths, state=state) for rnn in (ours, reference)), tolerance=1e-5)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("name", "bias"), few_of(MODULES, ["some", "few", "all"]))
def test_equals_the_reference_piece_by_piece(name, bias):
    shape = (7, 2, 1030, 20, 2)
    both = pair(name, shape, BIASES[bias])
    x = inputs(shape) / 20
    lengths = torch.tensor([7, 4])
    assert_same(*(run(rnn, x, lengths=lengths) for rnn in both), tolerance=1e-5)


@pytest.mark.parametrize("shape", [(63, 1, 1, 5, 1), (1, 2, 3, 4, 2), (1, 1, 2, 3, 3)])
@each_cell
def test_equals_the_reference_at_the_edges(name, shape):
    assert_same(*(run(rnn, inputs(shape)) for rnn in pair(name, shape, -2.0)), tolerance=1e-5)


@each_cell
def test_equals_the_reference_at_512_units(name):
    shape = (3, 2, 40, 512, 2)
    both = pair(name, shape, -0.5)
    with torch.no_grad():
        both[0].update_weight.zero_()
        both[1].update_weight.zero_()
    assert_same(*(run(rnn, inputs(shape)) for rnn in both), tolerance=1e-5)


def test_what_is_kept_serves_other_lengths_calls_between_and_a_second_backward():
    calls = []
    for steps, bias in ((LONGER, -1.5), (3, 100.0), (LONGER, -4.0)):
        both = pair("lstm", (steps, 2, 2, 11, 2), bias)
        x = inputs((steps, 2, 2))
        calls.append([(rnn, rnn(x.to(rnn.update_weight))) for rnn in both])
    for _ in range(2):
        for call in calls:
            gradients = [
                torch.autograd.grad(out.output.square().sum(), list(rnn.parameters()), retain_graph=True)
                for rnn, out in call
            ]
            for mine, other in zip(*gradients, strict=True):
                scale = max(1.0, float(other.abs().max()))
                torch.testing.assert_close(mine.double(), other, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("every_step", [True, False])
@each_cell
def test_without_gradients(name, every_step):
    ours, reference = pair(name, SMALL, -1.5)
    with torch.no_grad():
        mine, other = (rnn(inputs(SMALL).to(rnn.update_weight), every_step=every_step) for rnn in (ours, reference))
    assert_same((mine, []), (other, []), tolerance=1e-5)


@each_cell
def test_batches_may_come_first_and_gradients_have_any_layout(name):
    shape = (LONGER, 3, 2, 11, 2)
    both = pair(name, shape, -1.5)
    gradients = []
    for rnn in both:
        rnn.batch_first = True
        x = inputs(shape).transpose(0, 1).contiguous().to(rnn.update_weight).requires_grad_()
        out = rnn(x)
        loss = out.output.transpose(1, 2).contiguous().square().sum() + out.output.sum() + out.update_gate.sum()
        gradients.append(torch.autograd.grad(loss, [x, *rnn.parameters()]))
    for mine, other in zip(*gradients, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=1e-5 * scale)


def test_memory_kept_for_backward_follows_the_updates(monkeypatch):
    monkeypatch.setattr(iterations, "SEGMENT", 4)
    kept = {}
    for bias in (100.0, -4.0):
        rnn = pair("lstm", (20, 2, 1, 16, 2), bias)[0]
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            rnn(inputs((20, 2, 1)).to(rnn.update_weight))
        kept[bias] = sum(sizes)
    an_update = 2 * 2 * 16 * (4 + 1 + 1)  # of all sequences and layers: gates, h and c
    spared = 12 if DEVICE == "cpu" else 8  # on a GPU the host learns a chunk later that nobody goes on
    assert kept[-4.0] < kept[100.0] - spared * an_update


@pytest.mark.parametrize(
    ("rnn", "reason"),
    [
        (lambda: SkipLSTM(2, 5, max_skip=3, engine="graph"), "no bounds"),
        (lambda: SkipLSTM(2, 5, 2, dropout=0.5, engine="graph"), "no dropout"),
    ],
)
def test_says_what_it_cannot_run(rnn, reason):
    rnn = rnn().to(DEVICE)
    with pytest.raises(RuntimeError, match=reason):
        rnn(torch.zeros(3, 1, 2, device=DEVICE, dtype=rnn.update_weight.dtype))


def test_is_not_for_float16():
    rnn = SkipLSTM(2, 5, engine="graph").to(DEVICE)
    with torch.autocast(DEVICE, torch.float16), pytest.raises(RuntimeError, match=r"under autocast to torch\.float16"):
        rnn(torch.zeros(3, 1, 2, device=DEVICE))


@pytest.mark.parametrize(
    ("capability", "compiler", "reason"),
    [((9, 0), "/usr/bin/gcc", None), ((7, 5), "/usr/bin/gcc", "capability 8.0"), ((9, 0), None, "C compiler")],
)
def test_says_what_a_gpu_lacks(monkeypatch, capability, compiler, reason):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(graph.shutil, "which", lambda name: compiler)
    said = graph.unfit_device.__wrapped__(torch.device("cuda"))
    assert said is None if reason is None else reason in said


def test_compiles_for_an_h100():
    """Few registers are spilled, and float32 is read four numbers at a time where rows are aligned."""
    cases = ["lstm,512,bf16", "lstm,512,fp32", "gru,100,bf16"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sm90_graph", *cases],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one.pop("case") for one in found] == cases
    for one in found:
        for kernel in one.values():
            assert kernel["stack"] <= 32, one  # bytes
            assert kernel["shared"] <= 48 * 1024, one
    wide = dict(zip(cases, found, strict=True))["lstm,512,fp32"]
    assert min(wide[name]["vectors"] for name in ("update", "candidates", "walk", "lower")) >= 8


def test_what_is_kept_of_inference_mode_serves_others():
    rnn = SkipGRU(3, 7, 2, engine="graph").to(DEVICE)
    x = torch.randn(3, 2, 3, device=DEVICE)
    graph.forwards.graphs.clear()
    with torch.inference_mode():
        expected = rnn(x).output
    with torch.no_grad():
        assert torch.equal(rnn(x).output, expected)


def test_graphs_are_kept_by_the_rounding_of_their_products():
    rnn, matmul = SkipGRU(3, 7, engine="graph").to(DEVICE), torch.backends.cuda.matmul
    before, sizes = matmul.fp32_precision, []
    try:
        for rounding in ("ieee", "tf32"):
            matmul.fp32_precision = rounding
            sizes.append(iterations.Size.of(problem(rnn, torch.zeros(2, 3, 3, device=DEVICE)), torch.float32))
    finally:
        matmul.fp32_precision = before
    assert sizes[0] != sizes[1]
