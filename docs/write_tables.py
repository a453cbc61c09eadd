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
    places = {True: f"on one {results['where']['device']}, several at once", False: "on a CPU, one or two threads each"}
    spent = []
    for on_gpu, place in places.items():
        runs = [run["training_seconds"] for run in results["runs"] if (run["config"]["device"] == "cuda") == on_gpu]
        spent += [f"{len(runs)} runs {place}, {_duration(sum(runs))} of training"] if runs else []
    note = f"{', and '.join(spent)} (`{path.name}`)."
    return f"{markdown([Line(**line) for line in results['lines']], without=TIMES)}\n{note}\n"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
