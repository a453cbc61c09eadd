"""Columns by their names and conversions made once, by the commands."""

import csv
import json

import numpy as np
from click.testing import CliRunner

from skiprnn_cli.main import cli

OPTIONS = ("--steps", 20, "--hidden", 4, "--eval-every", 20, "--lr", "1e-2")
NOTE = "note: the columns stand in another order than in training; they were matched by their names\n"


def write(path, rows, names):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def read(path):
    return list(csv.reader(path.read_text().splitlines()))


def recordings(tmp_path):
    folder, draws = tmp_path / "own", np.random.default_rng(0)
    folder.mkdir()
    labels = []
    for number in range(12):
        level = 50 * (number % 2)
        write(folder / f"{number}.csv", draws.normal((level, 7), 1, (6, 2)), ["heart rate", "b"])
        labels.append([f"{number}.csv", "low" if level == 0 else "high"])
    write(folder / "labels.csv", labels, ["file", "label"])
    return folder


def test_columns_in_another_order_are_matched_and_others_refused(skiprnn, tmp_path):
    folder = recordings(tmp_path)
    assert skiprnn("train", "--data", "own", "--out", "run", *OPTIONS).exit_code == 0
    assert json.loads(json.loads((tmp_path / "run" / "task.json").read_text())["columns"]) == ["heart rate", "b"]
    header, *rows = read(folder / "3.csv")

    def answer(*words, **more):
        done = CliRunner().invoke(cli, ["predict", "run", *words, "--json"], **more)
        assert done.exit_code == 0, done.output
        last = json.loads(done.stdout.splitlines()[-1])
        return last["answer"], last["columns_reordered"], done.stderr

    expected, *said = answer("own/3.csv")
    assert said == [False, ""]
    write(tmp_path / "swapped.csv", [row[::-1] for row in rows], header[::-1])
    assert answer("swapped.csv") == (expected, True, NOTE)
    assert answer("-", input=(tmp_path / "swapped.csv").read_text()) == (expected, True, NOTE)
    x = np.array(rows, dtype=float)[:, ::-1]
    np.savez(tmp_path / "several.npz", x=np.stack([x, x]), columns=np.array(header[::-1]))
    assert answer("several.npz") == (expected, True, NOTE)  # which is said once
    write(tmp_path / "bare.csv", rows[1:], rows[0])
    assert answer("bare.csv") == (expected, False, "")
    for names, message in (
        (["b", "pulse"], "lacks heart rate and has pulse"),
        (["b"], "lacks heart rate"),
        (["b", "t", "heart rate"], "has t"),
    ):
        write(tmp_path / "other.csv", [["1"] * len(names)], names)
        done = skiprnn("predict", "run", "other.csv")
        assert done.exit_code == 1
        assert done.stderr == (
            f"Error: other.csv {message}: the columns must be heart rate, b, in any order; rename, add or drop them\n"
        )

    x = np.stack([np.array(read(folder / f"{n}.csv")[1:], dtype=float) for n in range(12)])
    y = np.array(["low", "high"] * 6)
    for name, columns in (("ours", header), ("theirs", header[::-1])):
        there = x if name == "ours" else x[..., ::-1]
        np.savez(f"{name}.npz", x=there, y=y, columns=np.array(columns))
        assert skiprnn("gen-data", "own", f"{name}.npz").exit_code == 0
    ours, theirs = (skiprnn("evaluate", "run", "--data", f"data/{name}.h5", "--json") for name in ("ours", "theirs"))
    assert (ours.stderr, theirs.stderr) == ("", NOTE)
    assert json.loads(ours.stdout)["metric"] == json.loads(theirs.stdout)["metric"] == 1
    assert answer("data/theirs.h5")[1:] == (True, NOTE)


