"""Scripts beside the packages: that benchmarks find what they import, and that examples do what they say."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.videos import write_video

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
EXAMPLES = {path.name for path in (ROOT / "examples").glob("*.py")}


def test_the_benchmarks_find_what_they_import():
    paths = [str(ROOT / "benchmarks"), str(ROOT)]
    code = f"import sys, runpy; sys.path[:0] = {paths}; [runpy.run_path(path) for path in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *BENCHMARKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Run an example in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        torch.manual_seed(0)
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run():
    tests = [Path(__file__), ROOT / "tests/runs/test_export.py"]
    said = "".join(path.read_text(encoding="utf-8") for path in tests)
    assert {name for name in EXAMPLES if f'"{name}"' in said or f"examples.{Path(name).stem}" in said} == EXAMPLES


def test_labels_of_steps(example, tmp_path):
    assert example("labels_of_steps.py").split() == ["wrote", "square.npz", "wrote", "lamps.npz", "wrote", "sines.npz"]


def test_own_cell(example):
    assert "of 50 samples used, state ('h', 'update_prob', 'cum_update_prob')" in example("own_cell.py")


def test_replace_lstm(example):
    first, last = example("replace_lstm.py", 30).splitlines()
    assert "40.0 of 40 samples used" in first
    assert "40.0 of 40 samples used" not in last


def test_stream_sensor(example, make_run):
    said = example("stream_sensor.py").splitlines()
    read, _ = said[-1].removeprefix("read ").split(" of ")
    assert int(read) == len(said) - 1 < 200
    assert example("stream_sensor.py", make_run()).splitlines()[-1].endswith("of 200 samples")


def test_sweep(example):
    table = example("sweep.py", "out", 4, 1).splitlines()
    assert [line.split("|")[2].strip() for line in table[2:]] == ["LSTM", "Skip LSTM", "GRU", "Skip GRU"]


def test_few_frames(example, tmp_path):
    said = example("few_frames.py", write_video(tmp_path / "clip.avi", 30, codec="mjpeg")).splitlines()
    assert said[-1] == f"looked at {len(said) - 1} of 30 frames"
    assert 1 < len(said) - 1 < 30


def test_fine_tune(example, make_run, tmp_path):
    run = make_run()
    said = example("fine_tune.py", run, 2).splitlines()
    assert said[0].startswith("step 0: loss 0.")
    assert said[-2].startswith("accuracy ")
    assert torch.load("fine-tuned.pt")["head.weight"].shape == (2, 6)
