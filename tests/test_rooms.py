"""Imports point one way: skiprnn_cli -> pipelines -> skiprnn, and inside pipelines floor by floor."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import skiprnn
from skiprnn_cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "h5py", "cv2", "PIL", "torchvision", "matplotlib", "safetensors", "ray", "onnx", "av"}
FORBIDDEN = {
    "skiprnn": {"pipelines", "skiprnn_cli", "click", "h5py", "cv2", "torchvision", "matplotlib", "rich"},
    "pipelines": {"skiprnn_cli", "click", "rich"},
}
COMMAND = Path("skiprnn/__main__.py")  # `python -m skiprnn` is the command, so it calls what stands above; no other may
FLOORS = [{"errors", "seeds"}, {"data", "parallel"}, {"video"}, {"tasks"}, {"sources"}, {"runs"}, {"grids"}]


def imported(path):
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "pipelines":
                yield from (f"pipelines.{name.name}" for name in node.names)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_room_imports_what_stands_above_it(room):
    files = [path for path in (ROOT / room).rglob("*.py") if path.relative_to(ROOT) != COMMAND]
    assert files
    for path in files:
        assert not FORBIDDEN[room] & {name.split(".")[0] for name in imported(path)}, path


def test_the_rooms_of_pipelines_are_these():
    there = {path.stem for path in (ROOT / "pipelines").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert there == set.union(*FLOORS)


@pytest.mark.parametrize("room", sorted(set.union(*FLOORS)))
def test_rooms_of_pipelines_import_from_floors_below(room):
    (floor,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    allowed = {room}.union(*FLOORS[:floor])
    where = ROOT / "pipelines" / room
    for path in where.rglob("*.py") if where.is_dir() else [where.with_suffix(".py")]:
        above = {name for name in imported(path) if name.startswith("pipelines.") and name.split(".")[1] not in allowed}
        assert not above, path


def test_the_library_needs_torch_only_and_a_network_no_compiler():
    code = """
import sys, numpy, torch
before = set(sys.modules)
import skiprnn
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*new - {"skiprnn", "torch", "numpy"} - sys.stdlib_module_names)
from pipelines.runs.config import TrainConfig
from pipelines.runs.model import build_model
from pipelines.tasks import Adding, Imdb
build_model(TrainConfig(steps=1), Adding()).rnn.remember(50)
skiprnn.load("adding-lstm")
build_model(TrainConfig(task="imdb", steps=1), Imdb(length=3, dimensions=2, vocabulary=5, vocabulary_sha256=""))
print("torch._dynamo" in sys.modules)  # a second or two
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\nFalse\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_what_takes_long_to_import(command):
    code = f"""
import sys
from skiprnn_cli.main import cli
cli([*{command.split()}, "--help"], standalone_mode=False)
print(*({HEAVY} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.split() == []


def test_the_library_is_run_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["skiprnn", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("skiprnn", run_name="__main__")
    assert capsys.readouterr().out.startswith(f"skiprnn, version {skiprnn.__version__} (")
