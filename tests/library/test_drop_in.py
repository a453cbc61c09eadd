"""SkipLSTM and SkipGRU where nn.LSTM and nn.GRU were: with a gate that is open, the same outputs and gradients."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from skiprnn import SkipGRU, SkipLSTM, Stream, budget_loss
from tests.forked import start
from tests.spread import Model, batch, gradients, gradients_of_half

LENGTHS = [9, 9, 6, 3, 1]
MIXED = [6, 1, 9, 3, 9]


def twins(kind, *arguments, dtype=torch.float64, engine="auto", **options):
    """A Skip RNN whose gate is open and torch's own module, with the same weights."""
    skip, plain = {"lstm": (SkipLSTM, nn.LSTM), "gru": (SkipGRU, nn.GRU)}[kind]
    torch.manual_seed(0)
    theirs = plain(*arguments, dtype=dtype, **options)
    ours = skip(*arguments, update_bias=100.0, learn_initial_state=False, engine=engine, dtype=dtype, **options)
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert all("update" in name for name in result.missing_keys)
    assert not result.unexpected_keys
    return ours, theirs


def in_torchs_form(rnn):
    return rnn.as_lstm() if isinstance(rnn, SkipLSTM) else rnn.as_gru()


def tensors(result):
    """All tensors of nested tuples, packed sequences among them."""
    return [result] if isinstance(result, torch.Tensor) else [t for r in result if r is not None for t in tensors(r)]


def random_like(template, batch, layers, kind, *, batched=True):
    """An initial state of (layers, B, H)."""
    draws = torch.Generator().manual_seed(5)
    h = [torch.randn(layers, batch, 4, generator=draws).to(template) for _ in range(2 if kind == "lstm" else 1)]
    h = h if batched else [tensor[:, 0] for tensor in h]
    return tuple(h) if kind == "lstm" else h[0]


