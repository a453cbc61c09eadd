"""The command line: help, exit codes, messages, and the commands in the order a new user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from pipelines.runs import export
from pipelines.runs.config import configure
from pipelines.runs.directory import extend_run, load_config, read_metrics
from skiprnn import compiled
from skiprnn_cli.main import COMMANDS, cli
from skiprnn_cli.progress import pace
from tests.problems import needs_compiled

DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md") if path.name != "cli.md")
SMALL = ("--hidden", 6, "--batch-size", 32, "--steps", 8, "--eval-every", 3, "--device", "cpu")


def all_commands(group=cli, prefix=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*prefix, name))


@pytest.mark.parametrize(("words", "command"), list(all_commands()), ids=lambda value: str(value)[:40])
def test_every_command_has_help_with_an_example_and_stands_in_the_docs(skiprnn, words, command):
    done = skiprnn(*words, "--help")
    assert done.exit_code == 0
    assert f"skiprnn {' '.join(words)}" in done.stdout.split("Example", 1)[1]
    assert command.help
    assert f"skiprnn {words[0]}" in PAGES
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_the_group_lists_every_command_and_says_what_each_module_says(skiprnn):
    text = skiprnn("--help").stdout
    assert all(name in text for name in COMMANDS)


def test_version(skiprnn):
    shown = skiprnn("--version").stdout
    assert shown.startswith("skiprnn, version 0.")
    engine = compiled.instructions()
    products = " with bfloat16" if compiled.multiplies_bfloat16() else ""
    assert (f"(compiled CPU engine: {engine}{products})" if engine else "(no compiled CPU engine: install") in shown


@pytest.mark.parametrize("task", ["adding", "sine"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_from_data_to_figure(skiprnn, tmp_path, task, cell):
    sizes = ("--train", 64, "--val", 16, "--test", 16)
    done = skiprnn("gen-data", task, *sizes)
    assert (done.exit_code, done.stdout) == (
        0, f"wrote data/{task}.h5: 64 train, 16 val, 16 test sequences, seed 0\n",
    )  # fmt: skip
    done = skiprnn("train", "--task", task, "--cell", cell, "--lam", "1e-5", *SMALL)
    assert done.exit_code == 0, done.output
    assert "finished at step 8 of 8" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith(f"{task}-skip-{cell}-lam1e-05-seed0-")
    assert "step 6/8" in done.stderr
    assert f"  val {'MSE' if task == 'adding' else 'accuracy'} " in done.stderr

    done = skiprnn("evaluate")
    assert done.exit_code == 0, done.output
    assert f"Skip {cell.upper()} on {task}, 16 test sequences" in done.stdout
    assert "used samples" in done.stdout
    record = json.loads(skiprnn("evaluate", run, "--json", "--split", "val").stdout)
    assert record["task"] == task
    assert record["sequences"] == 16

    assert "one at a time" in skiprnn("evaluate").stdout
    done = skiprnn("predict", run, f"data/{task}.h5", "--index", 2)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"data/{task}.h5:test/x[2]: {'sum' if task == 'adding' else 'class'} ")

    done = skiprnn("plot-usage", "--examples", 2)
    assert done.exit_code == 0, done.output
    assert (run / "usage.png").read_bytes().startswith(b"\x89PNG")
    assert skiprnn("plot-curves", run, "--out", "curves.pdf").exit_code == 0
    assert Path("curves.pdf").read_bytes().startswith(b"%PDF")


def test_train_generates_missing_data_and_says_so(skiprnn, monkeypatch, tmp_path):
    monkeypatch.setattr("skiprnn_cli.gen_data.DEFAULT_SIZES", {"train": 64, "val": 16, "test": 16})
    done = skiprnn("train", *SMALL)
    assert done.exit_code == 0, done.output
    assert "adding.h5 yet: generating it, as `skiprnn gen-data adding` does" in done.stderr
    assert Path("data/adding.h5").exists()
    assert "generating" not in skiprnn("train", *SMALL).stderr


def test_the_task_follows_the_data_file(skiprnn, sine_file):
    assert skiprnn("train", "--data", sine_file, *SMALL).exit_code == 0
    assert "on sine" in skiprnn("evaluate").stdout


def test_the_help_says_of_which_task_a_preset_has_none(skiprnn):
    text = " ".join(skiprnn("train", "--help").stdout.split())
    quick = "quick: adding 0.1, sine 0.2, mnist none, imdb none, else 1.0; "
    assert quick + "settled: adding 0.1, mnist none, imdb none, else 1.0; " in text
    assert configure("mnist", "quick").gate_clip is None


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (("--no-skip",), "LSTM"),
        (("--p-skip", 0.5), "LSTM p_skip=0.5"),
        (("--cell", "gru"), "Skip GRU"),
        (("--cell", "gru", "--reset-before"), "Skip GRU (reset before)"),
        (("--cell", "rnn", "--layers", 2), "Skip RNN"),
        (("--cell", "rnn-relu"), "Skip RNN-RELU"),
        (("--cell", "ln-lstm"), "Skip LN-LSTM"),
        (("--cell", "ln-gru"), "Skip LN-GRU"),
    ],
)
def test_models(skiprnn, adding_file, options, model):
    assert skiprnn("train", "--data", adding_file, *options, *SMALL).exit_code == 0
    assert f"{model} on adding" in skiprnn("evaluate").stdout


def test_options_of_the_schedule_and_the_gate(skiprnn, adding_file):
    options = ("--lr-schedule", "linear", "--decay-from", 0.5, "--warmup", 2, "--lam-warmup", 3, "--gate-clip", "none")
    assert skiprnn("train", "--data", adding_file, "--out", "run", *options, *SMALL).exit_code == 0
    config = load_config(Path("run"))
    assert (config.lr_schedule, config.decay_from, config.warmup, config.lam_warmup) == ("linear", 0.5, 2, 3)
    assert config.gate_clip is None
    assert skiprnn("train", "--data", adding_file, "--out", "other", "--gate-clip", 0.5, *SMALL).exit_code == 0
    assert load_config(Path("other")).gate_clip == 0.5


def test_the_settled_preset_is_of_the_paper_s_tasks(skiprnn, adding_file, tmp_path):
    assert skiprnn("train", "--data", adding_file, "--preset", "settled", "--out", "run", *SMALL).exit_code == 0
    assert load_config(Path("run")).decay_from == 0.6
    for command in ("train", "sweep"):
        done = skiprnn(command, "--task", "own-classes", "--preset", "settled")
        assert done.exit_code == 1
        assert "the preset settled is for adding, sine, mnist, " in done.stderr
        assert "; own-classes has quick and paper" in done.stderr
        assert "Traceback" not in done.output


def test_resume(skiprnn, adding_file):
    assert skiprnn("train", "--data", adding_file, "--out", "run", *SMALL).exit_code == 0
    assert "finished at step 8 of 8" in skiprnn("train", "--resume", "run").stdout
    done = skiprnn("train", "--resume", "run", "--steps", 12)
    assert "finished at step 12 of 12" in done.stdout
    assert read_metrics(Path("run"))[-1]["step"] == 12
    assert skiprnn("train", "--resume", "run", "--patience", 9).exit_code == 0
    assert load_config(Path("run")).patience == 9
    assert skiprnn("train", "--resume", "run", "--patience", "none").exit_code == 0
    assert json.loads(Path("run/config.json").read_text())["patience"] is None
    done = skiprnn("train", "--resume", "run", "--lam", 1, "--cell", "gru")
    assert done.exit_code == 2
    assert "--resume continues a run as it was configured; drop --cell, --lam." in done.stderr


def test_edits_are_accepted_when_asked(skiprnn, make_run):
    run = make_run()
    extend_run(run, lr=0.5)
    done = skiprnn("evaluate", run)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"with `skiprnn train --resume {run} --accept-edits`" in done.stderr
    assert skiprnn("train", "--resume", run).exit_code == 1
    assert skiprnn("train", "--resume", run, "--accept-edits", "--steps", 9).exit_code == 0
    assert skiprnn("evaluate", run).exit_code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_stop(adding_file, tmp_path, number, code):
    command = [sys.executable, "-m", "skiprnn_cli", "train", "--data", adding_file, "--out", tmp_path / "run"]
    command += [*map(str, SMALL), "--steps", "1000000"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 6/"):
            break
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"continue with: skiprnn train --resume {tmp_path / 'run'}" in stdout
    (last,) = {json.loads((tmp_path / "run/checkpoints/last.json").read_text())["numbers"]["step"]}
    assert f"interrupted and saved at step {last} of 1000000" in stdout


def file_size_limit():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    out = tmp_path / "adding.h5"
    command = [sys.executable, "-m", "skiprnn_cli", "gen-data", "adding", "--train", "10000", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=file_size_limit, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"Error: cannot write {out}: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


USAGE_ERRORS = [
    (("train", "--task", "juggling"), "'juggling' is not one of 'adding', 'sine'"),
    (("train", "--cell", "esn"), "'esn' is not one of 'lstm', 'gru', 'rnn', 'rnn-relu', 'ln-lstm', 'ln-gru', nor one"),
    (("train", "--cell", "my cells:Cell"), "nor one of your own, 'package.module:Cell'"),
    (("train", "--cell", "cells.py:Cell:x"), "nor one of your own, 'package.module:Cell'"),
    (("train", "--cell", "cells:"), "nor one of your own, 'package.module:Cell'"),
    (("train", "--cell", "rnn", "--no-skip"), "--no-skip is a baseline of lstm and gru alone; drop it, or --cell rnn."),
    (("train", "--cell", "ln-gru", "--p-skip", "0.5"), "--p-skip is a baseline of lstm and gru alone"),
    (("train", "--cell", "ln-gru", "--reset-after"), "are of a GRU; add --cell gru"),
    (("sweep", "--cell", "lstm,esn"), "'esn' is not one of 'lstm'"),
    (("train", "--lam", "-1"), "-1.0 is not in the range x>=0"),
    (("train", "--lam", "nan"), "nan is not a finite number"),
    (("train", "--patience", "0"), "0 is not in the range x>=1"),
    (("train", "--patience", "never"), "'never' is not a valid integer or none"),
    (("train", "--accept-edits"), "name it with --resume"),
    (("train", "--gate-clip", "0"), "0.0 is not in the range x>0"),
    (("train", "--gate-clip", "soft"), "'soft' is not a number or none"),
    (("train", "--gate-clip", "1", "--no-skip"), "--gate-clip has nothing to act on"),
    (("train", "--warmup", "-1"), "-1 is not in the range x>=0"),
    (("train", "--decay-from", "1"), "1.0 is not in the range 0<=x<1"),
    (("train", "--lr-schedule", "constant", "--decay-from", "0.5"), "add --lr-schedule linear or cosine"),
    (("train", "--reset-before"), "are of a GRU; add --cell gru"),
    (("train", "--cell", "lstm", "--reset-after"), "are of a GRU; add --cell gru"),
    (("train", "--cell", "gru", "--no-skip", "--reset-before"), "is of torch's kind, which resets after"),
    (("train", "--lr", "0"), "0.0 is not in the range x>0"),
    (("train", "--p-skip", "0.5", "--skip"), "--p-skip is a baseline"),
    (("train", "--no-skip", "--lam", "1e-5"), "--lam has nothing to act on"),
    (("train", "--resume", "run", "--steps", "5", "--epochs", "5"), "Give --steps or --epochs, not both."),
    (("train", "--steps", "5", "--epochs", "5"), "Give --steps or --epochs, not both."),
    (("train", "--preset", "paper", "--epochs", "5"), "Fresh batches have no epochs"),
    (("gen-data", "adding", "--length", "9"), "9 is not in the range x>=10"),
    (("gen-data", "sine", "--duration", "inf"), "inf is not a finite number"),
    (("gen-data", "juggling"), "No such command 'juggling'"),
    (("predict", "recording.csv"), "RUN comes first: skiprnn predict RUN INPUT..."),
    (("dance",), "No such command 'dance'"),
    (("plot-usage", "run", "--sequences", "3,x"), "'3,x' is not up to 100 numbers from 0, such as 3,17."),
    (("plot-usage", "run", "--sequences", "3", "--examples", "2"), "drop --examples"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS, ids=lambda value: " ".join(value)[:30])
def test_wrong_usage(skiprnn, tmp_path, arguments, message):
    done = skiprnn(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_errors_have_one_message_and_no_traceback(skiprnn, adding_file, make_run, tmp_path):
    run = make_run()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "blocked").write_text("")
    (tmp_path / "damaged.h5").write_bytes(adding_file.read_bytes()[:3000])
    cases = [
        (("evaluate",), "no run with a checkpoint in runs/; make one with `skiprnn train`"),
        (("plot-usage",), "no run with a checkpoint in runs/"),
        (("evaluate", "nowhere"), "nowhere is not a run directory"),
        (("evaluate", run, "--data", "missing.h5"), "no data file missing.h5; make one with `skiprnn gen-data`"),
        (("train", "--data", "missing.h5"), "no data file missing.h5"),
        (("train", "--data", "damaged.h5"), "cannot read damaged.h5"),
        (("train", "--data", adding_file, "--task", "sine"), "holds data for the task adding, not sine"),
        (("train", "--data", adding_file, "--out", run), "exists already; continue it with --resume"),
        (("train", "--data", adding_file, "--out", "blocked/run"), "cannot make the run directory blocked/run"),
        (("train", "--resume", "nowhere"), "nowhere is not a run directory"),
        (("gen-data", "adding", "--out", "damaged.h5"), "exists already; pass --overwrite"),
        (("gen-data", "adding", "--out", "blocked/a.h5"), "cannot write blocked/a.h5"),
        (
            ("gen-data", "sine", "--duration", "1", "--sampling-period", "2"),
            "sine needs 0 < sampling period <= duration",
        ),
        (("gen-data", "sine", "--out", "pickle", "--overwrite"), "cannot write pickle: it is a folder"),
        (("train", "--resume", run, "--steps", "5"), "is at step 8 already, beyond the 5 asked for"),
        (("plot-usage", run, "--out", "usage.gif"), "must end in .png, .pdf, .svg"),
        (("predict", "nowhere", adding_file), "nowhere is not a run directory"),
        (("predict", run, "missing.csv"), "no file missing.csv to predict on"),
        (("predict", run, "blocked"), "blocked holds no rows of numbers"),
        (("predict", run, "damaged.h5"), "cannot read damaged.h5"),
        (("predict", run, "pickle"), "pickle holds no file to predict on, whose name would end in .csv, .tsv, "),
        (("predict", run, "-", "--index", 1), "standard input holds one sequence; drop --dataset and --index"),
        (("predict", run, "-"), "standard input holds no rows of numbers"),
        (("export", run, "--out", "model.pt"), "its name must end in .onnx"),
    ]
    if not torch.cuda.is_available():
        cases.append((("train", "--data", adding_file, "--device", "cuda"), "no CUDA device is available to torch"))
    for arguments, message in cases:
        done = skiprnn(*arguments)
        assert done.exit_code == 1, (arguments, done.output)
        assert done.stderr.splitlines()[-1].startswith("Error: "), arguments
        assert message in done.stderr, arguments
        assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "runs").exists()


def test_predict_answers_rows_on_standard_input(make_run, tmp_path):
    """Row by row through a pipe: an answer is there before the next row is sent."""
    run = make_run(skip=False, lam=0.0)  # uses every row
    command = [sys.executable, "-m", "skiprnn_cli", "predict", str(run), "-", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        for t in range(3):
            process.stdin.write(f"0.{t},{t % 2}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert answer["step"] == t
        process.stdin.close()
        last = json.loads(process.stdout.readline())
    assert process.returncode == 0
    assert (last["sequence"], last["used"], last["given"]) == ("standard input", 3, 3)
    assert last["answer"] == answer["answer"]


def test_predict_on_a_file_of_rows(skiprnn, make_run, tmp_path):
    run = make_run()
    (tmp_path / "rows.csv").write_text("value,marker\n" + "0.25,1\n" * 1000)
    done = skiprnn("predict", run, "rows.csv")
    assert done.exit_code == 0, done.output
    assert " of 1,000 samples (" in done.stdout
    record = json.loads(skiprnn("predict", run, "rows.csv", "--json").stdout)
    assert (record["sequence"], record["given"]) == ("rows.csv", 1000)
    done = CliRunner().invoke(cli, ["predict", str(run), "-"], input="0.25,1\n" * 5)
    assert re.fullmatch(r" +0  sum -?[0-9.e-]+, until (\d+|the end)", done.stdout.splitlines()[0])
    assert done.stdout.splitlines()[-1].startswith("standard input: sum ")


def once(function):
    made = []
    return lambda *given, **named: (made or made.append(function(*given, **named)) or made)[0]


def test_export(skiprnn, make_run, monkeypatch):
    pytest.importorskip("onnxruntime")
    run = make_run()
    # Both files are of one step.
    monkeypatch.setattr(export, "trace_step", once(export.trace_step))
    monkeypatch.setattr(torch.onnx, "export", once(torch.onnx.export))
    done = skiprnn("export", run)
    assert done.exit_code == 0, done.output
    assert f"{run}/model.onnx (float32, " in done.stdout
    assert "equal gates   192 of 192 (100.0000 %)" in done.stdout
    assert "\nx             samples as they are in the data\nanswer        numbers: sum\n" in done.stdout
    assert json.loads(skiprnn("export", run, "--int8", "--out", "small.onnx", "--json").stdout)["int8"]


@needs_compiled
def test_export_to_torch(skiprnn, make_run):
    run = make_run()
    done = skiprnn("export", run, "--format", "torch")
    assert done.exit_code == 0, done.output
    assert f"{run}/model.pt2 (float32, " in done.stdout
    assert "equal gates   192 of 192 (100.0000 %)" in done.stdout
    assert done.stdout.endswith("to load it    import skiprnn first, then torch.export.load\n")
    done = skiprnn("export", run, "--format", "torch", "--int8")
    assert done.exit_code == 2
    assert "Error: --int8 is for ONNX; drop it, or --format torch" in done.stderr


def test_export_names_the_extra_that_is_missing(skiprnn, make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = skiprnn("export", make_run())
    assert done.exit_code == 1
    assert "install the extra with `pip install 'skiprnn[export]'`" in done.stderr


def test_own_data_as_the_docs_have_it(skiprnn, tmp_path):
    """From raw files to a prediction: the section's Python, then its commands."""
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    section = page.split("## From raw files to a prediction")[1].split("\n## ")[0]
    python = section.split("```python\n")[1].split("```")[0]
    exec(compile(python, "data.md", "exec"), {})
    commands = [line.split() for line in section.splitlines() if line.startswith("    skiprnn ")]
    assert len(commands) == 4
    said = []
    for _, *words in commands:
        done = skiprnn(*words)
        assert done.exit_code == 0, done.output
        said.append(done.stdout)
    assert "wrote data/recordings.h5: 208 train, 46 val, 46 test sequences of up to 120 steps" in said[0]
    accuracy = float(said[2].split("accuracy")[1].split()[0])
    assert accuracy > 0.9
    label = (tmp_path / "recordings/labels.csv").read_text().split("007.csv,")[1].split()[0]
    assert f"recordings/007.csv: class {label} (" in said[3]
    assert skiprnn("plot-usage", "runs/recordings", "--examples", 3).exit_code == 0
    done = skiprnn("train", "--data", "recordings", "--steps", 2, "--hidden", 4, "--out", "runs/short")
    assert done.exit_code == 0, done.output
    assert "recordings has not changed since it was converted: training on data/recordings.h5\n" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_generating_leave_nothing(tmp_path, number, code):
    out = tmp_path / "large.h5"
    command = [sys.executable, "-m", "skiprnn_cli", "gen-data", "adding", "--train", "20000000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert not list(tmp_path.iterdir())


def test_bad_data_does_not_cost_the_old_run(skiprnn, make_run, tmp_path, adding_file):
    run = make_run()
    (tmp_path / "damaged.h5").write_bytes(adding_file.read_bytes()[:3000])
    before = (run / "checkpoints" / "last.json").read_bytes()
    for options in (("--out", run, "--overwrite"), ("--out", "new")):
        assert skiprnn("train", "--data", "damaged.h5", *options, *SMALL).exit_code == 1
    assert (run / "checkpoints" / "last.json").read_bytes() == before
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(skiprnn, tmp_path, adding_file):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = skiprnn("train", "--data", adding_file, "--out", "locked/run", *SMALL)
    assert done.exit_code == 1
    assert "cannot make the run directory locked/run: Permission denied" in done.stderr


def test_a_run_in_use(skiprnn, make_run):
    from pipelines.runs.directory import lock_run

    run = make_run()
    with lock_run(run):
        done = skiprnn("train", "--resume", run, "--steps", 20)
    assert done.exit_code == 1
    assert "is in use by another process" in done.stderr


@pytest.mark.parametrize(
    ("work", "seconds", "text"), [(500, 2.0, "250 rows/s"), (9, 60.0, "9.0 rows/min"), (0, 0.0, "0.0 rows/min")]
)
def test_slow_work_shows_a_rate_too(work, seconds, text):
    assert pace(work, seconds, "rows") == text


@pytest.mark.parametrize("arguments", [["--help"], ["gen-data", "adding", "--train", "2", "--val", "2", "--test", "2"]])
def test_output_that_cannot_be_written_is_one_message(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "skiprnn_cli", *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: cannot write to standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_names_that_are_too_long_or_no_text(skiprnn):
    for name in ("n" * 300, "/".join(["n" * 100] * 50)):
        for command in (("evaluate", name), ("gen-data", "adding", "--out", name), ("train", "--data", name)):
            done = skiprnn(*command)
            assert done.exit_code == 2
            assert "is too long" in done.stderr
    done = skiprnn("gen-data", "adding", "--train", 2, "--val", 2, "--test", 2, "--out", os.fsdecode(b"a\xff.h5"))
    assert done.exit_code == 0
    assert Path(os.fsdecode(b"a\xff.h5")).exists()
    done = skiprnn("evaluate", os.fsdecode(b"b\xff"))
    assert (done.exit_code, "is not a run directory" in done.stderr) == (1, True)


def test_what_nobody_thought_of_names_the_file_and_debug_shows_where(skiprnn, adding_file, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("pipelines.runs.load.load_config", fail)
    done = skiprnn("evaluate", adding_file)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: unforeseen ZeroDivisionError while working on {adding_file}: by nought.")
    assert isinstance(skiprnn("--debug", "evaluate", adding_file).exception, ZeroDivisionError)


def test_files_outside_the_folder_are_asked_for(skiprnn, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for row in range(8):
        (tmp_path / f"{row}.csv").write_text("0,1\n5,6\n")
        (folder / f"{row}.csv").symlink_to(tmp_path / f"{row}.csv")
    for names in ("{}.csv", "../{}.csv"):
        lines = [f"{names.format(row)},{row % 2}" for row in range(8)]
        (folder / "labels.csv").write_text("\n".join(["file,label", *lines]))
        refused = skiprnn("gen-data", "own", folder, "--out", "a.h5", "--overwrite")
        assert refused.exit_code == 1
        assert "labels.csv, line 2: the file lies outside" in refused.stderr
        done = skiprnn("gen-data", "own", folder, "--out", "a.h5", "--overwrite", "--allow-outside")
        assert done.exit_code == 0
        assert "of up to 1 steps" in done.stdout
        assert "note: 8 files begin with 0,1,..., taken for names" in done.stderr
        with_samples = skiprnn(
            "gen-data", "own", folder, "--out", "b.h5", "--allow-outside", "--no-header", "--overwrite"
        )
        assert "of up to 2 steps" in with_samples.stdout


def test_what_a_file_says_makes_no_message_that_cannot_be_shown(skiprnn, make_run):
    from skiprnn_cli.main import AS_IT_CAME

    assert "a\ud800\udcff\ud83d".encode("utf-8", AS_IT_CAME) == b"a\\ud800\xff\\ud83d"
    run = make_run()
    task = json.loads((run / "task.json").read_text())
    for name in ("x" * 100_000, "\ud800"):
        (run / "task.json").write_text(json.dumps({**task, "task": name}))
        done = skiprnn("evaluate", run)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"Error: {run}/task.json ")
        assert len(done.stderr) < 2_000 + 3 * len(str(run))


@pytest.mark.parametrize(
    ("package", "name", "command"),
    [
        ("click", "click", ["--help"]),
        ("h5py", "h5py", ["gen-data", "adding"]),
        ("matplotlib", "matplotlib", ["plot-curves", "run"]),
        ("cv2", "opencv-python", ["extract-features", "videos", "clips"]),
    ],
)
def test_a_package_that_is_not_installed_is_named(package, name, command, tmp_path):
    for label in "ab":
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "clips" / label / f"{number}.avi").touch()
    code = f"import sys; sys.modules[{package!r}] = None; from skiprnn_cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert f"{name}, which is not installed here; `pip install {name}`" in done.stderr
    assert done.stderr.count("\n") == 1
