"""The training loop: exact resumption, budgets, stopping, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch

from pipelines.errors import SkipRNNError
from pipelines.grids.paper import table
from pipelines.runs import training
from pipelines.runs.batches import batches_after
from pipelines.runs.checkpoints import load_checkpoint
from pipelines.runs.config import PRESETS, TrainConfig, configure
from pipelines.runs.directory import create_run, extend_run, lock_run, read_metrics
from pipelines.runs.load import load_run
from pipelines.runs.model import build_model
from pipelines.runs.training import change_run, train
from pipelines.tasks import TASKS
from pipelines.video.network import FRAME_COST
from skiprnn.engines import cuda
from tests.forked import start, train_run
from tests.runs import assert_same_run, interrupted_after, tensors

PAGE = Path(__file__).parents[2] / "docs/training.md"


VARIANTS = {
    "file": {},
    "fresh": {"fresh_batches": True},
    "gru": {"cell": "gru", "num_layers": 2},
    "dropout": {"dropout": 0.5},
    "random": {"skip": False, "p_skip": 0.5, "lam": 0.0},
    "cosine": {"lr_schedule": "cosine"},
    "schedules": {"lr_schedule": "linear", "decay_from": 0.5, "warmup": 3, "lam_warmup": 6, "gate_clip": 1.0},
    "reset before": {"cell": "gru", "reset_after": False},
    "bernoulli": {"gate": "bernoulli"},
    "epochs": {"steps": None, "epochs": 3},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(make_run, options):
    whole = make_run("whole", **options)
    parts = make_run("parts", trained=False, **options)
    should_stop = interrupted_after(1, 2, 3, 5)
    outcomes = [train(parts, should_stop=should_stop).reason for _ in range(5)]
    assert outcomes == ["interrupted"] * 4 + ["finished"]
    assert_same_run(parts, whole)


def test_killed_again_and_again(make_run, tmp_path):
    """SIGKILL at whatever moment, checkpoints half-written included."""
    options = {"steps": 100, "eval_every": 1, "hidden_size": 4}
    whole = make_run("whole", **options)
    killed = make_run("killed", trained=False, **options)
    log = killed / "metrics.jsonl"
    for kill in range(4):
        written = log.stat().st_size if log.exists() else 0
        process, _ = start(train_run, killed)
        while process.is_alive() and (log.stat().st_size if log.exists() else 0) == written:
            time.sleep(0.001)
        time.sleep(0.017 * kill)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(killed)
    assert_same_run(killed, whole)
    steps = {load_checkpoint(killed, name).progress.step for name in ("best", "last")}
    names = {path.name.rsplit("-", 1)[0] for path in (killed / "checkpoints").iterdir()}
    assert names == {"best.json", "last.json", *(f"step-{step:08d}" for step in steps)}


def test_a_finished_run_can_be_extended(make_run):
    long = make_run("long", steps=10)
    short = make_run("short", steps=7)
    extend_run(short, steps=10)
    train(short)
    assert all(torch.equal(tensors(short)[key], tensors(long)[key]) for key in tensors(long))
    assert [record["step"] for record in read_metrics(short)] == [3, 6, 7, 9, 10]


def test_other_seeds_train_otherwise(make_run):
    one, two = make_run("one", seed=0), make_run("two", seed=1)
    assert not torch.equal(tensors(one)["model.head.weight"], tensors(two)["model.head.weight"])


def test_what_is_logged(make_run, config):
    run = make_run()
    records = read_metrics(run)
    assert [record["step"] for record in records] == [3, 6, 8]
    record = records[-1]
    assert record["seconds"] > 0
    assert set(record["train"]) == {"loss", "task_loss", "budget_loss", "metric", "used", "grad_norm", "grad_norm_max"}
    assert record["train"]["grad_norm_max"] >= record["train"]["grad_norm"] > 0
    assert record["train"]["budget_loss"] == pytest.approx(config.lam * record["train"]["used"])
    assert record["train"]["metric"] == pytest.approx(2 * record["train"]["task_loss"])
    assert 1 <= record["val"]["used_mean"] <= 12
    objective = record["val"]["loss"] + config.lam * record["val"]["used_mean"]
    assert record["val"]["objective"] == pytest.approx(objective)
    (session,) = json.loads((run / "environment.json").read_text())
    assert (session["torch"], session["from_step"]) == (torch.__version__, 0)
    train(run)
    assert [s["from_step"] for s in json.loads((run / "environment.json").read_text())] == [0, 8]


def test_best_has_the_lowest_objective(make_run):
    run = make_run(steps=30, lr=0.2)
    best = min(read_metrics(run), key=lambda record: record["val"]["objective"])
    assert load_checkpoint(run, "best").progress.step == best["step"]
    result = training.evaluate(
        (loaded := load_run(run, split="val")).model, loaded.task, loaded.sequences, loaded.config
    )
    assert result.loss == best["val"]["loss"]


def test_every_epoch_visits_every_sequence_once(config, adding_file):
    task, data = training.load_data(adding_file, "adding", ("train",))
    split = data.splits["train"]
    batches = batches_after(0, replace(config, batch_size=40), task, data.splits, torch.device("cpu"))
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [40, 40, 16]
        assert torch.equal(torch.cat([b.y for b in epoch]).sort().values, split.y.sort().values)
    assert not torch.equal(epochs[0][0].x, epochs[1][0].x)


def test_patience_stops(make_run, monkeypatch):
    run = make_run(trained=False, steps=1000, patience=2, lr=1e-12, eval_every=1)
    outcome = train(run)
    assert outcome.reason == "patience"
    assert outcome.step == outcome.best_step + 2
    assert train(run).step == outcome.step  # it stays stopped
    change_run(run, patience=None, steps=outcome.step + 1)
    assert train(run).reason == "finished"


def test_a_larger_lambda_uses_fewer_samples(make_run):
    free, dear = (make_run(name, lam=lam, steps=60, lr=0.03) for name, lam in (("free", 0.0), ("dear", 0.1)))
    assert read_metrics(dear)[-1]["val"]["used_mean"] < 0.8 * read_metrics(free)[-1]["val"]["used_mean"]


def test_a_run_that_lost_its_last_checkpoint_is_not_begun_again(make_run):
    run = make_run()
    (run / "checkpoints" / "last.json").unlink()
    with pytest.raises(SkipRNNError, match=r"has lost its checkpoint last\.json"):
        train(run)


def test_a_damaged_best_checkpoint_does_not_stop_the_last(make_run):
    run = make_run()
    (run / "checkpoints" / "best.json").write_text("{")
    extend_run(run, steps=9)
    assert train(run).step == 9


def test_a_checkpoint_of_another_configuration(make_run):
    run = make_run()
    extend_run(run, hidden_size=7)
    with pytest.raises(SkipRNNError, match=r"hidden_size in config.json was 6, now 7"):
        load_run(run)
    with pytest.raises(SkipRNNError, match=r"does not fit its config.json: model.head.weight is \(1, 6\)"):
        train(run, accept=True)


def test_impossible_changes_leave_the_run_as_it_was(make_run, sine_file):
    run = make_run()
    before = (run / "config.json").read_bytes()
    for changes, message in (
        ({"steps": 5}, "is at step 8 already, beyond the 5 asked for"),
        ({"data": str(sine_file)}, "holds data for the task sine"),
        ({"device": "cuda"}, "no CUDA device"),
    ):
        if changes != {"device": "cuda"} or not torch.cuda.is_available():
            with pytest.raises(SkipRNNError, match=message):
                change_run(run, **changes)
    assert (run / "config.json").read_bytes() == before


def test_bfloat16_trains_as_float32_does(make_run):
    """Far enough for rounding to show, and to learn more than rounding takes away."""
    half, full = (make_run(amp, amp=amp, steps=30) for amp in ("bf16", "off"))
    (first, *_, last), whole = read_metrics(half), read_metrics(full)[-1]
    assert last["val"]["loss"] != whole["val"]["loss"]
    assert last["val"]["loss"] == pytest.approx(whole["val"]["loss"], rel=0.05)
    assert last["val"]["loss"] < 0.9 * first["val"]["loss"]


@pytest.mark.gpu
def test_the_gpu_engine_trains_and_is_evaluated_anywhere(make_run, monkeypatch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    short = {"steps": 2, "eval_every": 2, "batch_size": 8}
    run, plain = make_run(engine="cuda", device=device, **short), make_run("events", **short)
    for name, weight in tensors(plain).items():
        if name.startswith("model."):
            torch.testing.assert_close(tensors(run)[name].cpu(), weight, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(cuda, "EMULATED", None)
    assert load_run(run, device="cpu").model.rnn.engine == "auto"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "runs on CUDA devices"),
        ({"num_layers": 2}, "one layer, not 2"),
        ({"hidden_size": 129}, "128 units, not 129"),
    ],
)
def test_the_gpu_engine_refuses_what_it_cannot_train(make_run, monkeypatch, options, message):
    if "device" in options:
        monkeypatch.setattr(cuda, "EMULATED", None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with pytest.raises(SkipRNNError, match=message):
        make_run(**{"engine": "cuda", "device": device, **options})


def test_a_loss_that_is_not_finite_stops_the_run(make_run, monkeypatch):
    run = make_run(trained=False, steps=100)
    train(run, should_stop=interrupted_after(6))
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    monkeypatch.setattr(training, "budget_loss", lambda *arguments, **options: torch.tensor(torch.nan))
    with pytest.raises(SkipRNNError, match=r"not finite near step 9 of .*run.*lower --lr"):
        train(run)
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
    monkeypatch.undo()
    assert train(run).reason == "finished"


def test_a_run_in_use_is_left_alone(make_run):
    run = make_run(trained=False)
    script = f"""
