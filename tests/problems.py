"""Problems that engines are held against each other on, and what they make of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skiprnn import SkipGRU, SkipLSTM, budget_loss, compiled
from skiprnn.gate import GateState
from skiprnn.problem import Problem

MODULES = {
    "lstm": SkipLSTM,
    "gru": SkipGRU,
    "gru_reset_before": lambda *sizes, **options: SkipGRU(*sizes, reset_after=False, **options),
}
BIASES = {"all": 100.0, "most": 0.0, "some": -1.5, "few": -4.0, "first_only": -50.0}
SOME = ("all", "some", "few")  # of the biases, where tests are many
needs_compiled = pytest.mark.skipif(compiled.LIBRARY is None, reason="the compiled path was not built")
GOLDEN = sorted((Path(__file__).parent / "library" / "golden").glob("*.npz"))  # what the authors' own cells computed


def build(name, shape, bias, engine, dtype, seed=1):
    torch.manual_seed(seed)
    _, _, D, H, layers = shape
    rnn = MODULES[name](D, H, layers, update_bias=bias, engine=engine, dtype=torch.float64)
    with torch.no_grad():
        rnn.update_weight.mul_(3)  # probabilities that differ
    return rnn.to(dtype)


def problem(rnn, x):
    """What an engine is given when the module is called."""
    state = rnn.initial_state(x.shape[1])
    states = [tuple(tensor[k] for tensor in state[:-2]) for k in range(rnn.num_layers)]
    return Problem(rnn.cell, rnn.layers(), rnn.update_weight, rnn.update_bias, x, states, GateState(*state[-2:]))


def run(rnn, x, *, lengths=None, per_step=True, state=None, seed=2):
    """Everything forward returns, and the gradient of a loss on all of it by every input and parameter."""
    draws = torch.Generator().manual_seed(seed)
    x = x.to(rnn.update_weight).requires_grad_()
    start = rnn.initial_state(x.shape[1]) if state is None else state
    start = type(start)(*(s.detach().to(x).requires_grad_() for s in start))
    out = rnn(x, start, lengths, every_step=per_step)
    shapes = [(*x.shape[:2], out.output.shape[-1]), *(s.shape for s in out.state)]
    weights = [torch.randn(shape, generator=draws, dtype=torch.float64).to(x) for shape in shapes]
    shown = [out.output, *out.state] if per_step else list(out.state)
    loss = sum((t * w).sum() for t, w in zip(shown, weights if per_step else weights[1:], strict=True))
    gate_weight = torch.rand(out.update_gate.shape, generator=draws, dtype=torch.float64).to(x)
    loss = loss + (out.update_gate * gate_weight).sum() if per_step else loss + budget_loss(out, 0.1)
    parameters = [p for n, p in rnn.named_parameters() if not n.startswith("initial")]
    return out, torch.autograd.grad(loss, [x, *start, *parameters])


def assert_same(ours, theirs, tolerance):
    assert torch.equal(ours[0].update_gate.double(), theirs[0].update_gate.double())
    values = [(ours[0].output, theirs[0].output), *zip(ours[0].state, theirs[0].state, strict=True)]
    for mine, other in (*values, *zip(ours[1], theirs[1], strict=True)):
        scale = other.abs().max().clamp(min=1e-3) if other.numel() else 1.0
        assert mine.shape == other.shape
        assert ((mine.double() - other.double()).abs().max() if other.numel() else 0.0) <= tolerance * scale


def load_golden(golden, engine, dtype):
    """The module with the file's parameters. The file's one bias a layer becomes bias_ih; bias_hh is zero."""
    layers = sum(key.startswith("param/weight_hh") for key in golden)
    hidden, inputs = golden["param/update_weight"].shape[0], golden["x"].shape[2]
    module = SkipLSTM if "param/c0_l0" in golden else SkipGRU
    options = {} if module is SkipLSTM else {"reset_after": False}
    rnn = module(inputs, hidden, layers, batch_first=True, engine=engine, dtype=dtype, **options)
    parameters = dict(rnn.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(golden_value(golden, "param", name, parameter))
    return rnn, parameters


def golden_value(golden, kind, name, parameter):
    if name.startswith("initial_"):
        letter = name[-1]
        rows = [golden[f"{kind}/{letter}0_l{k}"] for k in range(parameter.shape[0])]
        return torch.from_numpy(np.stack(rows)).to(parameter.dtype).reshape(parameter.shape)
    if name.startswith("bias_hh"):
        return torch.zeros_like(parameter)
    array = golden[f"{kind}/{name.replace('bias_ih', 'bias')}"]
    return torch.from_numpy(array).to(parameter.dtype).reshape(parameter.shape)
