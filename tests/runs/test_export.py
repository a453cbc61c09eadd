"""What is exported, in torch and in ONNX Runtime, against ``step``, the definition, and ``predict``."""

import functools
import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pipelines.data.sequences import Sequences
from pipelines.errors import SkipRNNError
from pipelines.runs import export, traced
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import create_run
from pipelines.runs.export import ABOUT_FILE, export_run
from pipelines.runs.load import load_run
from pipelines.runs.onnx_step import OnnxStep, write_onnx
from pipelines.runs.prediction import Predictor
from pipelines.runs.traced import Step, trace_step
from pipelines.runs.training import train
from pipelines.sources.own import write_own
from pipelines.tasks import OwnLabels
from skiprnn import SkipGRU, SkipLSTM, SkipRNN, gate
from skiprnn.cells import LAYER_NORM_GRU, LAYER_NORM_LSTM, RNNCell
from skiprnn.networks import SequenceModel
from tests.problems import needs_compiled

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx_loop = pytest.importorskip("examples.onnx_loop")
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
TASK = OwnLabels(features=3, mean=(9.0, -1.0, 0.5), std=(5.0, 0.1, 1.0), labels=("a", "b", "c", "d"))


class OtherState(NamedTuple):
    y: torch.Tensor
    update_prob: torch.Tensor
    cum_update_prob: torch.Tensor


class NamedOtherwise(RNNCell):
    """Its state has no h."""

    State = OtherState


def build(name, bias):
    torch.manual_seed(0)
    model = SequenceModel(MODELS[name](), 4, TASK.embedding()).eval()
    with torch.no_grad():
        model.rnn.update_bias.fill_(bias)
        model.rnn.update_weight.mul_(3)
    return model


def samples(*shape):
    """Raw ones, of which the task's mean and std are."""
    drawn = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1))
    return drawn * torch.tensor(TASK.std) + torch.tensor(TASK.mean)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its trace and its file, by name."""

    @functools.cache
    def exported_as(name):
        model = build(name, -2.0)
        found, path = trace_step(model, TASK), tmp_path_factory.mktemp("step") / "step.onnx"
        write_onnx(found, path, {})
        return model, found, OnnxStep(path)

    return exported_as


# Of those left to `make test-slow` the gate is that of these, and their step equals the reference elsewhere.
OFTEN = ("lstm_stack", "rnn")
slow = pytest.mark.slow(reason="ten seconds of tracing")


@pytest.mark.parametrize("name", [name if name in OFTEN else pytest.param(name, marks=slow) for name in MODELS])
def test_onnx_replays_whole_sequences(name, exported):
    model, _, replay = exported(name)
    x = samples(5, 60)
    with torch.no_grad():
        expected = model(x)
    output, used = replay(x)
    assert torch.equal(used, expected.update_gate.bool())
    assert 0.05 < used.float().mean() < 0.9
    torch.testing.assert_close(output, expected.output, atol=1e-5, rtol=0)
    alone, used_alone = replay(x[:1])  # any batch size
    torch.testing.assert_close(alone, output[:1], atol=1e-6, rtol=0)
    assert torch.equal(used_alone, used[:1])


def test_inputs_may_be_left_out_as_skip_next_says(exported):
    model, step_traced, step = exported("lstm_stack")
    x = samples(1, 200)
    state, t, read = step.initial_state(1), 0, []
    for mine, other in zip(state, model.rnn.initial_state(1), strict=True):
        np.testing.assert_array_equal(mine, other.detach().numpy())
    while t < 200:
        read.append(t)
        given = dict(zip(step_traced.inputs, [x[:, t].numpy(), *state], strict=True))
        answer, output, *state, skip_next = step.session.run(None, given)
        if skip_next[0] > 0:
            state[-1] = np.ones_like(state[-1])  # the next step updates
        t += 1 + int(skip_next[0])
    with torch.no_grad():
        expected = model(x)
    assert read == expected.update_gate[0].nonzero()[:, 0].tolist()
    np.testing.assert_allclose(output, expected.output.numpy(), atol=1e-5)
    np.testing.assert_allclose(answer, expected.output.sigmoid().numpy(), atol=1e-5)


def test_torch_export_equals_step():
    model = build("gru", -1.0)
    step, program = Step(model, TASK, "raw"), trace_step(model, TASK).program.module()
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
    step, program = Step(model, TASK, "raw"), trace_step(model, TASK).program.module()
    state = [s.detach() for s in step.rnn.initial_state(1)]
    with torch.no_grad():
        assert program(torch.randn(1, 3), *state)[-1].item() == gate.NEVER


@slow
def test_the_plain_cell_is_exported_with_its_gate_open(make_run, tmp_path):
    report = export_run(make_run(skip=False, lam=0.0, cell="gru"), tmp_path / "plain.onnx")
    assert report.gates_equal == report.gates
    assert report.used_mean_exported == 12
    assert report.output_difference < 1e-5


@pytest.fixture(scope="module")
def own_runs(tmp_path_factory):
    """Runs on sequences whose features are far from 0 and 1, and one of their CSV files."""
    folder, draws = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    x = draws.normal([500, -3], [40, 0.01], (60, 40, 2))
    ys = {"own-classes": np.where(x[:, :8, 0].mean(1) > 500, "high", "low"), "own-numbers": x * [1, 100] + [0, 7000]}
    np.savetxt(folder / "one.csv", x[3], delimiter=",", header="force,tilt", comments="")
    for name, y in ys.items():
        np.savez(folder / "own.npz", x=x, y=y)
        data = folder / f"{name}.h5"
        write_own(folder / "own.npz", data)
        config = TrainConfig(
            task=name, data=str(data), hidden_size=40, lr=1e-2, lam=1e-2, max_skip=5, steps=40, eval_every=20,
            device="cpu", true_lengths=True,
        )  # fmt: skip
        train(create_run(folder / name, config))
    return folder


@pytest.fixture(scope="module")
def trace_once():
    """To stand for ``trace_step`` where it is always given the run on classes: it takes seconds."""
    kept = []

    def trace(*arguments):
        if not kept:
            kept.append(trace_step(*arguments))
        return kept[0]

    return trace


@pytest.fixture(scope="module")
def file(own_runs, trace_once):
    """The run on classes as an ONNX file, and the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_step", trace_once)
        return own_runs / "model.onnx", export_run(own_runs / "own-classes", own_runs / "model.onnx")


