import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is imported, here and in processes that tests start.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: kernels run on the CPU, step by step

from click.testing import CliRunner

from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import create_run
from pipelines.runs.training import train
from pipelines.sources.synthetic import generate
from pipelines.tasks import Adding, Sine
from skiprnn import compiled
from skiprnn.engines import cuda
from skiprnn_cli.main import cli
from tests import emulated
from tests.pairwise import leave_the_others_to_test_slow

SIZES = {"train": 96, "val": 16, "test": 16}
ON_GPU = ("test_events", "test_golden", "test_gpu_engines", "test_graph", "test_cuda")  # all they say is of a GPU too


@pytest.hookimpl(tryfirst=True)  # before those that are marked slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.startswith(ON_GPU):
            item.add_marker("gpu")
    leave_the_others_to_test_slow(items)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through torch again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def kernels_on_the_cpu() -> None:
    """Without a GPU, the kernels of CUDA run in an emulator, and Triton's in its interpreter."""
    if not torch.cuda.is_available():
        cuda.EMULATED = emulated.kernels
        if importlib.util.find_spec("triton") is not None:
            from tests import interpreted

            interpreted.quicken()


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """SIGINT acts as it does in a terminal, also where the tests run in the background of a script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What fsync is for, a machine that loses its power, no test can see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory) -> Iterator[None]:
    """What torchrun and processes that are killed leave among the temporary files goes when the tests end."""
    tmp_path_factory.getbasetemp()  # found before, it stays where it is, as all temporary files of this process do
    with (
        tempfile.TemporaryDirectory(prefix="skiprnn-", ignore_cleanup_errors=True) as folder,  # short, for sockets
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(params=compiled.INSTRUCTIONS)
def instructions(request):
    """Each instruction set that the machine has."""
    before = compiled.instructions()
    if compiled.instructions(request.param) != request.param:
        compiled.instructions(before)
        pytest.skip(f"there is no compiled path for {request.param}")
    yield
    compiled.instructions(before)


@pytest.fixture(scope="session")
def adding_file(tmp_path_factory) -> Path:
    return generate(Adding(length=12), tmp_path_factory.mktemp("data") / "adding.h5", SIZES, seed=3)


@pytest.fixture(scope="session")
def sine_file(tmp_path_factory) -> Path:
    return generate(Sine(duration=15), tmp_path_factory.mktemp("data") / "sine.h5", SIZES, seed=3)


@pytest.fixture
def config(adding_file) -> TrainConfig:
    """A run of seconds."""
    return TrainConfig(
        data=str(adding_file), hidden_size=6, batch_size=32, lr=1e-2, lam=1e-3, steps=8, eval_every=3, device="cpu"
    )


@pytest.fixture
def make_run(tmp_path, config):
    """Create, and train unless told not to, a run with some options changed."""

    def make(name="run", trained=True, **options) -> Path:
        run = create_run(tmp_path / name, replace(config, **options))
        if trained:
            train(run)
        return run

    return make


@pytest.fixture
def skiprnn(monkeypatch, tmp_path):
    """Run the command in an empty folder: ``skiprnn("train", "--lam", "1e-5")``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object):
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="skiprnn")

    return run


@pytest.fixture
def forked(monkeypatch):
    """What would be spawned is forked, from a process that has imported what takes each of the others seconds."""
    from tests.forked import prepare

    context = prepare()
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda method=None: context)


@pytest.fixture(params=["compiled", "torch"])
def either_path(request, monkeypatch):
    """Once with the compiled path, once without."""
    if request.param == "torch":
        monkeypatch.setattr("skiprnn.compiled.LIBRARY", None)
    elif compiled.LIBRARY is None:
        pytest.skip("the compiled path was not built")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sequences are shared out, whatever the number of threads that the process has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
