"""The compiled engine inside of what torch compiles and exports."""

import copy

import pytest
import torch
from torch import nn

from skiprnn import budget_loss
from skiprnn.gate import bounds_of_skips
from tests.problems import MODULES, build, needs_compiled

SHAPE = (20, 3, 2, 7, 2)  # T, B, D, H, layers

pytestmark = [needs_compiled, pytest.mark.usefixtures("two_threads")]


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, 1)

    def forward(self, x, lengths=None):
        last, _, gate = self.rnn(x, lengths=lengths, every_step=False)
        return self.head(last), gate


def train(model, x, lengths, module):
    output, gate = model(x, lengths)
    (output.square().mean() + budget_loss(gate, 1e-2, batch_first=False)).backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    return output, gate, gradients


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("lstm", None), ("lstm", [20, 3, 0]), ("gru", [20, 3, 0]), ("gru_reset_before", None)],
)
def test_a_compiled_model_trains_as_itself(name, lengths):
    torch._dynamo.reset()
    model = Last(build(name, SHAPE, -1.0, "auto", torch.float32))
    model.rnn.gate_grad_clip = 0.01
    model.rnn.bounds = bounds_of_skips(1, 4)
    twin = copy.deepcopy(model)
    lengths = None if lengths is None else torch.tensor(lengths)
    x = torch.randn(SHAPE[:3])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, result = train(twin, x, lengths, twin), train(compiled, x, lengths, model)
    for ours, theirs in zip((*result[:2], *result[2]), (*expected[:2], *expected[2]), strict=True):
        assert torch.equal(ours, theirs)


def test_a_compiled_model_rounds_under_autocast_as_itself():
    torch._dynamo.reset()
    rnn = build("gru", SHAPE, -1.0, "auto", torch.float32)
    model = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    x = torch.randn(SHAPE[:3])
    exact = rnn(x).output
    results = []
    for module in (rnn, model):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x).output
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in rnn.parameters())])
        rnn.zero_grad()
    assert not torch.equal(results[0][0], exact)
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_the_operators_keep_torchs_rules(name, every_step):
    rnn = build(name, SHAPE, -1.0, "auto", torch.float32)
    state = rnn.initial_state(3)
    x = torch.randn(SHAPE[:3], requires_grad=True)
    states = [tensor[k] for k in range(2) for tensor in state[:-2]]
    tensors = [
        x,
        rnn.update_weight,
        rnn.update_bias,
        *state[-2:],
        *states,
        *(w for layer in rnn.layers() for w in layer),
    ]
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    kind = list(MODULES).index(name)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    given = (tensors, torch.tensor([20, 3, 9]), kind, 2, 0.1, every_step, 0.0, 1.0, False, True)
    torch.library.opcheck(torch.ops.skiprnn.forward.default, given, test_utils=checks)


def test_an_export_takes_sequences_of_any_length():
    model = Last(build("lstm", SHAPE, -1.0, "auto", torch.float32)).eval()
    steps = torch.export.Dim("steps", min=2, max=1000)
    program = torch.export.export(model, (torch.randn(SHAPE[:3]),), dynamic_shapes={"x": {0: steps}})
    for length in (5, 77):
        x = torch.randn(length, 3, 2)
        for ours, theirs in zip(program.module()(x), model(x), strict=True):
            assert torch.equal(ours, theirs)
