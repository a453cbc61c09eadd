"""``report``: a sweep's tables, learning curves and usage figures as one page that needs nothing else."""

import base64
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from pipelines.data.files import write_text
from pipelines.errors import SkipRNNError
from pipelines.grids.results import read_results, rows_of
from pipelines.runs.config import TrainConfig
from pipelines.runs.figures import plot_curves, plot_usage

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c1c1c;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}thead th{border-bottom:2px solid #444}
img{max-width:100%;height:auto}figure{margin:1rem 0}figcaption,.note{color:#555;font-size:.85rem}
dl{display:grid;grid-template-columns:max-content auto;gap:.1rem 1rem;font-size:.85rem}dt{color:#555}dd{margin:0}
"""


def write_report(
    folder: Path,
    out: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write the page.

    Args:
        folder: what ``reproduce`` or ``sweep`` wrote.
        out: the .html file.
        overwrite: replace it if it exists.
        on_progress: called with the number of figures just drawn; there are ``count_figures`` of them.

    Raises:
        SkipRNNError: the folder has no results, or ``out`` cannot be written.
    """
    results = read_results(folder)
    asked, where = results["asked"], results["where"]
    title = f"Skip RNN: {asked['task']}, preset {asked['preset']}"
    of_which = " and ".join(sorted({run["evaluation"]["checkpoint"] for run in results["runs"]}))
    facts = {**where, "settings": ", ".join(f"{k}={v}" for k, v in asked["settings"].items()) or "the preset's"}
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>",
        "<h2>Results on the test split</h2>",
        _table(results["lines"]),
        f'<p class="note">Means ± standard deviations over the runs, {of_which} checkpoints. Training: seconds of a '
        "run, and how many times as fast a sequence is as the plain cell's. Inference: milliseconds of a sequence, and "
        "how many times as fast that is as the same weights with the gate open at every step.</p>",
    ]
    parts += [f'<p class="note">Failed: {escape(p)}: {escape(reason)}</p>' for p, reason in results["failed"].items()]
    with tempfile.TemporaryDirectory() as work:
        for name, (caption, draw) in _figures(folder, results).items():
            path = Path(work) / f"{name}.png"
            try:
                draw(path)
                encoded = base64.b64encode(path.read_bytes()).decode()
                parts.append(
                    f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{encoded}">'
                    f"<figcaption>{escape(caption)}</figcaption></figure>"
                )
            except SkipRNNError as error:
                parts.append(f'<p class="note">{escape(caption)}: {escape(str(error))}</p>')
            on_progress(1)
    write_text(out, "\n".join([*parts, "</body></html>\n"]), overwrite=overwrite)
    return out


def count_figures(folder: Path) -> int:
    """How many figures the page has. Errors as for ``write_report``."""
    return len(_figures(folder, read_results(folder)))


def _table(lines: list[Any]) -> str:
    header, *body_rows = rows_of(lines)
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body_rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figures(folder: Path, results: dict[str, Any]) -> dict[str, tuple[str, Callable[[Path], Any]]]:
    """What to draw, by name: captions and functions of a path."""
    runs: dict[str, list[tuple[Path, TrainConfig]]] = defaultdict(list)  # by data file
    for result in results["runs"]:
        runs[Path(result["config"].data).stem].append((folder / "runs" / result["name"], result["config"]))
    figures: dict[str, tuple[str, Callable[[Path], Any]]] = {}
    for data, group in runs.items():
        paths = [path for path, config in group if config.p_skip is None]
        if paths:
            figures[f"curves-{data}"] = (
                f"Learning curves on {data}: validation, mean and range over the runs",
                partial(plot_curves, paths),
            )
        for path, config in group:
            if config.skip and config.seed == min(other.seed for _, other in group):
                figures[f"usage-{path.name}"] = (
                    f"Samples that {config.model_name}, {config.budget_name}, uses on {data}",
                    partial(plot_usage, path, examples=4),
                )
    return figures