def test_export_of_a_run(file, own_runs, tmp_path):
    out, report = file
    assert report.bytes == out.stat().st_size
    assert (report.sequences, report.gates) == (10, 10 * 40)
    assert report.gates_equal == report.gates
    assert report.output_difference < 1e-5
    assert report.metric == pytest.approx(report.metric_exported, abs=1e-5)
    assert report.used_mean == report.used_mean_exported < 30
    assert b"pipelines" not in out.read_bytes()  # nothing of this machine
    with pytest.raises(SkipRNNError, match="exists already; pass --overwrite"):
        export_run(own_runs / "own-classes", out)
    for format, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        with pytest.raises(SkipRNNError, match=f"its name must end in {suffix}"):
            export_run(own_runs / "own-classes", tmp_path / "model.pt", format=format)


def test_a_file_says_what_it_must_be_given(file, own_runs):
    out, report = file
    about = onnx_loop.about(onnxruntime.InferenceSession(out))
    assert about == json.loads(json.dumps(report.about))
    task = load_run(own_runs / "own-classes").task
    assert about == {
        "task": "own-classes", "input": "raw", "x": "samples as they are in the data, standardised inside",
        "features": 2, "columns": None, "mean": list(task.mean), "std": list(task.std), "answers": "classes",
        "names": ["high", "low"], "each_step": False, "true_lengths": True,
        "parameters": {"label_columns": [], "classes": ["high", "low"]},
    }  # fmt: skip
    assert task.mean[0] == pytest.approx(500, abs=5)


def test_gates_past_the_ends_do_not_count():
    model, lengths = build("lstm", 0.0), torch.tensor([3, 9])
    x, y = samples(2, 9), torch.zeros(2, 4, dtype=torch.uint8)

    def replay(x, lengths):
        output, gate = model(x, lengths)
        return output, gate.bool() | (torch.arange(9) >= lengths[:, None])  # other than the run past the ends

    report = export._compare(replay, model, TASK, Sequences(x, y, lengths), "raw")
    assert (report["gates"], report["gates_equal"]) == (12, 12)


def test_export_in_8_bits(file, own_runs, tmp_path, trace_once, monkeypatch):
    monkeypatch.setattr(export, "trace_step", trace_once)
    _, whole = file
    small = export_run(own_runs / "own-classes", tmp_path / "small.onnx", int8=True)
    assert small.int8
    assert small.about == whole.about
    assert small.bytes < 0.7 * whole.bytes
    assert 0 < small.output_difference < 0.2
    assert small.gates_equal > 0.5 * small.gates