from pathlib import Path
from pipelines.runs.directory import lock_run
with lock_run(Path({str(run)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(SkipRNNError, match="in use by another process"):
        train(run)
    holder.kill()
    holder.communicate()
    assert train(run).reason == "finished"


def test_other_data_under_a_resumed_run(make_run, config, tmp_path):
    run = make_run(trained=False)
    train(run, should_stop=interrupted_after(1))
    with h5py.File(config.data) as source, h5py.File(tmp_path / "other.h5", "w") as other:
        for name in source:
            source.copy(name, other)
        other.attrs.update({**source.attrs, "digest": "0" * 64})
    extend_run(run, data=str(tmp_path / "other.h5"))
    with pytest.raises(SkipRNNError, match=r"is not the data .*run was trained on"):
        train(run)


def test_a_folder_that_cannot_be_written(make_run, monkeypatch):
    run = make_run(trained=False)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    train(run, should_stop=interrupted_after(1))
    before = tensors(run)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SkipRNNError, match="No space left on device"):
        train(run)
    monkeypatch.undo()
    assert all(torch.equal(tensors(run)[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, "lam must be zero or a positive number"),
        ({"lam": float("nan")}, "lam must be zero or a positive number"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"p_skip": 0.5}, "needs skip = false"),
        ({"p_skip": 2.0, "skip": False}, "p_skip must lie in 0..1"),
        ({"steps": None}, "either in steps or in epochs"),
        ({"steps": 5, "epochs": 5}, "either in steps or in epochs"),
        ({"steps": None, "epochs": 5, "fresh_batches": True}, "fresh batches have no epochs"),
        (
            {"cell": "esn"},
            "unknown cell 'esn'; choose lstm or gru or rnn or .*, or one of your own, package.module:Cell",
        ),
        ({"cell": "a:b:c"}, "unknown cell 'a:b:c'"),
        ({"cell": "rnn", "skip": False}, "are of lstm and gru alone; rnn needs skip = true"),
        ({"cell": "rnn", "skip": False, "p_skip": 0.5}, "are of lstm and gru alone"),
        ({"cell": "own.cells:Mine", "skip": False}, "own.cells:Mine needs skip = true, in a sweep a --lam other than"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(SkipRNNError, match=message):
        TrainConfig(**{"steps": 10, **options})


PLAIN = [row for task in TASKS for row in table(task) if row.lam is None and row.p_skip is None and row.cost]


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: f"{row.data.name}-{row.cell}")
def test_the_papers_presets_cost_what_the_paper_says(row):
    """Samples, times the multiply-accumulates of an update of the preset's network and of a frame's features."""
    name = row.data.task
    network = {"network": "resnet50", "frame_cost": FRAME_COST["resnet50"]} if name == "ucf101" else {}
    task = TASKS[name](**network)
    model = build_model(configure(name, "paper", cell=row.cell), task)
    assert f"{row.used * (model.cost_per_update() + task.sample_cost):.2e}" == f"{row.cost:.2e}"


def test_every_preset_of_the_paper_is_what_the_docs_say():
    said = re.search(r"paper is the paper's protocol: Adam at (\S+), batches of (\d+)", PAGE.read_text("utf-8"))
    for task, presets in PRESETS.items():
        assert (presets["paper"].lr, presets["paper"].batch_size) == (float(said[1]), int(said[2])), task


def test_a_cell_may_have_its_own_defaults():
    assert configure("mnist", "quick").lr == configure("mnist", "quick", cell="lstm").lr == 1e-3
    assert configure("mnist", "quick", cell="gru").lr == 2e-3
    assert configure("mnist", "quick", cell="gru", lr=1e-4).lr == 1e-4


def test_a_presets_patience_can_be_switched_off():
    assert configure("own-classes", "quick", patience=None).patience == 20
    assert configure("own-classes", "quick", patience="none").patience is None


def test_given_options_replace_the_presets():
    config = configure("sine", "quick", lam=1e-4, lr=None, epochs=3)
    assert (config.lam, config.lr, config.epochs, config.steps) == (1e-4, PRESETS["sine"]["quick"].lr, 3, None)


def test_cannot_overwrite_a_run_in_use_or_a_foreign_folder(make_run, config, tmp_path):
    run = make_run()
    with pytest.raises(SkipRNNError, match=r"exists already; continue it with --resume"):
        create_run(run, config)
    with lock_run(run):
        pass
    (tmp_path / "precious").mkdir()
    with pytest.raises(SkipRNNError, match="is no run to overwrite"):
        create_run(tmp_path / "precious", config, overwrite=True)
    (tmp_path / "precious" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SkipRNNError, match="is no run to overwrite"):
        create_run(tmp_path / "precious", config, overwrite=True)
    (run / "thesis.tex").write_text("")
    with pytest.raises(SkipRNNError, match=r"holds more than its run \(thesis\.tex\)"):
        create_run(run, config, overwrite=True)
    (run / "thesis.tex").unlink()
    (tmp_path / "link").symlink_to(run)
    create_run(tmp_path / "link", config, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert not (run / "checkpoints").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
