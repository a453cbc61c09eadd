"""The paper's tables and figures: which models were trained on what, and what came of them.

Source: Campos et al., ICLR 2018, tables 1 to 4, and Campos, PhD thesis, tables 5.1 to 5.5 and figures 5.1 to A.2; the
rows that skip at random and the cost are the former's.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from pipelines.tasks import TASKS, SyntheticTask

# data set | cell | λ or p_skip | used samples | their std | accuracy | its std | solved | cost, multiply-accumulates
# Means and standard deviations are over four runs; a dash is what is not given.
_RESULTS = """
adding     | lstm |            | 50     | 0     | -     | -     | yes | 2.46e6
adding     | lstm | lam 0      | 40.55  | 1.8   | -     | -     | yes | 2.00e6
adding     | lstm | lam 1e-5   | 26.95  | 1.05  | -     | -     | yes | 1.33e6
adding     | lstm | p_skip 0.2 | -      | -     | -     | -     | no  | -
adding     | lstm | p_skip 0.5 | -      | -     | -     | -     | no  | -
adding     | gru  |            | 50     | 0     | -     | -     | yes | 1.85e6
adding     | gru  | lam 0      | 48.95  | 1.6   | -     | -     | yes | 1.81e6
adding     | gru  | lam 1e-5   | 25.35  | 1.3   | -     | -     | yes | 9.40e5
adding     | gru  | p_skip 0.02 | -     | -     | -     | -     | no  | -
adding     | gru  | p_skip 0.5 | -      | -     | -     | -     | no  | -
sine       | lstm |            | 100    | 0     | -     | -     | yes | -
sine       | lstm | lam 0      | 55.5   | 16.9  | -     | -     | yes | -
sine       | lstm | lam 1e-5   | 47.4   | 14.1  | -     | -     | yes | -
sine       | lstm | lam 1e-4   | 12.7   | 0.5   | -     | -     | yes | -
sine       | gru  |            | 100    | 0     | -     | -     | yes | -
sine       | gru  | lam 0      | 73.7   | 17.9  | -     | -     | yes | -
sine       | gru  | lam 1e-5   | 51.9   | 10.2  | -     | -     | yes | -
sine       | gru  | lam 1e-4   | 23.5   | 6.2   | -     | -     | yes | -
sine-0.5ms | lstm |            | 200    | 0     | -     | -     | yes | -
sine-0.5ms | lstm | lam 0      | 147.9  | 27.0  | -     | -     | yes | -
sine-0.5ms | lstm | lam 1e-5   | 50.7   | 16.8  | -     | -     | yes | -
sine-0.5ms | lstm | lam 1e-4   | 19.9   | 1.5   | -     | -     | yes | -
sine-0.5ms | gru  |            | 200    | 0     | -     | -     | yes | -
sine-0.5ms | gru  | lam 0      | 167.0  | 18.3  | -     | -     | yes | -
sine-0.5ms | gru  | lam 1e-5   | 54.2   | 4.4   | -     | -     | yes | -
sine-0.5ms | gru  | lam 1e-4   | 22.5   | 2.1   | -     | -     | yes | -
mnist      | lstm |            | 784    | 0     | 0.910 | 0.045 | -   | 3.83e7
mnist      | lstm | lam 1e-4   | 379.38 | 33.09 | 0.973 | 0.002 | -   | 1.86e7
mnist      | lstm | p_skip 0.5 | 392.03 | -     | 0.893 | 0.003 | -   | 1.91e7
mnist      | gru  |            | 784    | 0     | 0.968 | 0.013 | -   | 2.87e7
mnist      | gru  | lam 1e-4   | 392.62 | 26.48 | 0.976 | 0.003 | -   | 1.44e7
mnist      | gru  | p_skip 0.5 | 391.86 | -     | 0.912 | 0.004 | -   | 1.44e7
imdb       | lstm |            | 200    | 0     | 0.843 | 0.003 | -   | -
imdb       | lstm | lam 0      | 196.75 | 5.63  | 0.844 | 0.004 | -   | -
imdb       | lstm | lam 1e-5   | 197.15 | 3.16  | 0.846 | 0.004 | -   | -
imdb       | lstm | lam 1e-4   | 164.65 | 8.67  | 0.837 | 0.006 | -   | -
imdb       | lstm | lam 1e-3   | 73.85  | 1.90  | 0.811 | 0.007 | -   | -
imdb       | gru  |            | 200    | 0     | 0.845 | 0.006 | -   | -
imdb       | gru  | lam 0      | 200.00 | -     | 0.848 | 0.002 | -   | -
imdb       | gru  | lam 1e-5   | 199.25 | 1.30  | 0.842 | 0.005 | -   | -
imdb       | gru  | lam 1e-4   | 180.97 | 8.90  | 0.834 | 0.006 | -   | -
imdb       | gru  | lam 1e-3   | 106.15 | 37.92 | 0.800 | 0.007 | -   | -
imdb-400   | lstm |            | 400    | 0     | 0.868 | 0.004 | -   | -
imdb-400   | lstm | lam 0      | 369.70 | 19.35 | 0.866 | 0.004 | -   | -
imdb-400   | lstm | lam 1e-5   | 380.62 | 18.20 | 0.865 | 0.001 | -   | -
imdb-400   | lstm | lam 1e-4   | 186.30 | 25.72 | 0.862 | 0.003 | -   | -
imdb-400   | lstm | lam 1e-3   | 84.22  | 1.98  | 0.836 | 0.007 | -   | -
imdb-400   | gru  |            | 400    | 0     | 0.862 | 0.003 | -   | -
imdb-400   | gru  | lam 0      | 399.02 | 1.69  | 0.866 | 0.002 | -   | -
imdb-400   | gru  | lam 1e-5   | 398.00 | 2.06  | 0.862 | 0.008 | -   | -
imdb-400   | gru  | lam 1e-4   | 314.30 | 2.82  | 0.853 | 0.011 | -   | -
imdb-400   | gru  | lam 1e-3   | 99.12  | 2.69  | 0.814 | 0.005 | -   | -
ucf101     | lstm |            | 250    | -     | 0.671 | -     | -   | 9.52e11
ucf101     | lstm | lam 0      | 138.9  | -     | 0.749 | -     | -   | 5.29e11
ucf101     | lstm | lam 1e-5   | 24.2   | -     | 0.757 | -     | -   | 9.21e10
ucf101     | lstm | lam 1e-4   | 7.6    | -     | 0.790 | -     | -   | 2.89e10
ucf101     | gru  |            | 250    | -     | 0.791 | -     | -   | 9.51e11
ucf101     | gru  | lam 0      | 124.2  | -     | 0.796 | -     | -   | 4.73e11
ucf101     | gru  | lam 1e-5   | 29.7   | -     | 0.792 | -     | -   | 1.13e11
ucf101     | gru  | lam 1e-4   | 23.7   | -     | 0.793 | -     | -   | 9.02e10
"""

NUMBERS = {"adding": "5.1", "sine": "5.2", "mnist": "5.3", "imdb": "5.4", "ucf101": "5.5"}


@dataclass(frozen=True)
class DataSet:
    """What a table's models were trained on."""

    name: str  # of its file too
    task: str
    parameters: dict[str, Any] = field(default_factory=dict)  # of the task, where the paper says more than its default
    command: str = ""  # that makes the file, where it is not drawn at random
    classes: int | None = None  # how many, where the task does not say it

    def synthetic_task(self) -> SyntheticTask | None:
        """The task that draws it; None where it is not drawn."""
        task = TASKS[self.task]
        return task(**self.parameters) if issubclass(task, SyntheticTask) else None

    def matches(self, name: str, attributes: dict[str, Any]) -> bool:
        """Whether data with these attributes is this; what is not drawn must be called so too, in a file or a table.

        Features of a network that was not trained are not.
        """
        task = self.synthetic_task()
        wanted = self.parameters if task is None else task.parameters()
        same = all(attributes.get(parameter) == value for parameter, value in wanted.items())
        same &= self.classes is None or self.classes == len(json.loads(attributes.get("classes", "[]")))
        same &= not is_untrained(attributes)
        return same and (task is not None or name == self.name)


