"""Every cell but those that native.cpp has, and one that others write, examples/own_cell.py."""

import copy
import pickle
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from examples.own_cell import MinGRUCell
from skiprnn import GRUState, LSTMState, RNNState, SkipLSTM, SkipRNN, Stream
from skiprnn.cells import LAYER_NORM_GRU, LAYER_NORM_LSTM, LSTM, RNN, RNN_RELU, Cell, RNNCell
from skiprnn.engines import cuda, native
from tests.problems import assert_same, run

CELLS = {
    "rnn": RNN,
    "rnn_relu": RNN_RELU,
    "layer_norm_lstm": LAYER_NORM_LSTM,
    "layer_norm_gru": LAYER_NORM_GRU,
    "own": MinGRUCell(),
}
every_cell = pytest.mark.parametrize("name", CELLS)


def build(name, engine="auto", layers=1, bias=-0.5, **options):
    torch.manual_seed(2)
    module = SkipRNN(CELLS[name], 3, 7, layers, update_bias=bias, engine=engine, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in module.parameters():  # biases and gains that differ too
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        module.update_weight.mul_(0.2 if name == "rnn_relu" else 1)  # whose states are longer
    return module


def sequences(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def carried(name, layers):
    """A state in the middle of sequences, of which some are about to update and some are not."""
    return build(name, layers=layers)(sequences(11, 5, 3)).state


@pytest.mark.parametrize(
    ("lengths", "goes_on", "clip"),
    [(None, False, None), ([25, 0, 1, 18, 7], False, 0.05), ([25, 0, 1, 18, 7], True, None)],
)
@pytest.mark.parametrize("layers", [1, 2])
@every_cell
def test_events_equal_the_reference(name, layers, lengths, goes_on, clip):
    x, state = sequences(25, 5, 3), carried(name, layers) if goes_on else None
    lengths = None if lengths is None else torch.tensor(lengths)
    results = [
        run(build(name, engine, layers, gate_grad_clip=clip), x, lengths=lengths, state=state)
        for engine in ("events", "reference")
    ]
    assert 0.05 < results[0][0].update_gate.mean() < 0.95
    assert_same(*results, tolerance=1e-12)


@every_cell
def test_other_engines_decline_it(name):
    module = build(name).float()
    assert "it has no " in native.unfit(module.cell, tuple(module.parameters()))
    assert "it has no " in cuda.unfit(module.cell, 1, 7, [module.update_weight])


def open_gate(name, layers):
    module = build(name, "events", layers, bias=100.0, learn_initial_state=False)
    nn.init.zeros_(module.update_weight)
    return module


def assert_same_function(ours, theirs, inputs):
    """Of functions of the same tensors, values and gradients."""
    weights = torch.randn_like(ours)
    mine, other = (torch.autograd.grad((output * weights).sum(), inputs) for output in (ours, theirs))
    for one, two in zip((ours, *mine), (theirs, *other), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12 * two.abs().max().item())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "nonlinearity"), [("rnn", "tanh"), ("rnn_relu", "relu")])
def test_with_the_gate_open_the_plain_rnn_is_torch_s(name, nonlinearity, layers):
    ours, theirs = open_gate(name, layers), nn.RNN(3, 7, layers, nonlinearity=nonlinearity).double()
    theirs.load_state_dict({key: ours.state_dict()[key] for key in theirs.state_dict()})
    x = sequences(20, 4, 3).requires_grad_()
    mine = [x, *(ours.get_parameter(key) for key, _ in theirs.named_parameters())]
    output = torch.func.functional_call(theirs, dict(zip(theirs.state_dict(), mine[1:], strict=True)), (x,))[0]
    assert_same_function(ours(x).output, output, mine)


def norm(product, gain, bias):
    module = nn.LayerNorm(len(gain), dtype=product.dtype)
    return torch.func.functional_call(module, {"weight": gain, "bias": bias}, (product,))


