"""What people read of a run on their own classes: predictions on folders, and results class by class."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from skiprnn_cli.main import cli

NAMES = ("falling", "shaking", "steady")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of recordings with its table, the data file made of it, and a run of a few steps."""
    folder = tmp_path_factory.mktemp("own")
    draws = np.random.default_rng(0)
    (folder / "recordings").mkdir()
    with (folder / "recordings" / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for number in range(45):
            level = number % 3
            rows = level + draws.normal(0, 0.1, (draws.integers(8, 13), 2))
            np.savetxt(folder / "recordings" / f"{number:02}.csv", rows, "%.4f", ",", header="x,y", comments="")
            table.writerow([f"{number:02}.csv", NAMES[level]])
    made = CliRunner().invoke(
        cli, ["gen-data", "own", str(folder / "recordings"), "--out", str(folder / "own.h5")], catch_exceptions=False
    )
    assert made.exit_code == 0, made.output
    options = ["--hidden", "6", "--steps", "30", "--eval-every", "30", "--lr", "2e-2", "--lam", "1e-3", "--seed", "1"]
    done = CliRunner().invoke(
        cli, ["train", "--data", str(folder / "own.h5"), "--out", str(folder / "run"), *options], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return folder


def lines_of(done):
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_folder_is_answered_with_the_truth_of_its_table(skiprnn, own):
    found = lines_of(skiprnn("predict", own / "run", own / "recordings", "--format", "jsonl"))
    assert [line["sequence"] for line in found] == [str(own / "recordings" / f"{n:02}.csv") for n in range(45)]
    assert [line["truth"] for line in found] == [{"class": NAMES[n % 3]} for n in range(45)]
    answer = found[0]["answer"]
    assert answer["class"] == next(iter(answer["likeliest"]))
    assert list(answer["likeliest"].values()) == sorted(answer["probabilities"], reverse=True)
    assert {name: answer["probabilities"][NAMES.index(name)] for name in NAMES} == answer["likeliest"]
    single = lines_of(skiprnn("predict", own / "run", own / "recordings" / "00.csv", "--json"))
    assert [line["truth"] for line in single] == [{"class": NAMES[0]}]


def test_a_table_of_labels_may_have_blanks_and_gaps(skiprnn, own, tmp_path):
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("1,1\n")
    (tmp_path / "labels.csv").write_text("file, label\n a.csv , shaking \nb.csv\n,steady\n")
    found = lines_of(skiprnn("predict", own / "run", tmp_path, "--json"))
    assert [line["truth"] for line in found] == [{"class": "shaking"}, None, None]


def test_classes_are_said_by_name_with_their_probabilities(skiprnn, own):
    (record,) = lines_of(skiprnn("predict", own / "run", own / "own.h5", "--index", 1, "--json"))
    (first, p), (second, q), *_ = record["answer"]["likeliest"].items()
    said = skiprnn("predict", own / "run", own / "own.h5", "--index", 1).stdout
    assert said.startswith(f"{own}/own.h5:test/x[1]: class {first} ({100 * p:.1f} %), then {second} ({100 * q:.1f} %)")
    assert f"; true class {record['truth']['class']}; used {record['used']} of {record['given']} samples (" in said


def test_a_table_beside_a_file_says_the_truth_too(skiprnn, own, tmp_path):
    (tmp_path / "a.csv").write_text("1,1\n")
    (tmp_path / "b.csv").write_text("1,1\n")
    (tmp_path / "labels.csv").write_text("file,label\na.csv,shaking\n")
    found = lines_of(skiprnn("predict", own / "run", tmp_path / "a.csv", tmp_path / "b.csv", "--json"))
    assert [line["truth"] for line in found] == [{"class": "shaking"}, None]
    (tmp_path / "labels.csv").write_text("\0")
    assert lines_of(skiprnn("predict", own / "run", tmp_path / "a.csv", "--json"))[0]["truth"] is None


def test_folders_of_classes_say_the_truth_too(skiprnn, own, tmp_path):
    for place in ("shaking/a.csv", "other/b.csv", "shaking/.hidden.csv", "shaking/notes.md"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("1,1\n")
    found = lines_of(skiprnn("predict", own / "run", tmp_path, "--json"))
    assert [(line["sequence"], line["truth"]) for line in found] == [
        (f"{tmp_path}/other/b.csv", None), (f"{tmp_path}/shaking/a.csv", {"class": "shaking"}),
    ]  # fmt: skip


def test_several_files_are_a_table_on_a_terminal(skiprnn, own, monkeypatch):
    plain = skiprnn("predict", own / "run", own / "recordings").stdout.splitlines()
    assert len(plain) == 45
    monkeypatch.setattr("skiprnn_cli.predict._on_terminal", lambda: True)
    monkeypatch.setattr("skiprnn_cli.predict.WIDEST", 200)  # of the folder that tests have
    head, *rows, last = skiprnn("predict", own / "run", own / "recordings").stdout.splitlines()
    assert head.split() == ["class", "probability", "next", "true", "class", "used", "time"]
    assert [row.split()[0] for row in rows] == [line.split(": ")[0] for line in plain]
    assert all(row[head.index("class") :].startswith(NAMES) for row in rows)
    right = sum(f"class {NAMES[n % 3]} (" in line for n, line in enumerate(plain))
    assert last == f"{right} of 45 right ({100 * right / 45:.1f} %)"
    some = ["0.csv", "1.csv"]  # of which one is a class's
    for name, place in zip(some, ("steady", "other"), strict=True):
        (own / "some" / place).mkdir(parents=True)
        (own / "some" / place / name).write_text("1,1\n")
    _, *rows, _ = skiprnn("predict", own / "run", own / "some/steady", own / "some/other").stdout.splitlines()
    assert len({row.index("1 of 1") for row in rows}) == 1


def test_a_table_says_once_that_columns_were_reordered(skiprnn, own, tmp_path, monkeypatch):
    monkeypatch.setattr("skiprnn_cli.predict._on_terminal", lambda: True)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("y,x\n1,1\n")
    (tmp_path / "c.csv").mkdir()
    done = skiprnn("predict", own / "run", tmp_path)
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 3)
    assert done.stderr.splitlines() == [
        "note: the columns stand in another order than in training; they were matched by their names"
    ]


def test_a_file_that_cannot_be_read_leaves_the_others_theirs(skiprnn, own, tmp_path):
    (tmp_path / "bad.csv").write_text("1,2,3\n")
    done = skiprnn("predict", own / "run", "bad.csv", own / "recordings" / "00.csv")
    assert done.exit_code == 1
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.splitlines() == [
        "Error: bad.csv, line 1: a row has 2 numbers, this has 3",
        "Error: 1 of 2 files could not be predicted on, for the reasons above",
    ]
    done = skiprnn("predict", own / "run", "-", "bad.csv")
    assert (done.exit_code, "standard input stands alone" in done.stderr) == (2, True)


def test_classes_are_evaluated_one_by_one(skiprnn, own, tmp_path):
    done = skiprnn("evaluate", own / "run", "--confusion", "confusion.png")
    assert done.exit_code == 0, done.output
    _, table = done.stdout.split("\n\n")
    head, *rows, wrote = table.splitlines()
    assert head.split() == ["class", "precision", "recall", "support", "used", "samples"]
    assert [row.split()[0] for row in rows] == list(NAMES)
    assert wrote == "wrote confusion.png"
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(skiprnn("evaluate", own / "run", "--json").stdout)
    assert [of["name"] for of in report["by_class"]] == list(NAMES)
    assert sum(of["support"] for of in report["by_class"]) == report["sequences"]
    right = sum(of["said"].get(of["name"], 0) for of in report["by_class"])
    assert right / report["sequences"] == pytest.approx(report["metric"])
    used = sum(of["used_mean"] * of["support"] for of in report["by_class"])
    assert used / report["sequences"] == pytest.approx(report["used_mean"])
    done = skiprnn("evaluate", own / "run", "--confusion", "confusion.png")
    assert (done.exit_code, "confusion.png exists already" in done.stderr, done.stdout) == (1, True, "")


def test_many_classes_are_listed_when_asked_for(skiprnn, own, monkeypatch):
    monkeypatch.setattr("skiprnn_cli.evaluate.FEW", 2)
    assert "precision" not in skiprnn("evaluate", own / "run").stdout
    assert "precision" in skiprnn("evaluate", own / "run", "--per-class").stdout


def test_numbers_have_no_classes_to_list(skiprnn, make_run):
    done = skiprnn("evaluate", make_run(), "--per-class")
    assert (done.exit_code, done.stderr) == (0, "note: adding has no single class to list results of\n")
    assert "precision" not in done.stdout


def _seconds_more_with_a_gate(model, batch, config):
    return 2e-9 if hasattr(model.rnn, "update_bias") else 1e-9


def test_that_skipping_is_not_faster_is_said_with_the_reason(skiprnn, own, monkeypatch):
    monkeypatch.setattr("pipelines.runs.evaluation._seconds", _seconds_more_with_a_gate)
    done = skiprnn("evaluate", own / "run", "--no-per-class")
    assert "\nnot faster        skipping saves no time in a batch: " in done.stdout
    assert "\nnot faster alone  a stream saves no time: " in done.stdout