def is_untrained(attributes: dict[str, Any]) -> bool:
    """Whether data are features of a network whose weights are random."""
    return str(attributes.get("weights", "")).startswith("random:")


DATA_SETS = {
    data.name: data
    for data in (
        DataSet("adding", "adding", {"length": 50}),
        DataSet("sine", "sine", {"sampling_period": 1.0}),
        DataSet("sine-0.5ms", "sine", {"sampling_period": 0.5}),
        DataSet("mnist", "mnist", {"digits": "0123456789"}, "gen-data mnist"),
        DataSet("mnist-17", "mnist", {"digits": "17"}, "gen-data mnist --digits 17"),
        DataSet("mnist-56", "mnist", {"digits": "56"}, "gen-data mnist --digits 56"),
        DataSet("imdb", "imdb", {"length": 200}, "gen-data imdb --length 200"),
        DataSet("imdb-400", "imdb", {"length": 400}, "gen-data imdb --length 400"),
        DataSet("ucf101", "ucf101", {"fps": 25.0, "steps": 250, "network": "resnet50"}, "extract-features ucf101", 101),
    )
}


@dataclass(frozen=True)
class Row:
    """A model of a table, and the paper's result; None is what the paper does not give."""

    data: DataSet
    cell: str
    lam: float | None  # None: the gate is not learned
    p_skip: float | None
    used: float | None  # samples a sequence
    used_std: float | None
    metric: float | None  # accuracy; adding and sine are only said to be solved or not
    metric_std: float | None
    solved: bool | None
    cost: float | None  # multiply-accumulates a sequence


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper: the samples that a model uses, or how models learn."""

    number: str
    data: DataSet
    models: tuple[tuple[str, float | None], ...]  # cell and λ, None where the gate is not learned
    examples: int | None  # sequences whose used samples are drawn; None: curves of learning, over all seeds


FIGURES: dict[str, tuple[PaperFigure, ...]] = {
    "adding": tuple(
        PaperFigure(number, DATA_SETS["adding"], (("gru", 1e-5),), examples)
        for number, examples in (("5.1", 1), ("A.1", 10))
    ),
    "sine": (PaperFigure("A.2", DATA_SETS["sine-0.5ms"], (("lstm", 1e-4),), 10),),
    "mnist": (
        PaperFigure("5.2", DATA_SETS["mnist"], (("gru", None), ("gru", 1e-4)), None),
        *(PaperFigure("5.3", DATA_SETS[name], (("lstm", 1e-4),), 10) for name in ("mnist", "mnist-17", "mnist-56")),
    ),
    "imdb": (),
    "ucf101": (PaperFigure("5.4", DATA_SETS["ucf101"], tuple(("lstm", lam) for lam in (None, 0.0, 1e-5, 1e-4)), None),),
}


def only_in_figures(task: str) -> list[Row]:
    """The models that a task's figures show and its table lacks.

    Args:
        task: a key of FIGURES.
    """
    known = {(row.data.name, row.cell, row.lam) for row in table(task) if row.p_skip is None}
    return [
        Row(figure.data, cell, lam, *[None] * 7)
        for figure in FIGURES[task]
        for cell, lam in figure.models
        if (figure.data.name, cell, lam) not in known
    ]


def table(task: str) -> list[Row]:
    """The rows of a task's table.

    Args:
        task: a key of NUMBERS.
    """
    rows = [[cell.strip() for cell in line.split("|")] for line in _RESULTS.strip().splitlines()]
    return [_row(cells) for cells in rows if DATA_SETS[cells[0]].task == task]


def _row(cells: list[str]) -> Row:
    data, cell, gate, used, used_std, metric, metric_std, solved, cost = cells
    kind, _, value = gate.partition(" ")
    return Row(
        DATA_SETS[data], cell, float(value) if kind == "lam" else None, float(value) if kind == "p_skip" else None,
        _number(used), _number(used_std), _number(metric), _number(metric_std),
        {"yes": True, "no": False, "-": None}[solved], _number(cost),
    )  # fmt: skip


def _number(text: str) -> float | None:
    return None if text == "-" else float(text)
