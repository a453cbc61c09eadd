"""Cells that others write: the plain RNN of examples/own_cell.py."""

import copy
import pickle
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from examples.own_cell import RNNCell, RNNState
from skiprnn import SkipLSTM, SkipRNN, Stream
from skiprnn.cells import LSTM, Cell
from tests.problems import assert_same, run


def rnn(engine="auto", layers=1, bias=-1.2, seed=1, **options):
    torch.manual_seed(seed)
    module = SkipRNN(RNNCell(), 3, 7, layers, update_bias=bias, engine=engine, dtype=torch.float64, **options)
    with torch.no_grad():
        module.update_weight.mul_(3)  # probabilities that differ
    return module


def sequences(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("layers", [1, 2])
def test_events_equal_the_reference(layers, clip):
    x, lengths = sequences(40, 5, 3), torch.tensor([40, 0, 1, 33, 7])
    results = [run(rnn(engine, layers, gate_grad_clip=clip), x, lengths=lengths) for engine in ("events", "reference")]
    assert 0 < results[0][0].update_gate.mean() < 1
    assert_same(*results, tolerance=1e-12)


def test_with_the_gate_open_it_is_torch_s():
    ours, theirs = rnn(bias=100.0, layers=2, learn_initial_state=False), torch.nn.RNN(3, 7, 2).double()
    theirs.load_state_dict({name: ours.state_dict()[name] for name in theirs.state_dict()})
    x = sequences(20, 4, 3)
    torch.testing.assert_close(ours(x).output, theirs(x)[0])


def test_it_has_its_own_state_and_initial_values():
    module = rnn(layers=2)
    assert isinstance(module(sequences(5, 2, 3)).state, RNNState)
    names = {name for name, _ in module.named_parameters()}
    assert names == {
        "update_weight", "update_bias", "initial_h",
        *(f"{kind}_{part}_l{k}" for kind in ("weight", "bias") for part in ("ih", "hh") for k in (0, 1)),
    }  # fmt: skip
    assert not any(module.get_parameter(name).any() for name in names if name.startswith("bias"))
    assert module.weight_ih_l0.shape == (7, 3)
    assert module.weight_ih_l1.shape == (7, 7)


def test_it_is_streamed_and_copied():
    module, x = rnn(), sequences(30, 1, 3)
    expected = module(x)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        stream = Stream(copied)
        assert stream.feed(x[:, 0]) == expected.update_gate.sum()
        torch.testing.assert_close(stream.output, expected.output[-1, 0].detach())


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
    monkeypatch.setattr(RNNCell, "backward", lambda self, *a: wanted.append(a[-1]) or backward(self, *a))
    module = rnn("events", layers=2)
    for x in (sequences(1, 2, 3), sequences(1, 2, 3).requires_grad_()):
        module(x).output.sum().backward()
    assert wanted == [True, False, True, True]  # the upper layer's first


def test_half_precision_products_keep_the_state_s():
    def trained(engine, dtype):
        module = rnn(engine, layers=2).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = module(sequences(20, 3, 3).to(dtype))
        (output.output.to(dtype).sum() + output.update_gate.sum()).backward()
        return output, torch.cat([parameter.grad.flatten().double() for parameter in module.parameters()])

    exact, expected = trained("reference", torch.float64)
    for engine in ("events", "reference"):
        ours, grads = trained(engine, torch.float32)
        assert torch.equal(ours.update_gate.double(), exact.update_gate)
        assert ours.state.h.dtype == torch.float32
        torch.testing.assert_close(ours.output.double(), exact.output, rtol=0, atol=0.02)
        assert (grads - expected).norm() < 0.05 * expected.norm()  # 0.026 and 0.025 of it


def test_a_state_needs_no_field_called_h():
    class Named(NamedTuple):
        y: torch.Tensor
        update_prob: torch.Tensor
        cum_update_prob: torch.Tensor

    class Other(RNNCell):
        State = Named

    torch.manual_seed(0)
    module, x = SkipRNN(Other(), 3, 7), torch.randn(9, 1, 3)
    stream = Stream(module)
    stream.feed(x[:, 0])
    torch.testing.assert_close(stream.state.y, module(x).state.y.detach())


def test_the_architecture_page_shows_the_example():
    root = Path(__file__).parents[2]
    page = "\n".join(line.strip() for line in (root / "docs" / "architecture.md").read_text().splitlines())
    example = (root / "examples" / "own_cell.py").read_text()
    cell = example[example.index("class RNNCell") : example.index("if __name__")].strip()
    assert "\n".join(line.strip() for line in cell.splitlines()) in page
