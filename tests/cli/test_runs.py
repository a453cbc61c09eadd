"""``skiprnn runs``, and how wide tables and displays are."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.runs.training import Report
from skiprnn_cli.progress import TrainingDisplay
from skiprnn_cli.runs import age


def test_runs_are_listed_plainly_and_as_json(skiprnn, make_run, tmp_path):
    make_run("runs/first")
    make_run("runs/second", trained=False, cell="gru", skip=False, lam=0.0)
    done = skiprnn("runs")
    assert (done.exit_code, done.stderr) == (0, "")
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["run", "task", "model", "budget", "steps", "metric", "used", "state", "age"]
    assert [row[0] for row in rows] == ["second", "first"]
    assert rows[0][1:7] == ["adding", "GRU", "0", "of", "8", "untrained"]
    assert rows[1][1:8] == ["adding", "Skip", "LSTM", "λ=0.001", "8", "of", "8"]
    said = [json.loads(line) for line in skiprnn("runs", tmp_path / "runs", "--json").stdout.splitlines()]
    assert [(run["run"], run["state"]) for run in said] == [
        (str(tmp_path / "runs/second"), "untrained"), (str(tmp_path / "runs/first"), "finished"),
    ]  # fmt: skip
    assert said[1]["metric_name"] == "MSE"


def test_steps_stand_beside_steps_alone(skiprnn, make_run):
    make_run("runs/whole", steps=None, epochs=1)
    make_run("runs/begun", trained=False, steps=None, epochs=1)
    rows = {line.split()[0]: line.split() for line in skiprnn("runs").stdout.splitlines()}
    assert rows["whole"][5:8] == ["3", "of", "3"]
    assert rows["begun"][5:7] == ["0", "untrained"]
    said = [json.loads(line) for line in skiprnn("runs", "--json").stdout.splitlines()]
    assert {run["run"]: (run["total_steps"], run["epochs"]) for run in said} == {
        "runs/whole": (3, 1), "runs/begun": (None, 1),
    }  # fmt: skip


def test_a_folder_without_runs(skiprnn, tmp_path):
    assert skiprnn("runs").stderr == "Error: no folder runs; `skiprnn train` makes runs/, or name another folder\n"
    done = skiprnn("runs", tmp_path)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"no runs in {tmp_path}; make one with `skiprnn train`\n"


def test_a_narrow_terminal_loses_columns_and_no_digits(skiprnn, make_run, monkeypatch):
    name = "adding-skip-lstm-lam0.001-seed0-20260102-030405"
    make_run(f"runs/{name}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    for width, there, missing in ((60, "state", "task"), (120, "budget", None)):
        monkeypatch.setenv("COLUMNS", str(width))
        done = skiprnn("runs")
        text = "".join(part for part in done.stdout.split("\x1b[") if part)
        assert "…" not in text
        assert there in text
        assert ("task" in text) == (missing is None)
        assert (f"{missing}: widen the terminal" in done.stderr) == (missing is not None)
        if missing is None:
            assert name in text


@pytest.mark.parametrize("width", [20, 60, 120])
def test_the_display_of_training_does_not_lose_digits(width):
    display = TrainingDisplay(more=True)
    record = {
        "train": {"task_loss": 0.12345, "metric": 0.5, "grad_norm": 0.25, "grad_norm_max": 0.75},
        "val": {"loss": 0.23456, "metric": 0.34567, "used_mean": 456.7}, "lam": 0.001,
    }  # fmt: skip
    display.update(Report(0, 100_000, 0.0))
    display.update(Report(99_999, 100_000, 2.0, record, metric_name="accuracy"))
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(display.table(width))
    text = console.file.getvalue()
    assert "…" not in text
    assert "99,999/100,000" in text
    assert ("0.34567" in text) == (width > 20)
    assert ("0.12345" in text) == (width > 60)


@pytest.mark.parametrize(("seconds", "text"), [(59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")])
def test_ages(seconds, text):
    assert age(seconds) == text


def test_lists_do_not_import_torch(tmp_path):
    code = "import sys; from skiprnn_cli.main import cli; cli(['runs', sys.argv[1]], standalone_mode=False); " \
           "cli(['models'], standalone_mode=False); print('torch' in sys.modules)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