def layer_norm_lstm(x, weights):
    h = c = x.new_zeros(x.shape[1], 7)
    for x_t in x:
        of_x = norm(x_t @ weights.weight_ih.T, weights.gain_ih, weights.bias_ih)
        of_h = norm(h @ weights.weight_hh.T, weights.gain_hh, weights.bias_hh)
        i, f, g, o = (of_x + of_h).split(7, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(c, weights.gain_c, weights.bias_c).tanh()
        yield h


def layer_norm_gru(x, weights):
    h = x.new_zeros(x.shape[1], 7)
    for x_t in x:
        of_x, of_h = (
            [norm(v @ w[rows].T, gain[rows], bias[rows]) for rows in (slice(14), slice(14, None))]
            for v, w, gain, bias in (
                (x_t, weights.weight_ih, weights.gain_ih, weights.bias_ih),
                (h, weights.weight_hh, weights.gain_hh, weights.bias_hh),
            )
        )
        r, z = (of_x[0] + of_h[0]).sigmoid().split(7, dim=1)
        n = (of_x[1] + r * of_h[1]).tanh()
        h = (1 - z) * n + z * h
        yield h


@pytest.mark.parametrize(("name", "layer"), [("layer_norm_lstm", layer_norm_lstm), ("layer_norm_gru", layer_norm_gru)])
def test_with_the_gate_open_layer_normalization_is_a_composition_of_torch_s(name, layer):
    ours, x = open_gate(name, 2), sequences(12, 4, 3).requires_grad_()
    theirs = torch.stack(list(layer(torch.stack(list(layer(x, ours.layer(0)))), ours.layer(1))))
    inputs = [x, *ours.layer(0), *ours.layer(1)]
    assert_same_function(ours(x).output, theirs, inputs)


@pytest.mark.parametrize("value", [0.0, 1e-15, 1e15])
@pytest.mark.parametrize("name", ["layer_norm_lstm", "layer_norm_gru"])
def test_layer_normalization_of_samples_without_spread_is_finite(name, value):
    module = build(name, "events", 2, learn_initial_state=False).float()
    output = module(torch.full((9, 2, 3), value)).output
    output.sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


STATES = {"layer_norm_lstm": LSTMState, "layer_norm_gru": GRUState, "rnn": RNNState, "rnn_relu": RNNState}


@pytest.mark.parametrize("name", STATES)
def test_states_and_initial_values(name):
    module = SkipRNN(CELLS[name], 3, 7, 2)
    assert isinstance(module(torch.randn(5, 2, 3)).state, STATES[name])
    weights = module.layer(1)
    gates = module.cell.num_gates
    assert module.weight_ih_l0.shape == (7 * gates, 3)
    assert weights.weight_ih.shape == weights.weight_hh.shape == (7 * gates, 7)
    for key, value in weights._asdict().items():
        if key.startswith("gain"):
            assert (value == 1).all()
    first, last = (7 * gate for gate in module.cell.opened)
    assert (weights.bias_ih[first:last] == 1).all()
    assert weights.bias_ih.sum() == last - first
    assert not weights.bias_hh.any()


def test_the_plain_rnn_begins_with_matrices_that_keep_lengths():
    for dtype in (torch.float32, torch.bfloat16):
        weight = SkipRNN(RNN, 3, 7, dtype=dtype).weight_hh_l0.detach().double()
        torch.testing.assert_close(weight @ weight.T, torch.eye(7).double(), rtol=0, atol=0.03)
        assert torch.equal(SkipRNN(RNN_RELU, 3, 7, dtype=dtype).weight_hh_l0, torch.eye(7, dtype=dtype))
    with pytest.raises(ValueError, match="unknown nonlinearity 'sine'; choose tanh or relu"):
        RNNCell("sine")


@every_cell
def test_it_is_copied_and_streamed_and_run_step_by_step(name):
    module, x = build(name, layers=2), sequences(30, 1, 3)
    expected = module(x)
    assert 0 < expected.update_gate.mean() < 1
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        stream = Stream(copied)
        assert stream.feed(x[:, 0]) == expected.update_gate.sum()
        torch.testing.assert_close(stream.output, expected.output[-1, 0].detach())
    state, t = None, 0
    while t < len(x):
        assert expected.update_gate[t] == 1
        output, state, skip_next = module.step(x[t], state)
        torch.testing.assert_close(output, expected.output[t])
        skips = min(int(skip_next), len(x) - 1 - t)
        state = module.advance(state, skips)
        t += 1 + skips
    torch.testing.assert_close(state, expected.state)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_cell_s_own_backward_is_autograd_s(layers):
    class Plain(type(LSTM)):
        backward = Cell.backward

    results = []
    for cell in (LSTM, Plain()):
        torch.manual_seed(0)
        module = SkipLSTM(3, 5, layers, update_bias=-1.0, engine="events", dtype=torch.float64)
        module.cell = cell
        results.append(run(module, sequences(20, 3, 3)))
    assert_same(*results, tolerance=1e-12)


def test_the_input_s_gradient_is_computed_where_somebody_wants_it(monkeypatch):
    wanted, backward = [], Cell.backward
    monkeypatch.setattr(
        MinGRUCell, "backward", lambda self, *a: wanted.append(a[-1]) or backward(self, *a), raising=False
    )
    module = build("own", "events", layers=2)
    for x in (sequences(1, 2, 3), sequences(1, 2, 3).requires_grad_()):
        module(x).output.sum().backward()
    assert wanted == [True, False, True, True]  # the upper layer's first


@every_cell
def test_half_precision_products_keep_the_state_s(name):
    def trained(engine, dtype):
        module = build(name, engine, layers=2).to(dtype)
        nn.init.zeros_(module.update_weight)  # else products that are rounded turn a gate now and then
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = module(sequences(20, 3, 3).to(dtype))
        (output.output.to(dtype).sum() + output.update_gate.sum()).backward()
        return output, torch.cat([parameter.grad.flatten().double() for parameter in module.parameters()])

    exact, expected = trained("reference", torch.float64)
    for engine in ("events", "reference"):
        ours, grads = trained(engine, torch.float32)
        assert torch.equal(ours.update_gate.double(), exact.update_gate)
        assert ours.state.h.dtype == torch.float32
        assert (ours.output - exact.output).abs().max() < 0.03 * exact.output.abs().max()
        assert (grads - expected).norm() < 0.08 * expected.norm()


def test_a_state_needs_no_field_called_h():
    class Named(NamedTuple):
        y: torch.Tensor
        update_prob: torch.Tensor
        cum_update_prob: torch.Tensor

    class Other(MinGRUCell):
        State = Named

    torch.manual_seed(0)
    module, x = SkipRNN(Other(), 3, 7), torch.randn(9, 1, 3)
    stream = Stream(module)
    stream.feed(x[:, 0])
    torch.testing.assert_close(stream.state.y, module(x).state.y.detach())


def test_the_page_shows_the_example():
    root = Path(__file__).parents[2]
    example = (root / "examples" / "own_cell.py").read_text()
    cell = example[example.index("class MinGRUWeights") : example.index("if __name__")].strip()
    assert cell in (root / "docs" / "cells.md").read_text()
