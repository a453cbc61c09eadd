"""Imports point one way: skiprnn_cli -> pipelines -> skiprnn."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


def test_the_command_starts_without_torch():
    code = "import sys, skiprnn_cli.main as m; m.cli(['-h'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
