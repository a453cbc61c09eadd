"""A sweep from Python: each cell with each λ, trained, evaluated, and as a table.

python examples/sweep.py OUT [STEPS [JOBS]]

Called again with the same OUT it takes what is done from there. `skiprnn sweep` does the same on the command line.
"""

import sys
from pathlib import Path

from pipelines.grids.results import lines_of, markdown
from pipelines.grids.sweep import evaluate_all, grid, in_turn, local, plan, train_all
from pipelines.runs.config import TrainConfig
from pipelines.sources.synthetic import generate
from pipelines.tasks import Adding


def configurations(data: Path, steps: int) -> list[TrainConfig]:
    return grid(
        "adding", "quick", cells=["lstm", "gru"], lams=[None, 1e-4], seeds=[0], data=str(data.absolute()), steps=steps,
        hidden_size=32, eval_every=max(steps // 4, 1), device="cpu",
    )  # fmt: skip


def main(out: Path, steps: int = 200, jobs: int = 2) -> None:
    data = out / "adding.h5"
    if not data.exists():
        generate(Adding(length=20), data, {"train": 2_000, "val": 200, "test": 200}, seed=0)
    runs = plan(out.absolute(), configurations(data, steps))
    failed = train_all(
        runs,
        in_turn if jobs == 1 else local(jobs),
        lambda run, reason: print(f"{run.path.name}: {reason or 'done'}", file=sys.stderr),
    )
    print(markdown(lines_of(evaluate_all(runs, failed))), end="")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