def assert_the_loop_answers_as_predict(run, model, capsys):
    """The steps used and the numbers said at the end; returned are the lines for the steps, and predict's answers."""
    table = run.parent / "one.csv"
    onnx_loop.main(str(model), str(table))
    *steps, used, one, other = capsys.readouterr().out.splitlines()
    with table.open() as lines:
        *answers, last = Predictor(run).rows(lines, "rows")
    assert used.split(": ")[1].split() == [str(answer.step) for answer in answers]
    assert 1 < len(answers) < 30
    said = last.answer
    if "probabilities" in said:
        said = dict(zip(["high", "low"], said["probabilities"], strict=True))
    for line, (label, value) in zip((one, other), said.items(), strict=True):
        assert line.split(": ")[0] == label
        assert float(line.split(": ")[1]) == pytest.approx(value, rel=1e-5, abs=1e-5)
    return steps, answers


def test_the_loop_of_the_examples_answers_as_predict_does(file, own_runs, capsys):
    steps, _ = assert_the_loop_answers_as_predict(own_runs / "own-classes", file[0], capsys)
    assert steps == []


def test_the_loop_takes_columns_by_their_names():
    assert onnx_loop.order_of(["heart rate", "b"], 'b,"heart rate"\n') == [1, 0]
    assert onnx_loop.order_of(None, "b,a\n") is None
    for header in ("b,pulse\n", "b\n", "b,heart rate,t\n"):
        with pytest.raises(SystemExit) as refused:
            onnx_loop.order_of(["heart rate", "b"], header)
        found = header.strip().replace(",", ", ")
        assert refused.value.code == f"the columns must be heart rate, b, in any order; the header says {found}"


def test_the_loop_with_columns_in_another_order(file, own_runs, tmp_path, monkeypatch, capsys):
    known = {**onnx_loop.about(onnxruntime.InferenceSession(file[0])), "columns": ["force", "tilt"]}
    monkeypatch.setattr(onnx_loop, "about", lambda session: known)
    swapped = [",".join(line.split(",")[::-1]) for line in (own_runs / "one.csv").read_text().splitlines()]
    (tmp_path / "swapped.csv").write_text("\n".join(swapped))
    said = []
    for table in (own_runs / "one.csv", tmp_path / "swapped.csv"):
        onnx_loop.main(str(file[0]), str(table))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_the_loop_with_samples_it_standardises_itself(own_runs, tmp_path, capsys):
    """And with an answer to each step, of numbers in their own units."""
    model = tmp_path / "model.onnx"
    report = export_run(own_runs / "own-numbers", model, input="network")
    assert report.gates_equal == report.gates
    assert report.about["x"] == "standardised samples, (sample - mean) / std"
    steps, answers = assert_the_loop_answers_as_predict(own_runs / "own-numbers", model, capsys)
    for line, answer in zip(steps, answers, strict=True):
        assert [float(number) for number in line.split()[1:]] == pytest.approx([*answer.answer.values()], rel=1e-5)


def test_columns_that_a_run_knows_are_in_the_file(own_runs):
    trained = load_run(own_runs / "own-classes")
    named = replace(trained, task=replace(trained.task, columns=("force", "tilt")))
    assert traced.description(own_runs, named, "raw")["columns"] == ["force", "tilt"]


@needs_compiled
@pytest.mark.parametrize("name", ["own-classes", "own-numbers"])
def test_a_torch_program_takes_sequences_of_any_length(own_runs, tmp_path, name):
    out = tmp_path / "model.pt2"
    report = export_run(own_runs / name, out, format="torch")
    assert report.gates_equal == report.gates
    assert report.output_difference < 1e-6
    extra = {ABOUT_FILE: ""}
    program, trained = torch.export.load(out, extra_files=extra).module(), load_run(own_runs / name)
    assert json.loads(extra[ABOUT_FILE])["names"] == list(trained.task.answers.names)
    for steps, ends in ((1, [1, 1, 1]), (17, [17, 4, 0])):
        x, lengths = trained.sequences.x[:3, :steps], torch.tensor(ends)
        answer, output, gate = program(x, lengths)
        with torch.no_grad():
            expected = trained.model(x, lengths)
        assert torch.equal(gate, expected.update_gate)
        torch.testing.assert_close(output, expected.output)
        torch.testing.assert_close(answer, trained.task.answers.readout(expected.output))
    assert b"traced.py" not in out.read_bytes()  # nothing of this machine


def test_torch_programs_are_of_the_compiled_cells(make_run, tmp_path):
    with pytest.raises(
        SkipRNNError, match=r"and it has no LayerNormLSTMCell; export a step instead, with --format onnx"
    ):
        export_run(make_run(cell="ln-lstm"), tmp_path / "model.pt2", format="torch")
    assert not (tmp_path / "model.pt2").exists()
