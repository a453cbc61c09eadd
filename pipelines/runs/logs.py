"""Where training logs its evaluations to, besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each is imported only where it is asked for. What goes wrong in one, such as in its network, ends that log, and never
the training.
"""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipelines.data.doors import read_json
from pipelines.data.files import write_json
from pipelines.errors import SkipRNNError
from pipelines.runs.config import TrainConfig
from pipelines.runs.directory import JSON_BYTES

PROJECT = "skiprnn"  # of W&B, or MLflow's experiment, unless the environment names another


class Log(Protocol):
    """A place for evaluations."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add the values of an evaluation, by names such as val/loss."""

    def close(self, reason: str) -> None:
        """Training has ended, and why; "failed" where an error ended it, or the log."""


class TensorBoard:
    """The folder ``tensorboard`` of the run."""

    def __init__(self, run: Path, config: TrainConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, reason: str) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, the same one when training goes on; its files in the folder ``wandb`` of the run."""

    def __init__(self, run: Path, config: TrainConfig, step: int) -> None:
        import wandb

        name = _remembered(run).get("wandb") if step else None
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.resolve().name,
            id=name or secrets.token_hex(8),
            resume="allow",
            dir=str(run),
            config=asdict(config),
        )
        _remember(run, "wandb", self._run.id)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self, reason: str) -> None:
        self._run.finish(exit_code=int(reason == "failed"))


class MLflow:
    """A run of MLflow, the same one when training goes on; MLFLOW_TRACKING_URI says where."""

    def __init__(self, run: Path, config: TrainConfig, step: int) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 take minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # s
        import mlflow

        self._mlflow: Any = mlflow
        known = _remembered(run).get("mlflow") if step else None
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(PROJECT)
        started = mlflow.start_run(run_id=known, run_name=None if known else run.resolve().name)
        if known is None:
            mlflow.log_params(asdict(config))
            _remember(run, "mlflow", started.info.run_id)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values, step=step)

    def close(self, reason: str) -> None:
        self._mlflow.end_run({"interrupted": "KILLED", "failed": "FAILED"}.get(reason, "FINISHED"))


KINDS: dict[str, type[TensorBoard] | type[WandB] | type[MLflow]] = {
    "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow,
}  # fmt: skip


def require(names: Iterable[str]) -> None:
    """Refuse a log whose package is not installed.

    Raises:
        SkipRNNError: naming it.
    """
    for name in names:
        if find_spec(name) is None:
            raise SkipRNNError(
                f"{name} is not installed; `pip install {name}`, or skiprnn's extra [{name}], or drop --log {name}"
            )


class Logs:
    """The logs that were asked for; none of them can stop training."""

    def __init__(self, names: Iterable[str], run: Path, config: TrainConfig, step: int) -> None:
        """Open them.

        Args:
            names: of ``KINDS``.
            run: the run directory.
            config: the run's.
            step: from which training goes on.

        Raises:
            SkipRNNError: a package is not installed.
        """
        names = list(dict.fromkeys(names))
        require(names)
        self._open: dict[str, Log] = {}
        self._failures: list[str] = []
        for name in names:
            try:
                self._open[name] = KINDS[name](run, config, step)
            except Exception as error:
                self._fail(name, error)

    def write(self, record: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl."""
        values = {f"{split}/{name}": value for split in ("train", "val") for name, value in record[split].items()}
        values |= {"lam": record["lam"]} if record.get("lam") is not None else {}
        for name, log in list(self._open.items()):
            try:
                log.write(record["step"], values)
            except Exception as error:
                del self._open[name]
                self._fail(name, error)
                with suppress(Exception):
                    log.close("failed")

    def close(self, reason: str) -> None:
        """Training has ended."""
        for name, log in self._open.items():
            try:
                log.close(reason)
            except Exception as error:
                self._fail(name, error)
        self._open = {}

    def failures(self) -> str | None:
        """What to say of logs that failed since this was last asked; None where none has."""
        said, self._failures = "; ".join(self._failures), []
        return said or None

    def _fail(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        self._failures.append(
            f"nothing more is logged to {name}, while training goes on and metrics.jsonl has all "
            f"({type(error).__name__}: {reason})"
        )


def _remembered(run: Path) -> dict[str, Any]:
    """What the logs call the run."""
    try:
        return read_json(run / "logs.json", dict, "", limit=JSON_BYTES)
    except SkipRNNError:  # there is none, or it is damaged: then a new run is begun there
        return {}


def _remember(run: Path, name: str, called: str) -> None:
    write_json(run / "logs.json", {**_remembered(run), name: called})
