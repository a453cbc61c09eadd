"""Imports point one way: skiprnn_cli -> pipelines -> skiprnn."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from skiprnn_cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "h5py", "cv2", "PIL", "torchvision", "matplotlib", "safetensors", "ray", "onnx", "av"}
FORBIDDEN = {
    "skiprnn": {"pipelines", "skiprnn_cli", "click", "h5py", "cv2", "torchvision", "matplotlib", "rich"},
    "pipelines": {"skiprnn_cli", "click", "rich"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_room_imports_what_stands_above_it(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert not FORBIDDEN[room] & set(imported(path)), path


def test_the_library_needs_torch_only():
    others = FORBIDDEN["skiprnn"]
    code = f"import sys, skiprnn; print(*({others!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


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
