"""``--cell package.module:Cell``: code of one's own, through the commands that train and use runs."""

import json
import sys
from pathlib import Path

import pytest

from pipelines.grids.sweep import Planned, train_one
from pipelines.runs import cells
from pipelines.runs.directory import load_config

SMALL = ("--hidden", 6, "--batch-size", 32, "--steps", 4, "--eval-every", 2, "--lam", 1e-3, "--device", "cpu")
MODULE = """
from examples.own_cell import MinGRUCell

class Mine(MinGRUCell):
    def candidate(self, input_share, state_share, state, weights):
        return super().candidate(input_share, state_share, state, weights)

class Family:
    instance = Mine()

class NotACell:
    pass

class Needy(Mine):
    def __init__(self, size):
        self.size = size

class Unfinished(Mine):
    candidate = Mine.__mro__[2].candidate

class Wrong(Mine):
    def candidate(self, input_share, state_share, state, weights):
        return (state[0] + input_share,), ()

class Choosing(Mine):
    def candidate(self, input_share, state_share, state, weights):
        if state[0].sum() > 0:
            input_share = input_share + 1
        return super().candidate(input_share, state_share, state, weights)

number = 7
"""


@pytest.fixture
def forget(monkeypatch):
    """Forget what was imported, as a new process would."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def forget():
        monkeypatch.setattr(cells, "_imported", {})
        for name in [name for name in sys.modules if name.startswith("my_")]:
            del sys.modules[name]

    forget()
    yield forget
    forget()


@pytest.fixture
def own(skiprnn, forget, tmp_path):
    """The command, in a folder with cells, each call in a process of its own as it were."""
    (tmp_path / "my_cells.py").write_text(MODULE)

    def run(*arguments):
        forget()
        return skiprnn(*arguments)

    return run


@pytest.mark.parametrize("name", ["my_cells:Mine", "my_cells:Family.instance"])
def test_a_cell_of_one_s_own_from_training_to_figures(own, adding_file, name):
    done = own("train", "--cell", name, "--data", adding_file, *SMALL)
    assert done.exit_code == 0, done.output
    (run,) = Path("runs").iterdir()
    assert run.name.startswith(f"adding-skip-{name.lower().replace(':', '.')}-lam0.001-seed0-")
    assert done.stdout.endswith(f"next: skiprnn evaluate {run} --cell {name}\n")
    assert json.loads((run / "config.json").read_text())["cell"] == name

    done = own("evaluate", run, "--cell", name)
    assert done.exit_code == 0, done.output
    assert f"Skip {name} on adding, 16 test sequences" in done.stdout
    assert own("predict", run, adding_file, "--index", 2, "--cell", name).exit_code == 0
    assert own("plot-usage", run, "--examples", 2, "--cell", name).exit_code == 0
    assert own("plot-curves", run).exit_code == 0
    done = own("train", "--resume", run, "--steps", 6, "--cell", name)
    assert done.exit_code == 0, done.output
    assert "finished at step 6 of 6" in done.stdout


def test_a_run_imports_nothing_that_nobody_asked_for(own, adding_file):
    assert own("train", "--cell", "my_cells:Mine", "--data", adding_file, "--out", "run", *SMALL).exit_code == 0
    Path("my_cells.py").write_text("raise SystemExit('imported')")
    for command in (
        ("evaluate", "run"), ("predict", "run", adding_file), ("plot-usage", "run"), ("train", "--resume", "run"),
    ):  # fmt: skip
        done = own(*command)
        assert done.exit_code == 1
        assert "needs the cell my_cells:Mine, code that is not imported because a file says so" in done.stderr
        assert "add --cell my_cells:Mine" in done.stderr
        assert "my_cells" not in sys.modules
    done = own("evaluate", "run", "--cell", "my_cells:Mine")
    assert (done.exit_code, "SystemExit: imported" in done.stderr) == (1, True)


def test_another_cell_than_the_run_s_is_refused(own, adding_file, make_run):
    assert own("train", "--cell", "my_cells:Mine", "--data", adding_file, "--out", "mine", *SMALL).exit_code == 0
    for run, trained in (("mine", "my_cells:Mine"), (make_run(), "lstm")):
        for command in (("evaluate", run), ("train", "--resume", run)):
            done = own(*command, "--cell", "my_cells:Family.instance")
            assert done.exit_code == 1
            assert f"{run} was trained with the cell {trained}, not my_cells:Family.instance" in done.stderr
    done = own("train", "--resume", "mine", "--cell", "gru")
    assert (done.exit_code, "drop --cell." in done.stderr) == (2, True)


def test_a_sweep_s_workers_import_the_cell(own, forget, adding_file, config):
    arguments = ("--data", adding_file, "--cell", "lstm,my_cells:Mine", "--set", "steps=2", "--device", "cpu")
    done = own("sweep", *arguments, "--lam", 0, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "adding-skip-my_cells.mine-lam0-seed0: Skip my_cells:Mine on adding.h5, not trained yet" in done.stdout
    done = own("sweep", *arguments, "--lam", "none,0", "--dry-run")
    assert (done.exit_code, "in a sweep a --lam other than none" in done.stderr) == (1, True)

    assert own("train", "--cell", "my_cells:Mine", "--data", adding_file, "--out", "run", *SMALL).exit_code == 0
    forget()
    assert "add --cell" not in (train_one(Planned(Path("run"), load_config(Path("run")))) or "")


def test_a_cell_that_cannot_be_traced_is_not_exported(own, adding_file):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert own("train", "--cell", "my_cells:Choosing", "--data", adding_file, "--out", "run", *SMALL).exit_code == 0
    done = own("export", "run", "--cell", "my_cells:Choosing")
    assert done.exit_code == 1
    noted, error = done.stderr.splitlines()
    assert noted == "writing run/model.onnx and checking it on the test split"
    assert error.startswith("Error: cannot export the cell my_cells:Choosing: torch.export cannot trace it (")
    assert not Path("run/model.onnx").exists()


ERRORS = [
    ("my_absent:Mine", "cannot import the cell my_absent:Mine: there is no module my_absent; run this in the folder"),
    ("my_cells.more:Mine", "there is no module my_cells.more"),
    ("my_cells:Absent", "has no Absent"),
    ("my_cells:Family.absent", "has no Family.absent"),
    ("my_cells:number", "my_cells.py) is a int, not a skiprnn.cells.Cell; see docs/cells.md"),
    ("my_cells:NotACell", "my_cells.py) is the class NotACell, not a skiprnn.cells.Cell"),
    ("my_cells:Needy", "missing 1 required positional argument: 'size'; name an instance, or a class that takes no"),
    ("my_cells:Unfinished", "fails when it is tried: NotImplementedError: Unfinished does not say its candidate; see"),
    ("my_cells:Wrong", "fails when it is tried: RuntimeError: "),
    ("my_raising:Mine", "ZeroDivisionError: division by zero ("),
    ("my_raising:Mine", "my_raising.py, line 2); mend the module"),
    ("my_needing:Mine", "ModuleNotFoundError: No module named 'absent' ("),
    ("my_syntax:Mine", "SyntaxError: invalid syntax (my_syntax.py, line 1)"),
    ("my_exit:Mine", "SystemExit: 0 ("),
]


@pytest.mark.parametrize(("name", "message"), ERRORS)
def test_what_is_no_cell_is_one_message(own, adding_file, tmp_path, name, message):
    sources = {"raising": "\n1 / 0", "needing": "import absent", "syntax": "1 +* 2", "exit": "import sys; sys.exit(0)"}
    for module, source in sources.items():
        (tmp_path / f"my_{module}.py").write_text(source)
    done = own("train", "--cell", name, "--data", adding_file, *SMALL)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()
