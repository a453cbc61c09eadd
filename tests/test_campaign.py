"""A small campaign: a few cases of each class that starts no processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLASSES = (
    "data files", "feature files", "own HDF5", "own NPZ", "own NPY", "own CSV", "config.json", "checkpoint JSON",
    "checkpoint tensors", "checkpoints made anew", "IMDB JSON lines", "word2vec .bin", "SIGKILL: gen-data adding",
    "SIGKILL: gen-data own", "SIGKILL: train", "4 at one output",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="it watches processes as Linux lets it")


def campaign(*arguments):
    command = [sys.executable, "-m", "campaign", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


FEW = ("config.json", "checkpoint tensors")
slow = pytest.mark.slow(reason="commands begun again and again")


@pytest.mark.parametrize("classes", [FEW, pytest.param(CLASSES, marks=slow)], ids=["few", "all"])
def test_a_few_cases_of_each_class(classes):
    only = [word for name in classes for word in ("--only", name)]
    done = campaign("--times", 0.02, *only)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:-1]] == [f"| {name}" for name in classes]
    assert "| 0 | 0 | 0 | 0 | 0 |" in rows[-1]


def test_every_class_has_a_name():
    listed = campaign("--list").stdout.splitlines()
    assert len(set(listed)) == len(listed)
    assert set(CLASSES) < set(listed)
    assert campaign("--only", "no such class").returncode == 2


def test_a_command_that_hangs_grows_or_falls_is_told_apart():
    from campaign.cases import Kind, judge
    from campaign.processes import Done

    def kind(code, err="", **how):
        return judge(Done(code, "", err, 1.0, how.pop("peak", 0), **how), "", ("train",)).kind

    assert kind(0) == Kind.ACCEPTED
    assert kind(1, "run: x\nError: no file x") == Kind.REFUSED
    assert kind(2, "Usage: x\n\nError: no such option") == Kind.REFUSED
    assert kind(1, "KeyError: 1") == Kind.TRACEBACK
    assert kind(1, "Error: a\nError: b") == Kind.TRACEBACK
    assert kind(-11) == Kind.TRACEBACK
    assert kind(0, "Exception ignored in: x") == Kind.TRACEBACK
    assert kind(-9, hung=True) == Kind.HANG
    assert kind(-9, peak=3 * 2**30) == Kind.MEMORY
