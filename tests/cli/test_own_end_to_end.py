"""One's own labels of every kind, from arrays to predictions, by the commands."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.runs.load import load_run
from skiprnn_cli.main import cli

DRAWS = np.random.default_rng(0)
HIGH = np.repeat(DRAWS.integers(0, 2, (40, 4)), 3, axis=1)  # (40, 12), held for 3 steps
X = np.stack([HIGH + DRAWS.normal(0, 0.1, HIGH.shape), DRAWS.normal(size=HIGH.shape)], axis=-1)
LENGTHS = DRAWS.integers(4, 13, 40)
LABELS = {
    "tags": (np.where(HIGH, "high", "low"), "own-tags", "a class a step, one of 2", ["accuracy", "macro F1"]),
    "labels": (HIGH[:, 3:6], "own-labels", "3 labels a sequence", ["macro F1", "mean average precision"]),
    "labels-of-steps": (np.stack([HIGH, 1 - HIGH], -1), "own-labels", "2 labels a step", ["macro F1"]),
    "number-a-step": (HIGH + 0.5, "own-numbers", "a number a step", ["MSE"]),
    "numbers": (X.mean(1), "own-numbers", "2 numbers a sequence", ["MSE", "MSE of value 0", "MSE of value 1"]),
    "numbers-of-steps": (X + 1.0, "own-numbers", "2 numbers a step", ["MSE", "MSE of value 1"]),
}
OPTIONS = ("--steps", 30, "--hidden", 5, "--eval-every", 10, "--lr", "1e-2", "--lam", "1e-2", "--dropout", 0.1)


@pytest.mark.parametrize("kind", LABELS)
def test_from_arrays_to_predictions(skiprnn, tmp_path, kind):
    y, task, taken, metrics = LABELS[kind]
    np.savez("own.npz", x=X, y=y, lengths=LENGTHS)

    def done(*words):
        result = skiprnn(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    said = done("gen-data", "own", "own.npz")
    assert f"of up to 12 steps, task {task}\n" in said
    assert said.splitlines()[1].startswith(
        f"took y {y.shape} of {'texts' if y.dtype.kind == 'U' else y.dtype} for {taken}"
    )
    done("train", "--data", "data/own.h5", "--out", "run", *OPTIONS)
    report = json.loads(done("evaluate", "run", "--json"))
    names = [report["metric_name"], *report["other_metrics"]]
    assert set(metrics) <= set(names)
    assert report["seconds_alone"] > 0
    text = done("evaluate", "run")
    assert all(any(line.startswith(f"{name}  ") for line in text.splitlines()) for name in names)
    done("plot-usage", "run", "--examples", 4)

    trained = load_run("run")
    with torch.no_grad():
        expected = trained.model(trained.sequences.x, trained.sequences.lengths)
    lines = [json.loads(line) for line in done("predict", "run", "data/own.h5", "--json", "--index", 0).splitlines()]
    *steps, last = lines
    used = expected.update_gate[0].nonzero()[:, 0].tolist()
    assert (last["used"], last["given"]) == (len(used), int(trained.sequences.lengths[0]))
    if trained.task.each_step:
        assert [line["step"] for line in steps] == used
        assert [line["until"] for line in steps[:-1]] == used[1:]
        assert {line["sequence"] for line in lines} == {"data/own.h5:test/x[0]"}
        for line in steps:
            answer = trained.task.answer(expected.output[0, line["step"]])
            numbers = [answer, line["answer"]]
            if "probabilities" in answer:
                numbers = [n["probabilities"] for n in numbers]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
        assert last["answer"] == steps[-1]["answer"]
    else:
        assert steps == []
    rows = "\n".join(",".join(map(str, row)) for row in trained.sequences.x[0, : last["given"]].tolist())
    piped = CliRunner().invoke(cli, ["predict", "run", "-", "--json"], input=rows)
    answers = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [line["step"] for line in answers[:-1]] == used
    assert answers[-1]["answer"].keys() == last["answer"].keys()


def test_a_metric_of_labels_that_do_not_occur_is_null(skiprnn):
    split = np.repeat(["test", "val", "train"], [5, 5, 30])
    np.savez("own.npz", x=X, y=HIGH[:, 3:6] * (split != "test")[:, None], split=split)
    skiprnn("gen-data", "own", "own.npz")
    skiprnn("train", "--data", "data/own.h5", "--out", "run", *OPTIONS)
    report = json.loads(skiprnn("evaluate", "run", "--json").stdout)
    assert (report["metric"], report["other_metrics"]["mean average precision"]) == (0, None)


def test_predictions_of_steps_as_text(skiprnn, tmp_path):
    np.savez("own.npz", x=X, y=np.stack([HIGH, 1 - HIGH], -1), names=np.array(["up", "down"]))
    skiprnn("gen-data", "own", "own.npz")
    skiprnn("train", "--data", "data/own.h5", "--out", "run", *OPTIONS)
    np.savetxt("rows.csv", X[0], delimiter=",")
    lines = skiprnn("predict", "run", "rows.csv").stdout.splitlines()
    assert lines[0].split("  ")[-1].startswith("labels ")
    assert lines[0].split()[0] == "0"
    assert ", until " in lines[0]
    assert lines[-1].startswith("rows.csv: labels ")


def test_what_a_shape_might_be_is_told(skiprnn):
    np.savez("own.npz", x=X, y=HIGH)
    done = skiprnn("gen-data", "own", "own.npz")
    assert done.stderr == "note: x has 12 steps; if y has 12 of each sequence, pass --per-sequence\n"
    done = skiprnn("gen-data", "own", "own.npz", "--per-sequence", "--overwrite")
    assert done.stdout.splitlines()[1] == "took y (40, 12) of int64 for 12 labels a sequence"
    assert done.stderr == ""
    assert skiprnn("gen-data", "own", "own.npz", "--task", "adding").exit_code == 2


def test_train_converts_for_the_task_it_is_told(skiprnn):
    np.savez("own.npz", x=X, y=1.0 * HIGH[:, :3])
    done = skiprnn("train", "--data", "own.npz", "--out", "run", *OPTIONS)
    assert done.exit_code == 1
    assert (
        "holds floats that are all 0 or 1, and may be several things; pass --task own-labels or own-numbers"
        in done.stderr
    )
    done = skiprnn("train", "--data", "own.npz", "--task", "own-labels", "--out", "run", *OPTIONS)
    assert done.exit_code == 0, done.output
    assert "as `skiprnn gen-data own own.npz --out data/own.h5 --task own-labels` does" in done.stderr
