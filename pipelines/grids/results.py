"""Tables of a sweep's results: results.json with every run, table.md and table.tex with means over seeds."""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.data.doors import read_json, reading
from pipelines.data.fields import check_fields
from pipelines.data.files import write_json, write_text
from pipelines.grids.paper import DATA_SETS, is_untrained, table
from pipelines.runs.config import TrainConfig, configure

COLUMNS = (
    "data", "model", "λ", "runs", "metric", "paper's", "difference", "solved", "used samples", "paper's",
    "difference", "cost", "paper's", "training (× as fast as plain)", "inference (× as fast as without skipping)",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A model on a data set, over its seeds."""

    data: str
    model: str
    lam: float | None
    p_skip: float | None
    runs: int
    metric_name: str
    metric: float
    metric_std: float | None  # over the seeds, of the sample; None for one
    solved: int | None  # how many; None where the task has no such rule
    used: float
    used_std: float | None
    steps: float  # of a sequence
    cost: float
    training_seconds: float  # of a run
    training_vs_plain: float | None  # times as fast, a sequence, as the plain cell of this grid
    inference_ms: float  # of a sequence in a batch
    inference_vs_plain: float  # times as fast as the same weights with the gate open
    paper: dict[str, Any] | None


@dataclass(frozen=True)
class _Asked:
    task: str
    preset: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Whole:
    """What results.json holds."""

    asked: dict[str, Any]
    where: dict[str, Any]
    lines: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    failed: dict[str, str]


def lines_of(results: list[dict[str, Any]]) -> list[Line]:
    """Means over seeds, in the order of the grid."""
    groups: dict[TrainConfig, list[dict[str, Any]]] = {}
    for result in results:
        config = replace(TrainConfig(**result["config"]), seed=0, device="auto")
        groups.setdefault(config, []).append(result)
    plain = {
        (Path(config.data).stem, config.cell): _seconds_per_sequence(config, group)
        for config, group in groups.items()
        if not config.skip and config.p_skip is None
    }
    return [_line(config, group, plain, _model_name(config, groups)) for config, group in groups.items()]


def _model_name(config: TrainConfig, table: Iterable[TrainConfig]) -> str:
    """The model's name; of two kinds of GRU in a table each says which it is."""
    if config.cell == "gru" and config.reset_after and not all(other.reset_after for other in table):
        return f"{config.model_name} (reset after)"
    return config.model_name


def _line(
    config: TrainConfig, group: list[dict[str, Any]], plain: dict[tuple[str, str], float], model_name: str
) -> Line:
    said = [result["evaluation"] for result in group]
    metrics, used = [s["metric"] for s in said], [s["used_mean"] for s in said]
    of_sequence = _seconds_per_sequence(config, group)
    data = Path(config.data).stem
    of_plain = plain.get((data, config.cell))
    return Line(
        data=_data_name(data, group[0]["task"]),
        model=model_name,
        lam=config.lam if config.skip else None,
        p_skip=config.p_skip,
        runs=len(group),
        metric_name=said[0]["metric_name"],
        metric=statistics.mean(metrics),
        metric_std=_std(metrics),
        solved=None if said[0]["solved"] is None else sum(s["solved"] for s in said),
        used=statistics.mean(used),
        used_std=_std(used),
        steps=said[0]["steps_per_sequence"],
        cost=statistics.mean(s["cost"] for s in said),
        training_seconds=statistics.mean(result["training_seconds"] for result in group),
        training_vs_plain=of_plain / of_sequence if of_plain and of_sequence else None,
        inference_ms=1e3 * statistics.median(s["seconds_per_sequence"] for s in said),
        inference_vs_plain=statistics.median(
            s["seconds_per_sequence_without_skipping"] / s["seconds_per_sequence"] for s in said
        ),
        paper=_published(config, data, group[0]["task"]),
    )


def _data_name(data: str, task: dict[str, Any]) -> str:
    """Of features of videos that are not the paper's with what they are, lest they be taken for the paper's."""
    if "network" not in task or (data in DATA_SETS and DATA_SETS[data].matches(data, task)):
        return data
    steps = f"{task['steps']} frames at {task['fps']:g} a second"
    untrained = "untrained " if is_untrained(task) else ""
    network = f"{untrained}{task['network']}" if task["network"] else "features made elsewhere"
    return f"{data} ({len(json.loads(task['classes']))} classes, {steps}, {network})"


def _seconds_per_sequence(config: TrainConfig, group: list[dict[str, Any]]) -> float:
    of_step = statistics.mean(result["training_seconds"] / max(result["outcome"]["step"], 1) for result in group)
    return float(of_step / config.batch_size)


def _published(config: TrainConfig, data: str, task: dict[str, Any]) -> dict[str, Any] | None:
    """What the paper has of a model, if it is the paper's, on data made as the paper's."""
    preset = configure(config.task, "paper")
    if (config.hidden_size, config.num_layers) != (preset.hidden_size, preset.num_layers):
        return None
    wanted = (config.cell, config.lam if config.skip else None, config.p_skip)
    for row in table(config.task):
        if row.data.matches(data, task) and (row.cell, row.lam, row.p_skip) == wanted:
            return {key: value for key, value in asdict(row).items() if key not in ("data", "cell", "lam", "p_skip")}
    return None


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def write_results(
    out: Path, results: list[dict[str, Any]], failed: dict[str, str], about: dict[str, Any]
) -> list[Line]:
    """Write results.json, table.md and table.tex into a folder.

    Args:
        out: the folder.
        results: from ``sweep.evaluate_all``.
        failed: why runs failed, by path.
        about: what was asked for, and where: ``{"asked": {"task": ..., "preset": ..., "settings": {...}}, "where":
            {...}}``, which ``report`` shows.

    Returns:
        The table's lines, means over seeds.

    Raises:
        SkipRNNError: they cannot be written.
    """
    lines = lines_of(results)
    whole = {**about, "lines": [asdict(line) for line in lines], "runs": results, "failed": failed}
    write_json(out / "results.json", whole)
    write_text(out / "table.md", markdown(lines))
    write_text(out / "table.tex", latex(lines))
    return lines


def read_results(out: Path) -> dict[str, Any]:
    """The contents of a folder's results.json, lines and the configurations of runs as objects.

    Raises:
        SkipRNNError: there is none, or it is damaged.
    """
    path, remedy = Path(out) / "results.json", "`skiprnn reproduce` and `skiprnn sweep` write it"
    results = read_json(path, dict, remedy)
    with reading(path, "the results of a sweep", remedy):
        check_fields(_Whole, results)
        check_fields(_Asked, results["asked"])
        for line in results["lines"]:
            check_fields(Line, line)
        for result in results["runs"]:
            check_fields(TrainConfig, result["config"])
            result["config"] = TrainConfig(**result["config"])
            if not isinstance(result["name"], str):
                raise ValueError("a run has no name")
            if result["evaluation"]["checkpoint"] not in ("best", "last"):
                raise ValueError("a run was evaluated at no checkpoint")
        results["lines"] = [Line(**line) for line in results["lines"]]
        rows_of(results["lines"])
        return results


def markdown(lines: list[Line], without: tuple[str, ...] = ()) -> str:
    """The table in Markdown, without the columns whose names begin like one of ``without``."""
    whole = rows_of(lines)
    kept = [number for number, name in enumerate(whole[0]) if not name.startswith(without)]
    header, *rows = [[row[number] for number in kept] for row in whole]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])


