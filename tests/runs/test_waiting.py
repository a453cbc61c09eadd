"""Training gives a GPU its work without waiting for it: the host reads nothing back, and copies from pinned memory."""

import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.data import features as feature_file
from pipelines.data.features import FlatSequences, read_features, write_features
from pipelines.data.sequences import Sequences
from pipelines.runs import training
from pipelines.runs.batches import batches_after
from pipelines.runs.budgets import Budget
from pipelines.runs.checkpoints import Progress
from pipelines.runs.model import build_model
from pipelines.runs.training import train
from pipelines.tasks import Adding, Imdb, Mnist, OwnClasses, OwnLabels, OwnNumbers, OwnTags, Sine, Ucf101, Videos
from tests.gpu import on_gpu, places, waits_for_a_gpu
from tests.videos import COUNTS, STEPS, WIDTH, entries_of, features_of

N, T = 10, 5  # sequences, steps
AB = ("a", "b")
STEPS_TAKEN = 2  # to the end of the first epoch and into the second

steps = pytest.mark.parametrize("name", [
    "adding", "sine", "mnist", "imdb", "imdb with lengths", "ucf101", "videos with lengths", "own classes", "own tags",
    "own labels", "own labels of steps", "own number", "own numbers of steps", "target usage", "keep", "plain",
])  # fmt: skip


def case(name):
    """A task, its training split, and options of the run."""
    draw = torch.Generator().manual_seed(0)
    x, lengths = torch.rand(N, T, 1, generator=draw), torch.randint(1, T + 1, (N,), generator=draw)

    def whole(high, *shape, dtype=torch.int64):
        return torch.randint(0, high, (N, *shape), generator=draw).to(dtype)

    def own(y):
        return Sequences(x, y, lengths)

    words = Sequences(whole(7, T, dtype=torch.int32), whole(2), lengths)
    counts = torch.tensor(COUNTS).clamp(max=STEPS)
    videos = FlatSequences(
        torch.rand(sum(COUNTS), WIDTH, generator=draw).half(), whole(2), torch.tensor(COUNTS).cumsum(0) - counts,
        counts, STEPS, WIDTH,
    )  # fmt: skip
    imdb, adding, numbers = Imdb(T, 3, 7), Adding(length=10), {"names": AB, "target_mean": (1.0, 2.0)}
    fresh = adding.sample(N, draw)
    return {
        "adding": (adding, fresh, {}),
        "sine": (Sine(duration=T), Sine(duration=T).sample(N, draw), {"gate_clip": 1.0}),
        "mnist": (Mnist(), Sequences(whole(256, T, 1, dtype=torch.uint8), whole(10)), {}),
        "imdb": (imdb, imdb.with_padding(words), {"dropout": 0.5}),
        "imdb with lengths": (imdb, words, {}),
        "ucf101": (Ucf101(WIDTH, STEPS, AB), videos.padded(), {"num_layers": 2}),
        "videos with lengths": (Videos(WIDTH, STEPS, AB), videos, {}),
        "own classes": (OwnClasses(), own(whole(2)), {}),
        "own tags": (OwnTags(), own(whole(2, T)), {}),
        "own labels": (OwnLabels(labels=AB), own(whole(2, 2, dtype=torch.uint8)), {}),
        "own labels of steps": (OwnLabels(labels=AB, each_step=True), own(whole(2, T, 2, dtype=torch.uint8)), {}),
        "own number": (OwnNumbers(), own(torch.rand(N, generator=draw)), {}),
        "own numbers of steps": (
            OwnNumbers(**numbers, target_std=(0.5, 3.0), each_step=True), own(torch.rand(N, T, 2, generator=draw)), {},
        ),
        "target usage": (adding, fresh, {"target_usage": 0.5}),
        "keep": (adding, fresh, {"keep": 0.1}),
        "plain": (adding, fresh, {"skip": False, "lam": 0.0}),
    }[name]  # fmt: skip


def steps_on(device, name, config):
    """A function that does the next step, by the definition, which waits for nothing."""
    task, split, more = case(name)
    config = replace(config, batch_size=6, engine="reference", **more)
    model = build_model(config, task).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=device.type != "meta" or None)
    batches = batches_after(0, config, task, {"train": split.to(device)}, device)
    budget = Budget(config, Progress(0, lam=1e-5 if config.keep else None))

    def step():
        return training._step(model, optimizer, task, next(batches), config, budget.cost, lam_share=0.5)

    step()  # which keeps on the device what the others use
    return step


