"""The compiled path under autocast: float32 sums of products of numbers rounded to bfloat16."""

import pytest
import torch
from torch.nn.functional import linear

from skiprnn import SkipLSTM, Stream
from tests.problems import MODULES, assert_same, build, needs_compiled, run

SHAPES = {  # T, B, D, H, layers
    "narrow": (40, 6, 2, 35, 1),
    "odd": (33, 13, 5, 33, 1),
    "layers": (20, 9, 63, 20, 3),
}

pytestmark = [needs_compiled, pytest.mark.usefixtures("two_threads")]


class RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rounded = grad.bfloat16().float()
        return rounded @ weight, rounded.flatten(0, -2).T @ x.flatten(0, -2), grad.flatten(0, -2).sum(0)


def rounded_linear(x, weight, bias):
    return linear(x, weight, bias) if weight.shape[1] <= 2 else RoundedLinear.apply(x, weight, bias)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("bias", [100.0, -1.5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MODULES)
def test_products_are_of_rounded_numbers(name, shape, bias, monkeypatch):
    x = torch.randn(shape[:3], generator=torch.Generator().manual_seed(0))
    lengths = shape[0] - torch.arange(shape[1]) % 3
    ours, reference = (build(name, shape, bias, engine, torch.float32) for engine in ("events", "reference"))
    exact = run(ours, x, lengths=lengths)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(ours, x, lengths=lengths)
    for module in ("cell", "gru"):
        monkeypatch.setattr(f"skiprnn.cells.{module}.linear", rounded_linear)
    expected = run(reference, x, lengths=lengths)
    # sums in another order may round a number of the next step to its other neighbour, 2^-8 away
    assert_same(rounded, expected, tolerance=1e-3)
    with pytest.raises(AssertionError):
        assert_same(exact, expected, tolerance=1e-3)


def test_samples_that_another_module_rounded_are_taken():
    rnn, below = SkipLSTM(5, 12, engine="events"), torch.nn.Linear(3, 5)
    x = torch.randn(20, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        samples = below(x)
        output = rnn(samples).output
        assert torch.equal(output, rnn(samples.float()).output)
    assert samples.dtype is torch.bfloat16
    assert output.dtype is torch.float32
    output.sum().backward()
    assert below.weight.grad.abs().max() > 0


def test_autocast_to_another_type_is_left_to_torch():
    rnn, x = SkipLSTM(5, 12), torch.randn(20, 4, 5)
    with torch.autocast("cpu", torch.float16):
        ours = rnn(x).output
    assert type(ours.grad_fn) is not type(rnn(x).output.grad_fn)
    torch.testing.assert_close(ours, rnn(x).output, rtol=0, atol=0.02)


def test_a_stream_rounds_as_its_module_does():
    rnn, x = SkipLSTM(5, 40, 2), torch.randn(30, 1, 5)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        stream = Stream(rnn)
        stream.feed(x[:, 0])
        output = rnn(x).output[-1, 0]
    torch.testing.assert_close(stream.output, output, rtol=0, atol=1e-5)
