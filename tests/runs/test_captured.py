"""Training steps as CUDA graphs: with a stand-in that works on the CPU, and on a GPU where there is one."""

import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.parallel.team import Team
from pipelines.runs import captured, training
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import read_metrics
from pipelines.runs.load import load_model
from pipelines.runs.model import check_network
from pipelines.runs.training import train
from tests.gpu import on_gpu

OPTIONS = {"lam": 1e-3, "lam_warmup": 6, "gate_clip": 1.0, "steps": 12, "eval_every": 4, "batch_size": 28, "seed": 2}
"""96 sequences to train on: the last batch of an epoch is smaller."""


@pytest.fixture
def graphs(monkeypatch):
    """Stand in for CUDA graphs: a replay does the work anew and leaves what it made where the first one did."""
    replays = []

    def record(work):
        model = models[-1]
        result = work()
        places = [parameter.grad for parameter in model.parameters()]

        def replay():
            for parameter in model.parameters():
                parameter.grad = None
            result.copy_(work())
            for parameter, place in zip(model.parameters(), places, strict=True):
                if place is not None:
                    place.copy_(parameter.grad)
            replays.append(1)

        return replay, result

    def build(*arguments):
        models.append(original(*arguments))
        return models[-1]

    models, original = [], training.build_model
    monkeypatch.setattr(training, "build_model", build)
    monkeypatch.setattr(training, "why_not", lambda config, device: None)
    monkeypatch.setattr(captured, "record", record)
    return replays


def ends(run):
    """The weights, and what was measured but for the time."""
    weights = load_model(run).model.state_dict()
    return weights, [{**record, "seconds": 0} for record in read_metrics(run)]


@pytest.mark.parametrize("others", [{}, {"cell": "gru"}, {"skip": False, "lam": 0.0, "gate_clip": None}, {"keep": 0.1}])
def test_training_is_the_same(make_run, graphs, others):
    plain = ends(make_run(**OPTIONS | others))
    assert not graphs
    weights, metrics = ends(make_run("captured", cuda_graph=True, **OPTIONS | others))
    assert len(graphs) == 6  # of nine batches of 28 sequences all but the first three
    assert metrics == plain[1]
    assert all(torch.equal(mine, other) for mine, other in zip(weights.values(), plain[0].values(), strict=True))


def test_where_it_cannot_be_captured_training_ends_and_says_so(make_run, graphs, monkeypatch):
    def fail(work):
        raise RuntimeError("operation not permitted\nwhile a stream is captured")

    monkeypatch.setattr(captured, "record", fail)
    said = r"cannot be captured as a CUDA graph \(operation not permitted\); drop --cuda-graph"
    with pytest.raises(SkipRNNError, match=said):
        make_run(cuda_graph=True, **OPTIONS)


def test_several_processes_cannot_have_it(make_run):
    run = make_run(trained=False, cuda_graph=True, **OPTIONS)
    with pytest.raises(SkipRNNError, match="--cuda-graph is for one process"):
        train(run, team=Team(0, 2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "graph"}, "the engine graph waits for the device"),
        ({"num_layers": 2}, "the engine cuda cannot run the network: it runs one layer, not 2"),
        ({"dropout": 0.5}, "a step draws"),
        ({"gate": "bernoulli"}, "a step draws"),
        ({"target_usage": 0.5}, "λ is found from each batch's usage"),
    ],
)
def test_says_what_cannot_be_captured(options, reason, monkeypatch):
    monkeypatch.setattr(captured.cuda, "unfit_device", lambda device: None)
    monkeypatch.setattr(captured.cuda, "most_rows", lambda *size: (4, False))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **{**options, "device": "meta"}))
    config = TrainConfig(steps=1, cuda_graph=True, **options)
    with pytest.raises(SkipRNNError, match=f"--cuda-graph cannot be: {reason}.*; drop it"):
        check_network(config, torch.device("cuda"))
    check_network(config if config.engine == "auto" else TrainConfig(steps=1, cuda_graph=True), torch.device("cpu"))


@on_gpu
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_on_a_gpu_it_trains_as_without(make_run, cell):
    reports, runs = [], []
    for cuda_graph in (True, False):
        options = OPTIONS | {"device": "cuda", "cell": cell, "cuda_graph": cuda_graph}
        runs.append(make_run(str(cuda_graph), trained=False, **options))
        train(runs[-1], on_progress=reports.append)
    assert not [report.warning for report in reports if report.warning]
    for mine, other in zip(*(ends(run)[0].values() for run in runs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