def test_labels_of_steps_stay_where_they_were_said_to_be(skiprnn, tmp_path, monkeypatch):
    """Conversion by ``train`` as it was made with ``--label-column``, and prediction on files that still have it."""
    folder, draws = tmp_path / "tags", np.random.default_rng(0)
    folder.mkdir()
    for number in range(9):
        volts = draws.normal(0, 1, 6)
        write(folder / f"{number}.csv", [[v, "up" if v > 0 else "down"] for v in volts], ["volt", "phase"])
    assert skiprnn("gen-data", "own", "tags", "--label-column", "phase").exit_code == 0
    done = skiprnn("train", "--data", "tags", "--out", "run", *OPTIONS)
    assert done.stderr.splitlines()[0] == "tags has not changed since it was converted: training on data/tags.h5"
    assert done.exit_code == 0
    write(folder / "9.csv", [[1, "up"], [-1, "down"]], ["volt", "phase"])
    done = skiprnn("train", "--data", "tags", "--out", "other", *OPTIONS)
    assert done.stderr.splitlines()[0] == (
        "tags, or what it is taken for, has changed since data/tags.h5 was made of it: converting it, as `skiprnn "
        "gen-data own tags --out data/tags.h5 --label-column phase` does"
    )
    assert done.exit_code == 0

    note = "note: the column phase holds labels, and is left out\n"
    write(tmp_path / "bare.csv", [row[:1] for row in read(folder / "9.csv")[1:]], ["volt"])
    bare, whole = (skiprnn("predict", "run", name, "--json") for name in ("bare.csv", "tags/9.csv"))
    assert (bare.stderr, whole.stderr) == ("", note)
    answers = [[json.loads(line)["answer"] for line in done.stdout.splitlines()] for done in (bare, whole)]
    assert answers[0] == answers[1]
    assert json.loads(whole.stdout.splitlines()[-1])["columns_left_out"] == ["phase"]
    piped = CliRunner().invoke(cli, ["predict", "run", "-"], input=(folder / "9.csv").read_text())
    assert (piped.exit_code, piped.stderr) == (0, note)
    assert skiprnn("predict", "run", "tags/8.csv", "tags/9.csv").stderr == note  # once
    titles = []
    monkeypatch.setattr("pipelines.runs.figures.plot_confusion", lambda by_class, out, title, **k: titles.append(title))
    assert skiprnn("evaluate", "other", "--confusion", "c.png", "--split", "val").exit_code == 0
    assert titles == ["Skip LSTM on own-tags, 12 steps of 2 val sequences"]
    write(tmp_path / "short.csv", [["up"]], ["phase"])
    assert skiprnn("predict", "run", "short.csv").stderr == (
        "Error: short.csv lacks volt and has phase: the column must be volt; rename, add or drop them\n"
    )


def test_a_folder_is_converted_once(skiprnn, tmp_path):
    folder = recordings(tmp_path)

    def trained(*more):
        done = skiprnn("train", "--data", "own", "--steps", 1, "--hidden", 2, "--overwrite", "--out", "run", *more)
        return done.exit_code, done.stderr.splitlines()[0]

    how = "converting it, as `skiprnn gen-data own own --out data/own.h5"
    changed = "own, or what it is taken for, has changed since data/own.h5 was made of it: "
    assert trained() == (0, f"own is no data file yet: {how}` does")
    made = (tmp_path / "data" / "own.h5").stat().st_mtime_ns
    assert trained() == (0, "own has not changed since it was converted: training on data/own.h5")
    assert (tmp_path / "data" / "own.h5").stat().st_mtime_ns == made
    (folder / "3.csv").write_text("heart rate,b\n1,2\n")
    assert trained() == (0, f"{changed}{how}` does")
    assert trained("--classes") == (0, f"{changed}{how} --classes` does")
    skiprnn("gen-data", "own", "own", "--seed", 1, "--overwrite")
    assert trained() == (
        1,
        "Error: data/own.h5 exists already, and was not made of own as it would be now; train on it with --data "
        "data/own.h5, or make it anew with `skiprnn gen-data own own --out data/own.h5 --overwrite`",
    )


def test_options_that_do_not_go_together(skiprnn, tmp_path, adding_file):
    for words, message in (
        (("gen-data", "own", "a", "b", "c"),
         "Several SOURCEs are NAME_TRAIN.ts and NAME_TEST.ts; put others into one."),
        (("gen-data", "own", "a", "--task", "own-classes", "--numbers"),
         "--task own-classes says what the labels are; drop --numbers."),
        (("train", "--data", adding_file, "--classes"),
         "--classes is about sequences of your own that are to be converted; drop it."),
        (("train", "--numbers"), "--numbers is about sequences of your own that are to be converted; drop it."),
    ):  # fmt: skip
        done = skiprnn(*words)
        assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, f"Error: {message}")
