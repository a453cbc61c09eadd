"""README, the pages of docs/, and the site that is made of them."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
NOT_RUN = ("docs/data.md", "docs/export.md", "docs/labels.md")  # run elsewhere, or want files that are not here


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NOT_RUN and blocks(page)])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)


def test_the_page_of_all_commands_is_what_their_help_says():
    written = PAGES["docs/cli.md"].read_text(encoding="utf-8")
    page = runpy.run_path(str(DOCS / "write_cli.py"))["page"]
    assert written == page(), "docs/cli.md is stale: run `python docs/write_cli.py`"


def test_the_tables_of_results_are_what_the_benchmarks_hold():
    written = PAGES["docs/results.md"].read_text(encoding="utf-8")
    page = runpy.run_path(str(DOCS / "write_tables.py"))["page"]
    assert "| adding | Skip LSTM |" in written
    assert written == page(written), "docs/results.md is stale: run `python docs/write_tables.py`"
    stale = written.replace("| adding | Skip LSTM |", "| adding | another |", 1)
    assert page(stale) == written


def test_code_in_help_is_code_on_the_page_too():
    prose = runpy.run_path(str(DOCS / "write_cli.py"))["_prose"]
    assert (
        prose("SKIPRNN_LR=1 is `train --lr 1` of a_b, --lr too")
        == r"SKIPRNN\_LR=1 is `train --lr 1` of a\_b, `--lr` too"
    )


def test_the_writer_of_the_page_takes_no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["write_cli.py", "--help"])
    with pytest.raises(SystemExit, match="without arguments"):
        runpy.run_path(str(DOCS / "write_cli.py"), run_name="__main__")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_figures_of_a_page_are_there(page):
    """Those of the site are also held by mkdocs, but README.md is not of it."""
    text = PAGES[page].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path = "".join(target).partition("#")[0]
        assert not path or path.startswith("https://") or (PAGES[page].parent / path).exists(), path


def test_the_readme_is_short_and_figures_are_small():
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= 120
    assert all(path.stat().st_size < 150_000 for path in (DOCS / "figures").iterdir())


@pytest.mark.slow(reason="mkdocs takes 15 seconds; `make docs` says the same")
def test_the_site_is_made_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "cli.html", "notebooks/first_tour.html", "notebooks/own_sensor.html"} <= pages


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    said = capsys.readouterr().out
    assert "answered" in said or "accuracy" in said
