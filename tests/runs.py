"""Training runs held against each other, and interrupted."""

import torch

from pipelines.runs.checkpoints import load_checkpoint
from pipelines.runs.directory import read_metrics


def tensors(run, name="last"):
    return load_checkpoint(run, name).tensors


def assert_same_run(ours, theirs):
    """Weights, optimizer, best checkpoint and log, bit for bit; only the clock may differ."""
    for name in ("last", "best"):
        mine, other = tensors(ours, name), tensors(theirs, name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    logs = [[{**record, "seconds": 0} for record in read_metrics(run)] for run in (ours, theirs)]
    assert logs[0] == logs[1]


def interrupted_after(*steps):
    """``should_stop`` that stops once after each of the given numbers of steps, over several calls of train."""
    state = {"step": 0}

    def should_stop():
        state["step"] += 1
        return state["step"] in steps

    return should_stop