class Copies(TorchDispatchMode):
    """Notes the copies to the stand-in for a GPU that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        is_copy = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.is_cpu]
        read = [leaf for leaf in read if leaf.dim() or is_copy]  # a kernel takes a scalar as it is
        there = any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(result))
        if read and there and not kwargs.get("non_blocking"):
            self.found.append(str(function))
        return result


class Constants(TorchFunctionMode):
    """Notes tensors that are made of Python's numbers there, which are copied too."""

    def __init__(self, copies):
        super().__init__()
        self.found = copies.found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor) and result.is_meta:
            self.found.append(f"{function.__name__} of {args[-1]}")
        return result


def waits_for_the_stand_in(work):
    """What would wait; what reads values raises, for the device called meta has none."""
    with Copies() as copies, Constants(copies):
        work()
    return copies.found


META = torch.device("meta")


@steps
def test_a_step_waits_for_nothing(name, config, monkeypatch):
    monkeypatch.setattr(training, "autocast", lambda *_: nullcontext())  # which the stand-in has not
    step = steps_on(META, name, config)
    for _ in range(STEPS_TAKEN):
        assert waits_for_the_stand_in(step) == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.zeros(2).to(x.device),
        lambda x: x.copy_(torch.zeros(2)),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_the_stand_in_shows_what_waits(wait):
    try:
        assert len(waits_for_the_stand_in(lambda: wait(torch.zeros(2, device=META)))) == 1
    except (RuntimeError, NotImplementedError) as error:
        assert "meta" in str(error).lower()  # noqa: PT017


@pytest.fixture
def video_file(tmp_path):
    task = Ucf101(WIDTH, STEPS, AB)
    attributes = {"task": task.name, **task.parameters()}
    return write_features(tmp_path / "f.h5", entries_of(COUNTS), features_of, attributes)


def test_batches_from_a_file_are_not_waited_for(video_file, config):
    split = replace(read_features(video_file).splits["train"], device=META)
    assert split.streams
    batches = batches_after(0, replace(config, batch_size=2), Ucf101(WIDTH, STEPS, AB), {"train": split}, META)
    next(batches)
    assert waits_for_the_stand_in(lambda: next(batches)) == []
    assert waits_for_the_stand_in(lambda: split.take(slice(2))) == []  # as evaluation does
    batches.close()


@on_gpu
@steps
def test_on_a_gpu_a_step_waits_for_nothing(name, config):
    step = steps_on(torch.device("cuda"), name, config)
    for _ in range(STEPS_TAKEN):
        assert waits_for_a_gpu(step) == []


@on_gpu
@pytest.mark.parametrize(("engine", "cuda_graph"), [("reference", False), ("cuda", False), ("cuda", True)])
@pytest.mark.parametrize("fresh", [False, True])
def test_on_a_gpu_training_waits_where_its_engine_does(make_run, engine, cuda_graph, fresh):
    """Between two evaluations, in all that ``train`` does."""
    options = {"device": "cuda", "engine": engine, "cuda_graph": cuda_graph, "fresh_batches": fresh}
    run = make_run(trained=False, steps=20, eval_every=20, **options)
    done = 0

    def should_stop():
        nonlocal done
        done += 1
        torch.cuda.set_sync_debug_mode({5: "warn", 15: "default"}.get(done, torch.cuda.get_sync_debug_mode()))
        return False

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            train(run, should_stop=should_stop)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = places(told)
    assert len(found) <= 10 * (engine == "cuda" and not cuda_graph), found  # for the number of updates, once a step


@on_gpu
def test_on_a_gpu_batches_from_a_file_are_not_waited_for(video_file, config, monkeypatch):
    monkeypatch.setattr(feature_file, "SHARE", 0.0)
    device, split = torch.device("cuda"), read_features(video_file).splits["train"]
    batches = batches_after(
        0, replace(config, batch_size=2), Ucf101(WIDTH, STEPS, AB), {"train": split.to(device)}, device
    )
    first = next(batches)
    assert split.to(device).streams
    assert first.x.is_cuda
    assert waits_for_a_gpu(lambda: next(batches)) == []
    batches.close()
    on_cpu = next(
        batches_after(0, replace(config, batch_size=2), Ucf101(WIDTH, STEPS, AB), {"train": split}, torch.device("cpu"))
    )
    np.testing.assert_array_equal(first.x.cpu().numpy(), on_cpu.x.numpy())
