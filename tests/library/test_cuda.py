"""The GPU engine of one layer against the definition: on a GPU where there is one, else in an emulator."""

import mmap
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM, budget_loss, engines, reference
from skiprnn.cells import LSTM
from skiprnn.engines import cuda, cuda_kernels
from skiprnn.gate import bounds_of_skips
from tests import sm90
from tests.problems import MODULES, assert_same, build, problem, run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {  # T, B, D, H, layers
    "paper": (21, 3, 2, 110, 1),
    "one_step": (1, 17, 1, 8, 1),
    "one_sequence": (63, 1, 1, 128, 1),
    "wide": (9, 5, 10, 100, 1),
}
BIASES = {"all": 100.0, "some": -1.5, "few": -4.0}
SMALL = (12, 3, 2, 11, 1)


def pair(name, shape, bias, seed=1):
    """Ours, and the definition in float64."""
    both = (("cuda", torch.float32), ("reference", torch.float64))
    return [build(name, shape, bias, engine, dtype, seed).to(DEVICE) for engine, dtype in both]


def inputs(shape):
    return torch.randn(shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.pairwise
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_reference(name, shape, bias):
    ours, reference = pair(name, shape, bias)
    x = inputs(shape)
    state = reference(x.to(reference.update_weight)).state  # from another sequence
    lengths = torch.arange(shape[1]) * 7 % (shape[0] + 1)
    assert_same(*(run(rnn, x, lengths=lengths, state=state) for rnn in (ours, reference)), tolerance=1e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="memory that is only reserved is a matter of the CPU")
@pytest.mark.parametrize("name", MODULES)
def test_addresses_have_64_bits(name):
    far = 2**30 + 8  # the third step is beyond 32 bits, the stride is not
    no_reserve = 0x4000  # Linux's MAP_NORESERVE
    memory = mmap.mmap(-1, 4 * (2 * far + 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    x = torch.frombuffer(memory, dtype=torch.float32).as_strided((3, 3, 2), (far, 2, 1))
    x.copy_(inputs((3, 3, 2)))
    ours, reference = pair(name, (3, 3, 2, 5, 1), -1.5)
    with torch.no_grad():
        assert torch.allclose(ours(x).output, reference(x.double()).output.float(), atol=1e-6)
    loss = ours(x).output.square().sum()
    expected = reference(x.double()).output.square().sum()
    for mine, other in zip(
        torch.autograd.grad(loss, ours.weight_ih_l0), torch.autograd.grad(expected, reference.weight_ih_l0), strict=True
    ):
        assert torch.allclose(mine.double(), other, atol=1e-5)


def test_states_may_have_any_layout():
    both = pair("lstm", SMALL, -1.5)
    state = both[1](inputs(SMALL).to(both[1].update_weight)).state
    gradients = []
    for rnn, layout in zip(both, ("strided", "contiguous"), strict=True):
        start = [s.detach().to(rnn.update_weight).requires_grad_() for s in state]
        given = [torch.stack([s, s.detach() * torch.nan], -1)[..., 0] for s in start] if layout == "strided" else start
        out = rnn(inputs(SMALL).to(rnn.update_weight), type(state)(*given))
        loss = out.output.square().sum() + out.update_gate.sum() + out.state.cum_update_prob.sum()
        gradients.append(torch.autograd.grad(loss, [*start, rnn.weight_hh_l0, rnn.update_weight]))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_backward_is_computed_as_forward_was_wherever_it_is_called(name):
    gradients = []
    for dtype in (None, torch.bfloat16, torch.float16):
        rnn = pair(name, SMALL, -1.5)[0]
        loss = rnn(inputs(SMALL).float().to(DEVICE)).output.square().sum()
        with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
            gradients.append(torch.autograd.grad(loss, [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.update_weight]))
    for others in gradients[1:]:
        assert all(map(torch.equal, gradients[0], others))


def test_memory_kept_for_backward_follows_the_updates(monkeypatch):
    monkeypatch.setattr(cuda, "MOST_KEPT", 0)
    shape = (40, 2, 1, 16, 1)
    kept = {}
    for bias in (100.0, -4.0):
        rnn = pair("lstm", shape, bias)[0]
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            out = rnn(inputs(shape).to(rnn.update_weight))
        kept[bias] = sum(sizes) - out.output.numel()
    weights = sum(p.numel() for p in rnn.parameters())
    assert kept[-4.0] < kept[100.0] - 0.7 * out.output.numel()
    assert kept[-4.0] < weights + 0.5 * out.output.numel()


@pytest.mark.parametrize(
    ("rnn", "reason"),
    [
        (lambda: SkipLSTM(2, 5, num_layers=2, engine="cuda"), "one layer, not 2"),
        (lambda: SkipGRU(2, 129, engine="cuda"), "128 units, not 129"),
    ],
)
def test_says_what_it_cannot_run(rnn, reason):
    rnn = rnn().to(DEVICE)
    with pytest.raises(RuntimeError, match=reason):
        rnn(torch.zeros(3, 1, 2, device=DEVICE, dtype=rnn.update_weight.dtype))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("skips", [(0, 4), (2, None), (1, 3)])
def test_bounds_of_skips_are_the_references(name, skips):
    both = pair(name, (30, 5, 2, 11, 1), -1.0)
    for rnn in both:
        rnn.bounds = bounds_of_skips(*skips)
    ours, reference = (run(rnn, inputs((30, 5, 2))) for rnn in both)
    assert_same(ours, reference, tolerance=1e-5)
    assert ours[0].update_gate.mean() >= 1 / (1 + (skips[1] or 30))


@pytest.mark.parametrize("bias", [1.0, -1.0, -3.0])
@pytest.mark.parametrize("name", MODULES)
def test_a_gate_that_draws_is_the_references(name, bias):
    shape, results = (30, 5, 2, 11, 1), []
    for rnn in pair(name, shape, bias):
        rnn.gate = "bernoulli"
        torch.manual_seed(3)
        results.append(run(rnn, inputs(shape)))
    assert_same(*results, tolerance=1e-5)
    assert 0.1 < results[0][0].update_gate.mean() < 0.95


@pytest.fixture
def nothing_unwritten():
    """Memory that was not written is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("shape", "bias", "kept"),
    [
        ((60, 3, 2, 110, 1), 100.0, 2**28),  # more rows than a block takes at a time
        ((60, 3, 2, 110, 1), -1.5, 0),
        ((60, 3, 10, 100, 1), 0.0, 2**28),
        ((63, 1, 1, 128, 1), -1.5, 2**28),
    ],
)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("nothing_unwritten")
def test_equals_the_reference_while_it_is_captured(name, shape, bias, kept, monkeypatch):
    """The host must not wait to know how many updates there were."""
    monkeypatch.setattr(cuda, "MOST_KEPT", kept)
    ours, reference = pair(name, shape, bias)
    x, lengths = inputs(shape), torch.tensor([shape[0] - 1, 0, shape[0]][: shape[1]])
    expected = run(reference, x, lengths=lengths)
    monkeypatch.setattr(cuda, "_captures", lambda x: True)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    assert_same(run(ours, x, lengths=lengths), expected, tolerance=1e-5)


@pytest.mark.parametrize("kept", [0, 2**28])
@pytest.mark.parametrize("features", [2, 7])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_told_that_the_gate_stays_open_it_need_not_count(name, features, kept, monkeypatch):
    """As the plain cells of the baselines run."""
    monkeypatch.setattr(cuda, "MOST_KEPT", kept)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    results = []
    for rnn in pair(name, (7, 3, features, 11, 1), 100.0):
        with torch.no_grad():
            rnn.update_weight.zero_()
        given = problem(rnn, inputs((7, 3, features)).to(rnn.update_weight))
        opened = {"opens_always": True} if rnn.engine == "cuda" else {}
        solution = (cuda if opened else reference).run(given, **opened)
        loss = solution.output.square().sum() + solution.states[0][-1].sum()
        results.append([loss, *torch.autograd.grad(loss, [*given.layers[0], *rnn.parameters()], allow_unused=True)])
    for mine, other in zip(*results, strict=True):
        if other is not None:
            torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("most", [(1, False), (2, True)])
def test_equals_the_reference_with_less_shared_memory(name, most, monkeypatch):
    monkeypatch.setattr(cuda, "most_rows", lambda *_: most)
    shape = (21, 7, 1, 110, 1)
    assert_same(*(run(rnn, inputs(shape)) for rnn in pair(name, shape, -1.5)), tolerance=1e-5)


def test_how_many_sequences_a_block_owns_follows_the_memory(monkeypatch):
    found = {}
    for kilobytes in (227, 99, 64):
        properties = SimpleNamespace(shared_memory_per_block_optin=kilobytes * 1024)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, properties=properties: properties)
        found[kilobytes] = cuda.most_rows.__wrapped__(LSTM, 110, torch.device("cuda"))
    assert found == {227: (4, False), 99: (4, True), 64: (0, False)}


@pytest.mark.parametrize(
    ("capability", "hip", "reason"),
    [((9, 0), None, None), ((7, 0), None, "capability 7.5"), ((9, 0), "6.4", "NVIDIA's")],
)
def test_says_what_a_gpu_lacks(monkeypatch, capability, hip, reason):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = cuda.unfit_device.__wrapped__(torch.device("cuda"))
    assert said is None if reason is None else reason in said


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_auto_takes_it_on_a_gpu():
    x = inputs(SMALL).float().to(DEVICE)
    ours, chosen = (build("lstm", SMALL, -1.5, engine, torch.float32, 1).to(DEVICE) for engine in ("cuda", "auto"))
    assert all(map(torch.equal, run(ours, x)[1], run(chosen, x)[1]))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("shape", [(40, 6, 1, 110, 1), (40, 6, 10, 110, 1)], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", MODULES)
def test_a_step_is_captured_as_a_cuda_graph(name, shape):
    """Forward, loss and backward, replayed on samples of which other sequences use other numbers."""
    captured, plain = (build(name, shape, -1.5, "cuda", torch.float32, 1).to(DEVICE) for _ in range(2))
    given = inputs(shape).float().to(DEVICE)

    def step(rnn):
        out = rnn(given, every_step=False)
        loss = out.output.square().mean() + budget_loss(out, 0.1)
        loss.backward()
        return loss.detach()

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(captured)
    torch.cuda.current_stream().wait_stream(stream)
    captured.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = step(captured)
    for scale in (1.0, 5.0, 0.1):
        given.copy_(scale * inputs(shape).flip(0))
        graph.replay()
        plain.zero_grad()
        torch.testing.assert_close(loss, step(plain))
        for mine, other in zip(captured.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constants", [
    cuda_kernels.Constants(110, 1, gru=False, rows=2), cuda_kernels.Constants(128, 4, gru=False, rows=4),
    cuda_kernels.Constants(128, 0, gru=True, rows=4, reset_before=True, narrow=True),
], ids=["lstm", "wide_lstm", "wide_gru"])  # fmt: skip
def test_compiles_for_an_h100(constants):
    """Few registers are spilled, at the paper's size and the largest, and all fits into a multiprocessor."""
    pytest.importorskip("cuda.bindings")
    _, said = cuda_kernels.compiled(constants, "sm_90", "--ptxas-options=-v")
    stacks = [int(size) for size in re.findall(r"(\d+) bytes stack frame", said)]
    shared = [int(size) for size in re.findall(r"(\d+) bytes smem", said)]
    assert len(stacks) == 7
    assert max(stacks) <= 96
    assert max(shared) <= cuda.RESERVED
    assert max(shared) + max(map(constants.shared, "FB")) <= 227 * 1024


def test_threads_wait_for_one_another_as_seldom_as_the_page_says():
    """An update has one barrier; the outputs of every step are filled in without any."""
    pytest.importorskip("cuda.bindings")
    pytest.importorskip("triton")  # which brings what reads the code
    cubin, _ = cuda_kernels.compiled(cuda_kernels.Constants(110, 1, gru=False, rows=2), "sm_90")
    barriers = {kernel: sm90.report(cubin, kernel, True)["barriers"] for kernel in ("forward", "backward", "fill")}
    assert barriers == {"forward": 3, "backward": 4, "fill": 0}


def test_says_that_tensors_lie_apart():
    rnn = SkipLSTM(2, 5, engine="cuda").to(DEVICE)
    with pytest.raises(RuntimeError, match=f"one device, not of {DEVICE}.*, meta"):
        rnn(torch.zeros(3, 1, 2, device=DEVICE), rnn.initial_state(1)._replace(h=torch.zeros(1, 1, 5, device="meta")))


def test_launches_in_threads_that_have_not_used_the_gpu(monkeypatch):
    """As autograd's may not have: the context that the kernels were loaded into becomes the thread's."""
    current, launched = threading.local(), []

    def launch(*arguments):
        launched.append(getattr(current, "context", 0))
        return (SimpleNamespace(value=0),)

    done = (SimpleNamespace(value=0),)
    driver = SimpleNamespace(
        cuCtxGetCurrent=lambda: (*done, getattr(current, "context", 0)),
        cuCtxSetCurrent=lambda context: setattr(current, "context", context) or done,
        cuLaunchKernel=launch,
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    kernels = object.__new__(cuda_kernels._OnGPU)
    kernels.driver, kernels.device, kernels.context, kernels.functions = driver, None, 7, {("take", 0): object()}
    current.context = 7
    kernels.launch("take", (1,), 128, 0, ())
    thread = threading.Thread(target=kernels.launch, args=("take", (1,), 128, 0, ()))
    thread.start()
    thread.join()
    assert launched == [7, 7]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_backward_may_be_the_first_that_autograds_thread_does():
    code = """
import torch
from skiprnn import RandomSkipLSTM
rnn = RandomSkipLSTM(2, 5).cuda()
h = rnn(torch.zeros(3, 1, 2, device="cuda"), every_step=False).output
torch.autograd.backward(h, torch.ones_like(h))
torch.cuda.synchronize()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_says_how_long_a_sequence_may_be(monkeypatch):
    monkeypatch.setattr(cuda, "LONGEST", 5)
    with pytest.raises(RuntimeError, match="runs up to 5 steps, not 6"):
        SkipLSTM(2, 5, engine="cuda").to(DEVICE)(torch.zeros(6, 1, 2, device=DEVICE))


def test_auto_takes_gpu_engines_where_there_is_triton(monkeypatch):
    on_a_gpu = SimpleNamespace(x=SimpleNamespace(is_cuda=True))
    found = [engine.__name__.rsplit(".", 1)[1] for engine in engines._engines("auto", on_a_gpu)]
    assert found == ["traced", "cuda", "graph", "events", "reference"]
    monkeypatch.setattr(engines, "_has_triton", lambda: False)
    found = [engine.__name__.rsplit(".", 1)[1] for engine in engines._engines("auto", on_a_gpu)]
    assert found == ["traced", "cuda", "events", "reference"]
