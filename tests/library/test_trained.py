"""Runs loaded from Python: what they say is what ``skiprnn predict`` says, of every task."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

import skiprnn
from examples.own_cell import MinGRUCell
from pipelines.runs.checkpoints import Checkpoint, Progress, load_checkpoint, save_checkpoint
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import create_run, record_task, record_words
from pipelines.runs.load import load_model
from pipelines.runs.model import build_model
from pipelines.runs.prediction import Answer, Predictor
from pipelines.tasks import (
    TASKS,
    Adding,
    Imdb,
    Mnist,
    OwnClasses,
    OwnLabels,
    OwnNumbers,
    OwnTags,
    Sine,
    Ucf101,
    Videos,
)
from skiprnn.answers import Classes, Labels, Numbers
from skiprnn.networks import Scale, Standardize
from skiprnn.words import digest_of_words

WORDS = ["", "", "film", "good", "bad", "isn't"]
OWN = {"features": 2, "mean": (3.0, -1.0), "std": (2.0, 0.5)}
OF_TASKS = {
    "adding": Adding(),
    "sine": Sine(),
    "mnist": Mnist("17"),
    "imdb": Imdb(length=12, dimensions=5, vocabulary=6, vocabulary_sha256=digest_of_words(WORDS)),
    "ucf101": Ucf101(features=4, steps=9, classes=("run", "jump")),
    "videos": Videos(features=4, steps=9, classes=("run", "jump", "sit")),
    "own-classes": OwnClasses(**OWN, classes=("steady", "shaking")),
    "own-tags": OwnTags(**OWN, classes=("low", "high")),
    "own-labels": OwnLabels(**OWN, labels=("red", "green", "blue")),
    "own-numbers": OwnNumbers(**OWN, names=("a", "b"), target_mean=(5.0, 0.0), target_std=(2.0, 1.0)),
}
LABELS_OF_STEPS = OwnLabels(**OWN, labels=("red", "green"), each_step=True)


@pytest.fixture
def make(tmp_path):
    """A run of a task, as training leaves it, with random weights that skip."""

    def make(task, name="run", bias=-1.0, **options):
        torch.manual_seed(0)
        true_lengths = task.name.startswith("own-")
        config = TrainConfig(task=task.name, hidden_size=6, num_layers=2, steps=5, true_lengths=true_lengths, **options)
        run, attributes = create_run(tmp_path / name, config), {"task": task.name, **task.parameters()}
        record_task(run, attributes)
        if task.name == "imdb":
            record_words(run, WORDS)
        model = build_model(config, task)
        if config.skip:
            nn.init.constant_(model.rnn.update_bias, bias)
        tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
        progress = Progress(5, best_step=5, best_objective=1.0, config=asdict(config), task=attributes)
        save_checkpoint(run, ("best", "last"), Checkpoint(tensors, progress))
        return run

    return make


def drawn(task, steps=20, count=5):
    """Raw sequences of a task, (N, T, D) or (N, T)."""
    draws = np.random.default_rng(0)
    if task.name == "imdb":
        return draws.integers(0, 6, (count, steps)).astype(np.int32)
    if task.name == "mnist":
        return draws.integers(0, 256, (count, steps, 1)).astype(np.uint8)
    return draws.normal(1.0, 2.0, (count, steps, task.stored_size)).astype(np.float32)


def said_by_the_command(run, x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    return [said for said in Predictor(run).file(tmp_path / "x.npy") if not isinstance(said, Answer)]


def as_the_command_says(model, value, probabilities):
    p = None if probabilities is None else probabilities.tolist()
    if isinstance(model.answers, Classes):
        p = dict(zip(model.names, p, strict=True)) if model.task in ("ucf101", "videos") else p
        likeliest = {str(model.names[k]): probabilities[k].item() for k in probabilities.argsort(descending=True)[:5]}
        return {"class": value, "probability": max(probabilities.tolist()), "probabilities": p, "likeliest": likeliest}
    if isinstance(model.answers, Labels):
        return {"labels": value, "probabilities": dict(zip(model.names, p, strict=True))}
    return value if isinstance(value, dict) else {model.names[0]: value}


def approx(answer):
    def of(value):
        if isinstance(value, dict):
            return {name: of(inner) for name, inner in value.items()}
        return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value

    return {name: pytest.approx(v, abs=1e-5) if name == "probabilities" else of(v) for name, v in answer.items()}


def test_every_task_is_there():
    assert OF_TASKS.keys() == TASKS.keys()


@pytest.mark.parametrize("task", [*OF_TASKS.values(), LABELS_OF_STEPS], ids=lambda task: task.name)
def test_what_a_loaded_run_says_is_what_predict_says(make, task, tmp_path):
    run, x = make(task), drawn(task)
    model = skiprnn.load(run)
    assert (model.task, model.training, model.each_step) == (task.name, False, task.each_step)
    assert (model.head.out_features, model.rnn.input_size) == (task.output_size, task.input_size)
    expected, said = said_by_the_command(run, x, tmp_path), model.predict(x)
    assert len(said) == len(expected) == 5
    for (value, p, used), theirs in zip(said, expected, strict=True):
        if task.each_step:
            assert len(value) == len(p) == 20
            value, p = value[-1], p[-1]  # noqa: PLW2901
        assert as_the_command_says(model, value, p) == approx(theirs.answer)
        assert used.shape == (20,)
        assert used.sum() == theirs.used < 20
    followed = model.stream()
    followed.run(lambda t: x[1][t], 20)
    assert followed.used == expected[1].used


@pytest.mark.parametrize("name", ["own-classes", "own-tags", "sine"])
def test_sequences_of_different_length(make, name, tmp_path):
    task = OF_TASKS[name]
    run = make(task)
    whole, model = list(drawn(task)), skiprnn.load(run)
    cut = [x[:length] for x, length in zip(whole, (20, 3, 1, 17, 0), strict=True)]
    said = model.predict(cut, batch_size=3)
    assert [len(predicted.used) for predicted in said] == [20, 3, 1, 17, 0]
    for x, ours in zip(cut[:4], said, strict=False):
        (theirs,) = said_by_the_command(run, x, tmp_path)
        value, p = (ours.value[-1], ours.probabilities[-1]) if task.each_step else ours[:2]
        assert as_the_command_says(model, value, p) == approx(theirs.answer)
        assert ours.used.sum() == theirs.used
        (alone,) = model.predict(torch.from_numpy(x))
        assert torch.equal(alone.used, ours.used)


def test_steps_hold_what_was_said_at_the_last_used_one(make, tmp_path):
    run = make(OF_TASKS["own-tags"])
    x, model = drawn(OF_TASKS["own-tags"], count=1), skiprnn.load(run)
    np.save(tmp_path / "x.npy", x[0])
    answers = [said for said in Predictor(run).file(tmp_path / "x.npy") if isinstance(said, Answer)]
    (said,) = model.predict(x)
    assert said.used.nonzero()[:, 0].tolist() == [answer.step for answer in answers]
    for answer in answers:
        until = 20 if answer.until is None else min(answer.until, 20)
        assert said.value[answer.step : until] == [answer.answer["class"]] * (until - answer.step)


def test_text(make):
    run = make(OF_TASKS["imdb"])
    model, text = skiprnn.load(run), "A <b>good</b> film, isn't it?"
    (theirs,) = [Predictor(run).text(text, "text")]
    first, second = model.predict([text, "bad"])
    assert as_the_command_says(model, *first[:2]) == approx(theirs.answer)
    assert (len(first.used), int(first.used.sum())) == (12, theirs.used)
    assert model.predict("bad")[0].value == second.value
    with pytest.raises(ValueError, match="sequence 1 holds no words"):
        model.predict([text, "..."])
    with pytest.raises(ValueError, match="sequence 0, step 2: no number of a word; drop or fill it"):
        model.predict(np.array([1, 2, 6]))
    for wrong in (2**32 + 2, 2.5):
        with pytest.raises(ValueError, match="sequence 0, step 0: no number of a word; drop or fill it"):
            model.predict([[wrong, 2]])
    assert len(model.predict([[1.0, 2.0]])) == 1
    (run / "words.txt").unlink()
    with pytest.raises(ValueError, match=r"sequence 0 is a text; this run reads numbers, or lacks its words.txt"):
        skiprnn.load(run).predict(text)


def test_what_it_knows_of_its_task(make):
    model = skiprnn.load(make(OF_TASKS["own-classes"]))
    assert model.names == ["steady", "shaking"]
    assert isinstance(model.embedding, Standardize)
    assert (model.embedding.mean.tolist(), model.embedding.std.tolist()) == ([3.0, -1.0], [2.0, 0.5])
    assert skiprnn.load(make(OF_TASKS["mnist"], "mnist")).names == ["1", "7"]
    assert isinstance(skiprnn.load(make(OF_TASKS["mnist"], "mnist2")).embedding, Scale)
    assert skiprnn.load(make(OF_TASKS["own-numbers"], "numbers")).names == ["a", "b"]
    named = OwnTags(**OWN, columns=("volt", "heart rate"))
    assert (model.columns, skiprnn.load(make(named, "named")).columns) == ((), ("volt", "heart rate"))


def test_a_trained_run_and_each_of_its_checkpoints(make_run):
    run = make_run(steps=8, eval_every=3)
    for name in ("best", "last"):
        path, trained = run / "checkpoints" / f"{name}.json", load_model(run, checkpoint=name)
        tensors = path.parent / json.loads(path.read_text())["tensors"]
        for where in [path, tensors, *([run, str(run)] if name == "best" else [])]:
            model = skiprnn.load(where)
            assert model.step == trained.step
            for key, tensor in trained.model.state_dict().items():
                assert torch.equal(model.state_dict()[key], tensor)


def test_its_tensors_load_into_a_plain_module(make):
    from safetensors.torch import load_file

    run = make(OF_TASKS["sine"])
    loaded = skiprnn.load(run)
    mine, other = (skiprnn.SkipLSTM(1, 6, 2, batch_first=True) for _ in range(2))
    mine.load_state_dict(loaded.rnn.state_dict())
    (path,) = (run / "checkpoints").glob("*.safetensors")
    prefix = "model.rnn."
    tensors = {k.removeprefix(prefix): v for k, v in load_file(path).items() if k.startswith(prefix)}
    other.load_state_dict(tensors)
    x = torch.from_numpy(drawn(OF_TASKS["sine"]))
    gate = loaded(x).update_gate
    assert torch.equal(mine(x).update_gate, gate)
    assert torch.equal(other(x).update_gate, gate)


def test_fine_tuning_under_another_head(make):
    model = skiprnn.load(make(OF_TASKS["own-classes"]))
    model.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    x = drawn(OF_TASKS["own-classes"])
    with pytest.raises(ValueError, match=r"the head has 3 outputs, answers 2 names; set model\.answers, such as"):
        model.predict(x)
    model.answers = Classes(["a", "b", "c"])
    model.train()
    output, update_gate = model(torch.from_numpy(x))
    (output.sum() + skiprnn.budget_loss(update_gate, 0.1, batch_first=True)).backward()
    assert model.rnn.weight_hh_l0.grad.abs().sum() > 0
    assert model.predict(x)[0].value in ("a", "b", "c")
    assert model.training
    model.eval()
    assert len(model.stream().run(lambda t: x[0][t], 20)) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "ln-gru"},
        {"cell": "gru", "reset_after": False},
        {"max_skip": 2},
        {"skip": False},
        {"cell": "gru", "skip": False},
        {"gate": "bernoulli"},
    ],
)
def test_networks_of_every_kind(make, options, tmp_path):
    run, x = make(OF_TASKS["sine"], **options), drawn(OF_TASKS["sine"])
    expected = said_by_the_command(run, x, tmp_path)
    assert [int(p.used.sum()) for p in skiprnn.load(run).predict(x)] == [p.used for p in expected]


def test_a_run_that_skips_at_random_has_no_stream(make):
    model = skiprnn.load(make(OF_TASKS["sine"], skip=False, p_skip=0.5))
    assert 0 < sum(p.used.sum() for p in model.predict(drawn(OF_TASKS["sine"]))) < 100
    with pytest.raises(ValueError, match="this model skips at random, so nobody can say which samples it needs"):
        model.stream()


def test_a_cell_of_ones_own(make, monkeypatch):
    monkeypatch.setattr("pipelines.runs.cells._imported", {"my.module:Cell": MinGRUCell()})
    run = make(OF_TASKS["sine"], cell="my.module:Cell")
    with pytest.raises(
        ValueError, match=r"has a cell of one's own, my\.module:Cell; pass it: skiprnn\.load\(run, cell="
    ):
        skiprnn.load(run)
    for cell in (MinGRUCell, MinGRUCell()):
        model = skiprnn.load(run, cell=cell)
        assert isinstance(model.rnn.cell, MinGRUCell)
        assert len(model.predict(drawn(OF_TASKS["sine"]))) == 5
    with pytest.raises(ValueError, match="has the cell lstm, which is ready; pass no other"):
        skiprnn.load(make(OF_TASKS["sine"], "lstm"), cell=MinGRUCell)


def test_a_number_of_the_first_versions(make):
    run = make(OwnNumbers(**OWN, target_mean=(2.0,), target_std=(3.0,)))
    path = run / "task.json"
    task = json.loads(path.read_text())
    old = {k: v for k, v in task.items() if k not in ("names", "each_step")} | {"target_mean": 2.0, "target_std": 3.0}
    path.write_text(json.dumps(old))
    saved = load_checkpoint(run, "best")
    saved.progress.task = saved.progress.config = None
    save_checkpoint(run, ("best",), saved)
    model = skiprnn.load(run)
    assert model.answers == Numbers(["value"], [2.0], [3.0])
    assert isinstance(model.predict(drawn(OF_TASKS["own-numbers"]))[0].value, float)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5, 3)), r"sequence 0 has shape \(5, 3\); own-classes takes \(T, 2\)"),
        (np.zeros(5), r"sequence 0 has shape \(5,\); own-classes takes \(T, 2\)"),
        ([np.zeros((4, 2)), np.full((4, 2), np.nan)], "sequence 1, step 0: NaN or infinity; drop or fill it"),
        ("good film", "sequence 0 is a text; this run reads numbers, or lacks its words.txt"),
    ],
)
def test_samples_that_do_not_fit(make, x, message):
    with pytest.raises(ValueError, match=message):
        skiprnn.load(make(OF_TASKS["own-classes"])).predict(x)


def test_what_is_no_run(make, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run or checkpoint .*nowhere; `skiprnn train` makes one"):
        skiprnn.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a run directory \(it has no config.json\)"):
        skiprnn.load(tmp_path)
    run = make(OF_TASKS["sine"])
    best = run / "checkpoints" / "best.json"
    (tensors,) = (run / "checkpoints").glob("*.safetensors")
    stray = shutil.copy(tensors, tensors.with_name("stray.safetensors"))
    with pytest.raises(ValueError, match=r"no checkpoint beside .*stray.safetensors names it"):
        skiprnn.load(stray)
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"cannot read .*best.json: step-.* does not match its checksum; take another"):
        skiprnn.load(run)
    best.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*best.json: truncated, damaged or not JSON"):
        skiprnn.load(run)
    best.unlink()
    with pytest.raises(FileNotFoundError, match="has no checkpoint 'best' yet; train it with `skiprnn train --resume"):
        skiprnn.load(run)


@pytest.mark.parametrize(("name", "size"), [("hidden_size", 2**40), ("hidden_size", 7), ("num_layers", 2**40)])
def test_sizes_that_are_claimed_take_no_memory(make, name, size):
    run = make(OF_TASKS["sine"])
    best = run / "checkpoints" / "best.json"
    content = json.loads(best.read_text())
    content["numbers"]["config"][name] = size
    best.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"best.json does not fit the run"):
        skiprnn.load(run)
    content["numbers"]["config"][name] = str(size)
    best.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not describe its network"):
        skiprnn.load(run)
    content["tensors"] = ".."
    best.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"cannot read .*best.json: it names no file of tensors; train the run again"):
        skiprnn.load(run)
