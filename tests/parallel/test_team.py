"""One run in two processes, as torchrun starts them, against one process on the joint batch."""

import copy
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipelines.data.sequences import Sequences
from pipelines.parallel.team import ALONE, Team, team_of_environment
from pipelines.runs import training
from pipelines.runs.checkpoints import load_checkpoint
from pipelines.runs.directory import read_metrics
from pipelines.runs.model import build_model
from pipelines.runs.training import _step
from pipelines.tasks import Adding
from skiprnn_cli.main import cli
from tests import forked
from tests.forked import meeting, team

OPTIONS = ["--hidden", 9, "--batch-size", 37, "--steps", 20, "--eval-every", 1, "--lam", 1e-3, "--device", "cpu"]


def command(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output


def alone(run, data, *more):
    """Train in this process and return the run directory."""
    command("train", "--data", data, "--out", run, *OPTIONS, *more)
    return run


def together(run, data, *more):
    """Train in two processes, told of each other as torchrun does, and return the run directory and what they said."""
    words = ["train", "--data", data, "--out", run, *OPTIONS, *more]
    said = team(2, forked.command, *map(str, words))
    assert [code for code, _ in said] == [0, 0], said
    return run, "".join(output for _, output in said)


def by_torchrun(run, data, *more, code=0):
    """The same by torchrun itself, whose exit code is looked at."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["-m", "skiprnn_cli", "train", "--data", data, "--out", run, *OPTIONS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*launch, *map(str, train)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stderr
    return run, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("launch", "options"),
    [(by_torchrun, ()), (together, ("--cell", "gru", "--fresh-batches", "--layers", "2"))],
    ids=["lstm", "gru"],
)
def test_two_processes_are_one_on_the_joint_batch(adding_file, tmp_path, launch, options):
    one = alone(tmp_path / "one", adding_file, *options)
    both, said = launch(tmp_path / "both", adding_file, *options)
    ours, theirs = (load_checkpoint(run, "last").tensors for run in (both, one))
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    first, second = (read_metrics(run) for run in (both, one))
    assert len(first) == len(second) == 20
    assert first[0]["train"]["used"] == pytest.approx(second[0]["train"]["used"], abs=1e-9)
    assert first[0]["val"]["used_mean"] == second[0]["val"]["used_mean"]
    for mine, other in zip(first, second, strict=True):
        for part in ("train", "val"):
            assert mine[part] == pytest.approx(other[part], rel=1e-4, abs=1e-5)
    assert said.count("finished at step 20 of 20") == 1


def test_a_run_goes_on_with_another_number_of_processes(adding_file, tmp_path):
    constant = ("--lr-schedule", "constant")  # one that falls falls otherwise over other steps
    whole = alone(tmp_path / "whole", adding_file, *constant)
    part, _ = together(tmp_path / "part", adding_file, "--steps", 10, *constant)
    command("train", "--resume", part, "--steps", 20)
    ours, theirs = (load_checkpoint(run, "last").tensors for run in (part, whole))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)


def rewound(run):
    """Train where the gate is found shut after steps 6 and 8."""
    now, rate, evaluate = {}, training.learning_rate, training.evaluate

    def learning_rate(config, step, total):
        now["step"] = step
        return rate(config, step, total)

    def found(*arguments):
        result = evaluate(*arguments)
        return replace(result, metric=10.0, loss=5.0, used_mean=1.0) if now["step"] in (6, 8) else result

    training.learning_rate, training.evaluate = learning_rate, found
    with team_of_environment() as members:
        outcome = training.train(run, team=members)
        assert members.gather(outcome.best_step) == [outcome.best_step] * members.size


def test_all_processes_go_back_to_the_same_checkpoint(make_run):
    found = []
    for size in (1, 2):
        options = {"steps": 12, "eval_every": 2, "on_collapse": "rewind", "gate_clip": 1.0}
        run = make_run(f"run{size}", trained=False, **options)
        assert team(size, rewound, run) == [None] * size
        assert {r["step"]: r["rewound_to"] for r in read_metrics(run) if "rewound_to" in r} == {8: 4}
        found.append(load_checkpoint(run, "last").tensors)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-5)


def test_errors_of_the_first_process_end_all(tmp_path):
    _, said = by_torchrun(tmp_path / "run", tmp_path / "missing.h5", code=1)
    assert "no data file" in said
    assert not (tmp_path / "run").exists()


def test_the_share_that_is_used_is_that_of_the_joint_batch(config):
    """λ that is found goes by it, and must be the same in all processes, here threads, of which one has no sequence."""
    config, task = replace(config, lam=0.0, target_usage=0.5), Adding(length=12)
    torch.manual_seed(0)
    model = build_model(config, task).train()
    torch.nn.init.normal_(model.rnn.update_weight, std=8.0)
    batch = Sequences(5 * torch.randn(16, 12, 2), torch.zeros(16))
    barrier, given = threading.Barrier(3), [torch.empty(0)] * 3
    parts = [slice(0, 12), slice(12, 16), slice(0, 0)]

    class Thread(Team):
        def sum(self, tensor):
            given[self.rank] = tensor.clone()
            barrier.wait(60)
            total = sum(given)
            barrier.wait(60)
            return tensor.copy_(total)

    def usage_of(rows, team):
        mine, found = copy.deepcopy(model), []
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.0)
        _step(mine, optimizer, task, batch.take(rows), config, lambda u: (found.append(float(u)), 1e-3)[1], team=team)
        return found[0]

    alone = usage_of(slice(16), ALONE)
    assert abs(usage_of(parts[0], ALONE) - usage_of(parts[1], ALONE)) > 0.01
    with ThreadPoolExecutor(3) as threads:
        shares = list(threads.map(usage_of, parts, [Thread(rank, 3) for rank in range(3)]))
    assert shares == [pytest.approx(alone, abs=1e-6)] * 3


def test_parts_cover_a_batch_once():
    for size in (0, 1, 2, 37, 256):
        for count in (1, 2, 3, 8):
            rows = [row for rank in range(count) for row in range(size)[Team(rank, count).part(size)]]
            assert rows == list(range(size))


def test_alone_nothing_is_exchanged():
    team = Team()
    value = torch.tensor([1.0, 2.0])
    assert team.sum(value) is value
    assert (team.gather(3), team.agree("a"), team.any(True), team.any(False)) == ([3], "a", True, False)
    assert team.part(5) == slice(0, 5)


@pytest.mark.slow(reason="two processes that import torch for a line each")
def test_no_thread_outlives_the_team(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import os
import torch
from pipelines.parallel.team import team_of_environment

with team_of_environment() as team:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    team.sum_gradients([weight])
    optimizer.step()
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
assert not [name for name in names if "gloo" in name], names
"""
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with meeting(2) as environments:
        started = [
            subprocess.Popen([sys.executable, script], env={**environment, **one}, stderr=subprocess.PIPE, text=True)
            for one in environments
        ]
        said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