def latex(lines: list[Line]) -> str:
    """The table in LaTeX, for booktabs."""
    signs = {"λ": r"$\lambda$", "±": r"$\pm$", "%": r"\%", "_": r"\_", "−": "$-$", "×": r"$\times$", "—": "---"}

    def row(texts: Iterable[str]) -> str:
        joined = " & ".join(texts)
        for sign, code in signs.items():
            joined = joined.replace(sign, code)
        return joined + r" \\"

    header, *rows = rows_of(lines)
    body = [
        r"\begin{tabular}{" + "l" * 3 + "r" * (len(header) - 3) + "}", r"\toprule", row(header), r"\midrule",
        *map(row, rows), r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(body) + "\n"


def rows_of(lines: list[Line]) -> list[list[str]]:
    """The table as texts, names of columns first, without columns that are empty."""
    rows = [cells(line) for line in lines]
    kept = [number for number in range(len(COLUMNS)) if any(row[number] for row in rows)]
    return [[row[number] for number in kept] for row in [list(COLUMNS), *rows]]


def cells(line: Line) -> list[str]:
    """A line as texts, one a column."""
    paper = line.paper or {}
    low = line.metric_name == "MSE"  # the others are shares
    metric = _spread(line.metric, line.metric_std, "{:.2e}" if low else "{:.3f}")
    solved = "" if line.solved is None else f"{line.solved} of {line.runs}"
    if line.solved is not None and paper.get("solved") is not None:
        solved += f" (paper: {'yes' if paper['solved'] else 'no'})"
    return [
        line.data,
        line.model,
        "" if line.lam is None else f"{line.lam:g}",
        str(line.runs),
        f"{line.metric_name} {metric}",
        _spread(paper.get("metric"), paper.get("metric_std"), "{:.3f}"),
        _difference(line.metric, paper.get("metric"), "{:+.3f}"),
        solved,
        f"{_spread(line.used, line.used_std, '{:.1f}')} of {round(line.steps, 1):g}",
        _spread(paper.get("used"), paper.get("used_std"), "{:.1f}"),
        _difference(line.used, paper.get("used"), "{:+.1f}"),
        f"{line.cost:.2e}",
        "" if paper.get("cost") is None else f"{paper['cost']:.2e}",
        _timed(f"{line.training_seconds:,.0f}", "s", line.training_vs_plain),
        _timed(f"{line.inference_ms:.3f}", "ms", line.inference_vs_plain),
    ]


def _spread(mean: float | None, std: float | None, form: str) -> str:
    if mean is None:
        return ""
    return form.format(mean) + ("" if std is None else f" ± {form.format(std)}")


def _difference(ours: float, theirs: float | None, form: str) -> str:
    return "" if theirs is None or math.isnan(ours) else form.format(ours - theirs).replace("-", "−")


def _timed(text: str, unit: str, times: float | None) -> str:
    """A time and how many times as fast that is; of a time too short for its digits neither says anything."""
    if float(text.replace(",", "")) == 0:
        return "—"
    return f"{text} {unit}" + ("" if times is None else f" ({times:.2f}×)")
