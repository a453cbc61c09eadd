"""What all commands have: suggestions, -q and -v, the environment, a way on after Ctrl-C, quiet pipes, completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runs.directory import load_config
from skiprnn_cli.main import cli

SIZES = ("--train", 4, "--val", 2, "--test", 2)
SMALL = ("--hidden", 4, "--batch-size", 32, "--steps", 2, "--eval-every", 1, "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian",), "Error: No such command 'trian'. Did you mean 'train'?"),
        (("gen-data", "addign"), "Error: No such command 'addign'. Did you mean 'adding'?"),
        (("extract-features", "video"), "Error: No such command 'video'. Did you mean 'videos'?"),
        (("juggle",), "Error: No such command 'juggle'."),
        (("sweep", "--set", "stepps=4"), "Did you mean 'steps'?"),
    ],
)
def test_mistyped_names_are_met_with_what_is_alike(skiprnn, words, message):
    done = skiprnn(*words)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith(message)


def test_mistyped_options_are_too(skiprnn):
    assert "--hidden" in skiprnn("train", "--hiden", 5).stderr.splitlines()[-1]


def test_mistyped_cells_runs_and_numbers_are_told(skiprnn, tmp_path):
    (tmp_path / "runs/recordings").mkdir(parents=True)
    (tmp_path / "runs/recordings/config.json").write_text("{}")
    for words, message in (
        (("train", "--cell", "lsmt"), "nor one of your own, 'package.module:Cell'. Did you mean 'lstm'?"),
        (("train", "--lam", "abc"), "Invalid value for '--lam': 'abc' is not a number."),
        (("evaluate", "runs/recording"), "there is no run runs/recording; did you mean runs/recordings?"),
    ):
        assert skiprnn(*words).stderr.splitlines()[-1].endswith(message)


def test_help_of_data_files_is_not_cut(skiprnn):
    assert "..." not in skiprnn("gen-data", "--help").stdout.replace("[ARGS]...", "")


@pytest.mark.parametrize("words", [("-q", "train"), ("train", "-q")])
def test_quiet_leaves_results_and_errors(skiprnn, adding_file, words):
    done = skiprnn(*words, "--data", adding_file, "--out", "run", *SMALL)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("run: finished at step 2 of 2")
    done = skiprnn(*words, "--data", adding_file, "--out", "run", *SMALL)
    assert done.stderr.startswith("Error: run exists already")


def test_verbose_says_more(skiprnn, adding_file):
    usual = skiprnn("train", "--data", adding_file, "--out", "usual", *SMALL).stderr
    more = skiprnn("train", "-v", "--data", adding_file, "--out", "more", *SMALL).stderr
    assert "gradient" in more
    assert "preset quick of adding, but for: {'hidden_size': 4, 'batch_size': 32, 'steps': 2" in more
    assert "gradient" not in usual
    assert "but for" not in usual


def test_options_come_from_the_environment_behind_the_command_line(skiprnn, adding_file, monkeypatch):
    monkeypatch.setenv("SKIPRNN_TRAIN_HIDDEN", "5")  # named as the flag is, not the field
    monkeypatch.setenv("SKIPRNN_TRAIN_LR", "0.5")
    monkeypatch.setenv("SKIPRNN_QUIET", "1")
    monkeypatch.setenv("SKIPRNN_VERSION", "0.1")  # which is somebody else's
    done = skiprnn("train", "--data", adding_file, "--out", "run", *SMALL[2:], "--lr", 0.25)
    assert (done.exit_code, done.stderr) == (0, "")
    config = load_config(Path("run"))
    assert (config.hidden_size, config.lr) == (5, 0.25)
    done = skiprnn("train", "--resume", "run", "--cell", "gru")
    assert done.exit_code == 2
    assert "drop --cell, SKIPRNN_TRAIN_HIDDEN, SKIPRNN_TRAIN_LR." in done.stderr


def test_a_mistyped_variable_is_told(skiprnn, monkeypatch):
    monkeypatch.setenv("SKIPRNN_TRAIN_LRR", "3")
    monkeypatch.setenv("SKIPRNN_GEN_DATA_ADDING_XYZZY", "3")
    monkeypatch.setenv("SKIPRNN_TRAIN_LR", "3")
    monkeypatch.setenv("SKIPRNN_MODELS", "elsewhere")
    assert skiprnn("train", "--resume", "none").stderr.startswith(
        "Warning: SKIPRNN_TRAIN_LRR is no option of skiprnn train, and is ignored. Did you mean SKIPRNN_TRAIN_LR?\n"
    )
    done = skiprnn("gen-data", "adding", *SIZES, "--length", 10)
    assert (done.exit_code, done.stderr.splitlines()[0]) == (
        0, "Warning: SKIPRNN_GEN_DATA_ADDING_XYZZY is no option of skiprnn gen-data adding, and is ignored.",
    )  # fmt: skip
    assert "Warning" not in skiprnn("runs").stderr


def test_a_wrong_value_says_that_it_comes_from_the_environment(skiprnn, monkeypatch):
    monkeypatch.setenv("SKIPRNN_GEN_DATA_ADDING_LENGTH", "5")
    done = skiprnn("gen-data", "adding")
    assert done.exit_code == 2
    assert done.stderr.endswith("5 is not in the range x>=10. It comes from the environment, "
                                "SKIPRNN_GEN_DATA_ADDING_LENGTH.\n")  # fmt: skip


STOPPED = [
    ("pipelines.sources.synthetic.generate", ("gen-data", "adding", "--out", "my data.h5"), False),
    ("pipelines.runs.evaluation.evaluate_run", ("evaluate", "run"), False),
    ("pipelines.runs.directory.check_run_path", ("train", "--out", "my run"), False),
    ("pipelines.video.listing.own_videos", ("extract-features", "videos", "clips", "--out", "a.h5"), True),
    ("pipelines.grids.sweep.grid", ("sweep", "--seeds", "0-3"), True),
    ("pipelines.grids.sweep.grid_of_table", ("reproduce", "adding"), True),
]


@pytest.mark.parametrize(("inside", "words", "kept"), STOPPED, ids=lambda value: str(value)[-20:])
def test_ctrl_c_says_how_to_go_on(skiprnn, monkeypatch, inside, words, kept):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(inside, interrupt)
    Path("run").mkdir()
    done = skiprnn(*words)
    what = "what is done is kept; go on" if kept else "nothing was written; begin again"
    typed = " ".join(f"'{word}'" if " " in word else word for word in words)
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == f"stopped, {what} with: skiprnn {typed}"


def test_a_run_that_was_interrupted_says_how_to_go_on(skiprnn, adding_file, monkeypatch):
    monkeypatch.setattr("skiprnn_cli.train.StopSignals.__call__", lambda self: True)
    monkeypatch.setattr("skiprnn_cli.train.StopSignals.signal", 2, raising=False)
    monkeypatch.setattr("skiprnn_cli.train.StopSignals.__init__", lambda self: None)
    done = skiprnn("train", "--data", adding_file, "--out", "my run", "--log", "tensorboard", *SMALL)
    assert done.exit_code == 130
    assert done.stdout.splitlines()[-1] == "continue with: skiprnn train --resume 'my run' --log tensorboard"


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("completion", "bash")])
def test_a_broken_pipe_is_quiet(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "skiprnn_cli", *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_completion(skiprnn, monkeypatch):
    for shell, sign in (
        ("bash", "complete -o nosort -F"),
        ("zsh", "#compdef skiprnn"),
        ("fish", "complete --no-files"),
    ):
        done = skiprnn("completion", shell)
        assert done.exit_code == 0
        assert sign in done.stdout
        assert "_SKIPRNN_COMPLETE" in done.stdout

    def completed(*words):
        monkeypatch.setenv("_SKIPRNN_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("skiprnn", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        from click.testing import CliRunner

        return CliRunner().invoke(cli, [], prog_name="skiprnn").stdout.split()

    assert completed("re") == ["plain,reproduce", "plain,report"]
    assert completed("train", "--lr-s") == ["plain,--lr-schedule"]
    assert completed("evaluate", "ru") == ["file,ru"]