def forms(dtype, *, batch_first):
    """By name, inputs in every form that torch takes."""
    x = torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = x.transpose(0, 1) if batch_first else x
    packed = pack_padded_sequence(x, LENGTHS, batch_first=batch_first)
    mixed = pack_padded_sequence(x, MIXED, batch_first=batch_first, enforce_sorted=False)
    one = torch.randn(9, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    return {"batch": x, "one": one, "packed": packed, "unsorted": mixed}


OPTIONS = {
    "plain": {},
    "layers": {"num_layers": 2},
    "no_bias": {"num_layers": 2, "bias": False},
    "batch_first": {"batch_first": True},
    "both_ways": {"bidirectional": True},
    "all": {"bias": False, "batch_first": True, "bidirectional": True},
}


@pytest.mark.pairwise
@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("form", ["batch", "one", "packed", "unsorted"])
@pytest.mark.parametrize("given", [False, True], ids=["no_state", "state"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_with_an_open_gate_it_is_torchs_module(kind, options, given, form, engine):
    compiled = [] if engine == "reference" else [(torch.float32, 1e-5)]
    for dtype, tolerance in ((torch.float64, 1e-12), *compiled):
        ours, theirs = twins(kind, 3, 4, dtype=dtype, engine=engine, **options)
        results = []
        for rnn in (in_torchs_form(ours), theirs):
            x = forms(dtype, batch_first=rnn.batch_first)[form]
            values = (x.data if isinstance(x, PackedSequence) else x).requires_grad_()
            layers = rnn.num_layers * (2 if rnn.bidirectional else 1)
            hx = random_like(values, 5, layers, kind, batched=form != "one") if given else None
            inputs = [values, *(t.requires_grad_() for t in tensors(hx if given else ()))]
            out = rnn(x, hx)
            weights = [p for name, p in rnn.named_parameters() if "update" not in name]
            shown = [t for t in tensors(out) if t.is_floating_point()]
            loss = sum((t * torch.linspace(-1, 1, t.numel()).to(t).view_as(t)).sum() for t in shown)
            results.append((out, torch.autograd.grad(loss, [*inputs, *weights])))
        (out, gradients), (expected, expected_gradients) = results
        assert len(out) == 2
        assert type(out[1]) is type(expected[1])
        if isinstance(expected[0], PackedSequence):
            assert isinstance(out[0], PackedSequence)
        for mine, other in zip([*tensors(out), *gradients], [*tensors(expected), *expected_gradients], strict=True):
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropout_between_layers_is_torchs(kind, engine, p):
    """On the CPU to the same draws, from the same seed."""
    ours, theirs = twins(kind, 3, 4, 3, dropout=p, engine=engine)
    x = torch.randn(9, 5, 3, dtype=torch.float64)
    for training in (True, False):
        results = []
        for rnn in (in_torchs_form(ours), theirs):
            torch.manual_seed(7)
            output, last = rnn.train(training)(x)
            weights = [parameter for name, parameter in rnn.named_parameters() if "update" not in name]
            results.append([output, *tensors(last), *torch.autograd.grad(output.square().sum(), weights)])
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("skip", "plain"), [(SkipLSTM, nn.LSTM), (SkipGRU, nn.GRU)])
def test_arguments_come_in_torchs_order(skip, plain):
    arguments = (3, 4, 2, False, True, 0.5, True)
    ours, theirs = skip(*arguments), plain(*arguments)
    names = "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names] == list(arguments)
    assert ours.flatten_parameters() is None


def test_between_calls_the_gate_has_no_memory():
    rnn = SkipLSTM(3, 4, 2, update_bias=-3.0)
    lstm, x = rnn.as_lstm(), torch.randn(4, 5, 3)
    assert lstm.update_gate is None
    output, (h, c) = lstm(x)
    expected, state, gate = rnn(x)
    assert all(torch.equal(*pair) for pair in zip((output, h, c), (expected, state.h, state.c), strict=True))
    assert torch.equal(lstm.update_gate, gate)
    output, _ = lstm(x, (h, c))
    assert lstm.update_gate[0].all()
    assert not rnn(x, state).update_gate[0].all()  # the gate's own state goes on here
    assert torch.equal(lstm.as_skip()(x, state).output, rnn(x, state).output)
    (output.sum() + budget_loss(lstm.update_gate, 0.1, batch_first=False)).backward()
    assert rnn.update_weight.grad.abs().sum() > 0


def test_it_is_one_module_with_two_calls():
    rnn = SkipGRU(3, 4, 2, dropout=0.5)
    gru = rnn.as_gru()
    assert list(gru.state_dict()) == list(rnn.state_dict())
    assert all(mine is other for mine, other in zip(gru.parameters(), rnn.parameters(), strict=True))
    gru.eval()
    assert not rnn.training
    rnn.double()
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    assert torch.equal(gru(x)[0], rnn(x).output)
    assert torch.equal(gru.step(x[0]).output, rnn.step(x[0]).output)
    assert Stream(gru).feed(x[:, 0]) == gru.update_gate.sum()
    assert repr(gru) == "DropIn(3, 4, num_layers=2, dropout=0.5, engine='auto')"


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bias": False}])
def test_copies(options, tmp_path):
    lstm, x = SkipLSTM(3, 4, **options).as_lstm(), torch.randn(9, 5, 3)
    output, _ = lstm(x)
    torch.save(lstm, tmp_path / "lstm.pt")
    loaded = torch.load(tmp_path / "lstm.pt", weights_only=False)
    for twin in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm)), loaded):
        assert twin.update_gate is None
        assert torch.equal(twin(x)[0], output)
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
    assert torch.equal(lstm(x)[0], output)
    torch.save(lstm.state_dict(), tmp_path / "weights.pt")
    other = SkipLSTM(3, 4, **options)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(other(x).output, output)


@pytest.mark.parametrize("shape", [(9, 0, 3), (0, 5, 3)])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_batches_and_sequences_of_nothing(kind, shape):
    """A batch of none is as torch has it; sequences of no steps, which torch refuses, leave the state as it was."""
    ours, theirs = twins(kind, 3, 4, 2)
    output, last = in_torchs_form(ours)(torch.zeros(shape, dtype=torch.float64))
    assert output.shape == (*shape[:2], 4)
    if shape[0]:
        assert [t.shape for t in tensors(last)] == [t.shape for t in tensors(theirs(torch.zeros(shape).double())[1])]
    else:
        assert not torch.cat(tensors(last)).any()
    output.sum().backward()


