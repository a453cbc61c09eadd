"""The exported step, in torch.export and in ONNX Runtime, against ``step`` and the definition."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.runs.export import Step, _write, export_run, initial_state, replay, trace
from skiprnn import SkipGRU, SkipLSTM, SkipRNN, gate
from skiprnn.cells import LAYER_NORM_GRU, LAYER_NORM_LSTM, RNNCell
from skiprnn.networks import SequenceModel

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("default")  # torch's and onnxscript's own

MODELS = {
    "lstm": lambda: SkipLSTM(3, 8, batch_first=True),
    "lstm_stack": lambda: SkipLSTM(3, 8, 2, batch_first=True),
    "gru": lambda: SkipGRU(3, 8, batch_first=True, engine="events"),
    "gru_reset_before": lambda: SkipGRU(3, 8, 2, batch_first=True, reset_after=False),
    "layer_norm_lstm": lambda: SkipRNN(LAYER_NORM_LSTM, 3, 8, batch_first=True),
    "layer_norm_gru": lambda: SkipRNN(LAYER_NORM_GRU, 3, 8, batch_first=True),
    "rnn": lambda: SkipRNN(NamedOtherwise(), 3, 8, batch_first=True),
}


class OtherState(NamedTuple):
    y: torch.Tensor
    update_prob: torch.Tensor
    cum_update_prob: torch.Tensor


class NamedOtherwise(RNNCell):
    """Its state has no h."""

    State = OtherState


def build(name, bias):
    torch.manual_seed(0)
    model = SequenceModel(MODELS[name](), 4).eval()
    with torch.no_grad():
        model.rnn.update_bias.fill_(bias)
        model.rnn.update_weight.mul_(3)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its trace and the session of its file, by name."""

    @functools.cache
    def export(name):
        model = build(name, -2.0)
        traced, path = trace(model), tmp_path_factory.mktemp("step") / "step.onnx"
        _write(traced, path, int8=False)
        return model, traced, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    return export


@pytest.mark.parametrize("name", MODELS)
def test_onnx_replays_whole_sequences(name, exported):
    model, _, session = exported(name)
    x = torch.randn(5, 60, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    output, used = replay(session, x.numpy())
    assert np.array_equal(used, expected.update_gate.bool().numpy())
    assert 0.05 < used.mean() < 0.9
    np.testing.assert_allclose(output, expected.output.numpy(), atol=1e-5)
    alone, used_alone = replay(session, x[:1].numpy())  # any batch size
    np.testing.assert_allclose(alone, output[:1], atol=1e-6)
    assert np.array_equal(used_alone, used[:1])


def test_inputs_may_be_left_out_as_skip_next_says(exported):
    model, traced, session = exported("lstm_stack")
    x = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(1))
    state, t, read = initial_state(session, 1), 0, []
    for mine, other in zip(state, model.rnn.initial_state(1), strict=True):
        np.testing.assert_array_equal(mine, other.detach().numpy())
    while t < 200:
        read.append(t)
        output, *state, skip_next = session.run(None, dict(zip(traced.inputs, [x[:, t].numpy(), *state], strict=True)))
        if skip_next[0] > 0:
            state[-1] = np.ones_like(state[-1])  # the next step updates
        t += 1 + int(skip_next[0])
    with torch.no_grad():
        expected = model(x)
    assert read == expected.update_gate[0].nonzero()[:, 0].tolist()
    np.testing.assert_allclose(output, expected.output.numpy(), atol=1e-5)


def test_torch_export_equals_step():
    model = build("gru", -1.0)
    step, program = Step(model), trace(model).program.module()
    state = tuple(s.detach() for s in step.rnn.initial_state(3))
    p = torch.tensor([0.05, 0.4, 0.0])
    for update_prob in (p, torch.tensor([1.0, 1e-4, 0.013])):
        state = (state[0], update_prob, torch.tensor([0.1, 0.45, 0.0]))
        x = torch.randn(3, 3)
        with torch.no_grad():
            ours, traced = step(x, *state), program(x, *state)
        for mine, other in zip(ours, traced, strict=True):
            torch.testing.assert_close(other, mine)
    assert ours[-1].dtype == torch.int64


def test_a_gate_that_opens_no_more():
    model = build("lstm", -60.0)
    step, program = Step(model), trace(model).program.module()
    state = [s.detach() for s in step.rnn.initial_state(1)]
    with torch.no_grad():
        assert program(torch.randn(1, 3), *state)[-1].item() == gate.NEVER


def test_export_of_a_run(make_run, tmp_path):
    run = make_run(lam=1.0, lr=0.1, steps=24)
    out = tmp_path / "model.onnx"
    report = export_run(run, out)
    assert report.bytes == out.stat().st_size
    assert (report.sequences, report.gates) == (16, 16 * 12)
    assert report.gates_equal == report.gates
    assert report.output_difference < 1e-5
    assert report.metric == pytest.approx(report.metric_exported, abs=1e-5)
    assert report.used_mean == report.used_mean_exported < 12
    assert b"pipelines" not in out.read_bytes()  # nothing of this machine
    with pytest.raises(SkipRNNError, match="exists already; pass --overwrite"):
        export_run(run, out)
    with pytest.raises(SkipRNNError, match=r"its name must end in .onnx"):
        export_run(run, tmp_path / "model.pt")


def test_export_in_8_bits(make_run, tmp_path):
    run = make_run(hidden_size=40)
    whole, small = (export_run(run, tmp_path / f"{int8}.onnx", int8=int8) for int8 in (False, True))
    assert small.int8
    assert small.bytes < 0.7 * whole.bytes
    assert 0 < small.output_difference < 0.2
    assert small.gates_equal > 0.5 * small.gates


def test_the_plain_cell_is_exported_with_its_gate_open(make_run, tmp_path):
    report = export_run(make_run(skip=False, lam=0.0, cell="gru"), tmp_path / "plain.onnx")
    assert report.gates_equal == report.gates
    assert report.used_mean_exported == 12
    assert report.output_difference < 1e-5
