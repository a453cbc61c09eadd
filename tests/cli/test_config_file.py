"""``train --config FILE.toml``."""

from pathlib import Path

import pytest

from pipelines.runs.directory import load_config

SMALL = 'hidden = 4\nbatch-size = 32\nsteps = 2\neval_every = 1\ndevice = "cpu"\n'


def test_the_command_line_comes_before_the_file_and_that_before_the_preset(skiprnn, adding_file, monkeypatch):
    of_gru = 'cell = "gru"\nreset_after = false\ngate_clip = "none"\n'
    Path("a.toml").write_text(f'{SMALL}{of_gru}data = "{adding_file}"\nlam = 1e-4\nlr = 0.5\nseed = 3\n')
    monkeypatch.setenv("SKIPRNN_TRAIN_SEED", "4")
    done = skiprnn("train", "--config", "a.toml", "--lam", "1e-5", "--out", "run")
    assert done.exit_code == 0, done.output
    config = load_config(Path("run"))
    assert (config.lam, config.lr, config.cell, config.reset_after, config.hidden_size) == (1e-5, 0.5, "gru", False, 4)
    assert (config.gate_clip, config.seed, config.decay_from) == (None, 4, 0.5)


def test_a_memory_comes_from_the_file_or_the_environment(skiprnn, adding_file, monkeypatch):
    Path("a.toml").write_text(f"{SMALL}memory = 40\n")
    for run, expected in (("of_file", 40), ("of_environment", 30)):
        done = skiprnn("train", "--config", "a.toml", "--data", adding_file, "--out", run)
        assert done.exit_code == 0, done.output
        assert load_config(Path(run)).memory == expected
        monkeypatch.setenv("SKIPRNN_TRAIN_MEMORY", "30")


@pytest.mark.parametrize("costs", ["", "1=5", "1=5,0=0.5"])
def test_an_option_that_may_be_repeated_is_one_text(skiprnn, adding_file, costs):
    Path("a.toml").write_text(f'{SMALL}lam = 1e-4\nfeature_cost = "{costs}"\n')
    done = skiprnn("train", "--config", "a.toml", "--data", adding_file, "--out", "run")
    assert done.exit_code == 0, done.output
    assert load_config(Path("run")).feature_cost == costs


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("steps = 5\nlearning = 1\n", 1, "a.toml, line 2: no option 'learning'. Keys are those of a run's config.json"),
        ("\nhiden = 5\n", 1, "a.toml, line 2: no option 'hiden'. Did you mean 'hidden_size'?"),
        ("[model]\nhidden = 5\n", 1, "a.toml, line 1: no option 'model'."),
        ("eval-every = '5'\n", 1, "a.toml, line 1: eval-every must be int, got '5'"),
        ("lr = true\n", 1, "a.toml, line 1: lr must be float, got True"),
        (
            "hidden = 5\nhidden_size = 5\n",
            1,
            "a.toml, line 2: 'hidden_size' is hidden_size, which stands there already",
        ),
        ("cell = 'my.cells:Mine'\n", 1, "a.toml, line 1: code of your own is run only where the command line names it"),
        ("lr = 1 2\n", 1, "cannot read a.toml: truncated, damaged or not TOML"),
        ("lr = -1\n", 2, "Invalid value for '--lr': -1.0 is not in the range x>0. It comes from a.toml."),
        ("cell = 'esn'\n", 2, "nor one of your own, 'package.module:Cell'. It comes from a.toml."),
    ],
)
def test_what_it_cannot_say(skiprnn, text, code, message):
    Path("a.toml").write_text(text)
    done = skiprnn("train", "--config", "a.toml")
    assert done.exit_code == code
    assert f"Error: {message}" in done.stderr or message in done.stderr.splitlines()[-1]
    assert not Path("runs").exists()


def test_a_file_that_is_not_there(skiprnn):
    done = skiprnn("train", "--config", "a.toml")
    assert done.exit_code == 1
    assert done.stderr == "Error: cannot read a.toml: No such file or directory; name a TOML file with --config\n"


def test_a_run_that_goes_on_has_its_configuration(skiprnn, make_run):
    run = make_run(trained=False)
    Path("a.toml").write_text("steps = 9\n")
    done = skiprnn("train", "--resume", run, "--config", "a.toml")
    assert done.exit_code == 2
    assert "--resume continues a run as it was configured; drop --config." in done.stderr