def test_weights_of_more_layers_both_ways_do_not_fit():
    theirs = nn.LSTM(3, 4, 2, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight_ih_l1: .* torch.Size\(\[16, 8\]\)"):
        SkipLSTM(3, 4, 2, bidirectional=True).load_state_dict(theirs.state_dict(), strict=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_in_half_precision(kind, dtype):
    ours, theirs = twins(kind, 3, 4, 2, dtype=dtype, bias=False)
    x = torch.randn(9, 5, 3).to(dtype)
    output, _ = in_torchs_form(ours)(x)
    expected, _ = theirs.float()(x.float())
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    (output.float().sum() + ours(x).update_gate.sum()).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"bidirectional": True}])
def test_on_the_meta_device(options):
    rnn = SkipLSTM(3, 4, 2, device="meta", update_bias=-1.5, **options)
    output, (h, c) = rnn.as_lstm()(torch.randn(9, 5, 3, device="meta"))
    assert output.is_meta
    assert output.shape == (9, 5, 4 * rnn.num_directions)
    assert h.shape == c.shape == (2 * rnn.num_directions, 5, 4)
    torch.manual_seed(0)
    rnn.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(0)
    expected = SkipLSTM(3, 4, 2, update_bias=-1.5, **options)
    for mine, other in zip(rnn.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_functional_call_and_functions_of_torch():
    rnn, x = SkipLSTM(3, 4, 2, update_bias=-1.0), torch.randn(9, 5, 3)
    weights = {name: p.detach() * 0.5 for name, p in rnn.named_parameters()}
    found = functional_call(rnn.as_lstm(), weights, (x,))[0]

    def loss(weights):
        return functional_call(rnn, weights, (x,)).output.square().sum()

    gradients = torch.func.grad(loss)(weights)  # engine="auto" finds what can
    other = SkipLSTM(3, 4, 2)
    other.load_state_dict(weights)
    torch.testing.assert_close(other(x).output, found)
    other(x).output.square().sum().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrizations(norm):
    lstm, x = norm(SkipLSTM(3, 4, update_bias=-1.0).as_lstm(), "weight_hh_l0"), torch.randn(9, 5, 3)
    lstm.eval()
    output, _ = lstm(x)
    rnn = SkipLSTM(3, 4)
    rnn.load_state_dict({name: getattr(lstm, name).detach() for name in rnn.state_dict()})
    torch.testing.assert_close(output, rnn(x).output)
    output.sum().backward()
    assert all(p.grad is not None for p in lstm.parameters())
    torch.testing.assert_close(copy.deepcopy(lstm)(x)[0], output)
    parametrized = norm(SkipLSTM(3, 4), "weight_hh_l0")
    for call in (parametrized.as_lstm, lstm.as_skip):
        with pytest.raises(ValueError, match="a parametrized module has one form of call: parametrize what as_lstm"):
            call()


def test_pruning():
    lstm = SkipLSTM(3, 4).as_lstm()
    prune.random_unstructured(lstm, "weight_hh_l0", amount=0.5)
    lstm(torch.randn(9, 5, 3))[0].sum().backward()
    assert (lstm.weight_hh_l0_orig.grad != 0).sum() <= 32
    assert lstm.step(torch.randn(5, 3)).output.shape == (5, 4)


def test_data_parallel():
    """Without GPUs it calls the module; what it gathers of several is what a call returns."""
    rnn = SkipLSTM(3, 4, batch_first=True)
    x = torch.randn(5, 9, 3)
    assert torch.equal(nn.DataParallel(rnn)(x).output, rnn(x).output)
    assert torch.equal(nn.DataParallel(rnn.as_lstm())(x)[0], rnn(x).output)


@pytest.mark.parametrize("form", ["skip", "torch"])
def test_distributed_data_parallel(form):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        rnn = SkipLSTM(3, 4, 2, bidirectional=True)
        x = torch.randn(9, 5, 3)
        spread = nn.parallel.DistributedDataParallel(rnn if form == "skip" else rnn.as_lstm())
        for _ in range(2):
            out = spread(x)
            gate = out.update_gate if form == "skip" else spread.module.update_gate
            (out[0].sum() + budget_loss(gate, 0.1, batch_first=False)).backward()
        alone = copy.deepcopy(rnn)
        alone.zero_grad()
        out = alone(x)
        (out.output.sum() + budget_loss(out, 0.1)).backward()
        for mine, other in zip(rnn.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, 2 * other.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(tmp_path):
    started = [start(gradients_of_half, rank, tmp_path) for rank in range(2)]
    found = [end.recv() for _, end in started]
    for process, _ in started:
        process.join()
    expected = gradients(Model(seed=0), batch())
    assert len(expected) == 14
    for mine in found:
        for one, other in zip(mine, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("form", ["skip", "torch"])
def test_a_replica_reads_the_weights_that_data_parallel_gives_it(form):
    """As ``torch.nn.parallel.replicate`` makes one on a GPU."""
    rnn = SkipLSTM(3, 4, 2, bias=False, bidirectional=True)
    module = rnn if form == "skip" else rnn.as_lstm()
    replica = module._replicate_for_data_parallel()
    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
    for name, value in copies.items():
        setattr(replica, name, value)
    replica._parameters.update({name: None for name in module._parameters if name not in copies})
    x = torch.randn(9, 5, 3)
    output = replica(x)[0]
    assert torch.equal(output, rnn(x).output)
    output.sum().backward()
    assert all(value.grad is not None for value in copies.values())
    assert all(parameter.grad is None for parameter in module.parameters())


X = torch.randn(9, 5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SkipLSTM(3, 4, proj_size=2), "proj_size=2 is not supported: h has hidden_size units, as c has"),
        (lambda: SkipLSTM(3, 4, 2, dropout=1.5), r"dropout must lie in 0\.\.1, got 1\.5"),
        (lambda: SkipGRU(3, 4, 2, dropout=-0.1), r"dropout must lie in 0\.\.1, got -0\.1"),
        (lambda: SkipLSTM(3, 4)(torch.randn(3)), r"must be \(T, B, D\), or \(T, D\) of one sequence, with D = 3, got"),
        (lambda: SkipLSTM(3, 4)(torch.randn(9, 2)), r"with D = 3, got shape \(9, 2\)"),
        (lambda: SkipLSTM(3, 4)(torch.ones(9, 5, 3, dtype=torch.long)), r"must be floating point, got torch\.int64"),
        (lambda: SkipLSTM(3, 4, batch_first=True)(X[..., :2]), r"must be \(B, T, D\), or \(T, D\) of one"),
        (lambda: SkipGRU(3, 4).as_gru()(X, (torch.zeros(1, 5, 4),) * 2), "as a call returned it, or its h alone; got"),
        (lambda: SkipLSTM(3, 4, 2)(X, (torch.zeros(1, 5, 4),) * 2), r"\[\(2, 5, 4\), \(2, 5, 4\)\], as a call"),
        (lambda: SkipLSTM(3, 4)(pack_sequence([torch.randn(2, 4)])), r"packed input must be \(N, D\) with D = 3"),
        (lambda: SkipLSTM(3, 4)(pack_sequence([X[:, 0]]), lengths=[9]), "a packed input has lengths of its own"),
        (lambda: SkipLSTM(3, 4)(X[:, 0], lengths=[9]), r"of one sequence, \(T, D\), pass the steps that count"),
        (lambda: SkipLSTM(3, 4).as_lstm()(X, torch.zeros(1, 5, 4)), "as a call returned it, or its h, c alone; got"),
        (lambda: SkipLSTM(3, 4).as_lstm()(X, (torch.zeros(1, 2, 4),) * 2), r"\[\(1, 5, 4\), \(1, 5, 4\)\], as a call"),
        (lambda: SkipGRU(3, 4).as_gru()(X[:, 0], torch.zeros(1, 5, 4)), r"\[\(1, 4\)\], as a call returned it"),
        (lambda: SkipGRU(3, 4, bidirectional=True)(X, torch.zeros(1, 5, 4)), r"\[\(2, 5, 4\)\], as a call"),
    ],
)  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_without_a_layer_to_follow_is_told():
    with pytest.warns(UserWarning, match="dropout acts between layers, of which there is one"):
        SkipGRU(3, 4, dropout=0.5)
