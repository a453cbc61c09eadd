"""Write the tables of docs/results.md anew from benchmarks/results/, where the page says `<!-- table: FILE.json -->`.

python docs/write_tables.py
"""

import json
import re
from pathlib import Path

from pipelines.grids.results import Line, markdown

PAGE = Path(__file__).with_name("results.md")
RESULTS = PAGE.parents[1] / "benchmarks/results"
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TIMES = ("training (", "inference (")  # columns, whose numbers are a loaded machine's


def page(text: str) -> str:
    """The page with its tables written anew."""
    return TABLE.sub(lambda found: f"{found[1]}\n{_table(RESULTS / found[2])}\n{found[3]}", text)


def _table(path: Path) -> str:
    results = json.loads(path.read_text(encoding="utf-8"))
    hours = sum(run["training_seconds"] for run in results["runs"]) / 3600
    spent = f"{hours:.1f} hours" if hours > 1 else f"{60 * hours:.1f} minutes"
    device = results["where"]["device"]
    each = f"on one {device}, several at once" if device.startswith("NVIDIA") else "one thread each"
    note = f"{len(results['runs'])} runs, {spent} of training together, {each} (`{path.name}`)."
    return f"{markdown([Line(**line) for line in results['lines']], without=TIMES)}\n{note}\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
