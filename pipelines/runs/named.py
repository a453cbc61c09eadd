"""Models with a name: small run directories that came with the package, or were fetched.

model.json    how good the model is, and how it was trained
the others    as in a run (directory.py), but that the data file is where `skiprnn gen-data` puts it

What is here imports neither torch nor ``skiprnn``, which does, so that models are listed at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.doors import read_json, reading
from pipelines.data.fields import check_fields
from pipelines.errors import SkipRNNError

RECORD = "model.json"
RECORD_BYTES = 2**20  # at most
SHIPPED = Path(__file__).parents[2] / "skiprnn" / "models"


@dataclass(frozen=True)
class Trained:
    """How a model was trained."""

    command: str  # that trains one like it
    date: str | None  # when it began; None where that was not recorded, as below
    steps: int  # to the checkpoint
    seconds: float
    skiprnn: str | None
    torch: str | None


@dataclass(frozen=True)
class ModelRecord:
    """What model.json says: the model on the test split of its data."""

    task: str
    model: str
    metric_name: str
    metric: float
    used_samples: float  # a sequence
    given_samples: float  # a sequence
    sequences: int
    trained: Trained


@dataclass(frozen=True)
class ListedModel:
    """A model that is here."""

    name: str
    path: str
    fetched: bool  # or it came with the package
    bytes: int
    record: ModelRecord


def folders() -> tuple[Path, Path]:
    """As ``skiprnn.models.folders``."""
    return SHIPPED, Path(os.environ.get("SKIPRNN_MODELS") or os.path.expanduser("~/.cache/skiprnn/models"))


def list_models() -> list[ListedModel]:
    """The models that are here, by name.

    Raises:
        SkipRNNError: the record of one is missing or damaged.
    """
    paths = {config.parent.name: config.parent for f in reversed(folders()) for config in f.glob("[!.]*/config.json")}
    return [
        ListedModel(name, str(path), path.parent != SHIPPED, _size(path), read_record(path))
        for name, path in sorted(paths.items())
    ]


def is_model(run: Path) -> bool:
    """Whether a run directory is that of a model, which is only to be read."""
    return (Path(run) / RECORD).exists()


def read_record(model: Path) -> ModelRecord:
    """What a model's record says.

    Raises:
        SkipRNNError: it is missing or damaged.
    """
    path, remedy = Path(model) / RECORD, f"fetch {model.name} again, or remove {model}"
    content = read_json(path, dict, remedy, limit=RECORD_BYTES)
    with reading(path, "the record of a model", remedy):
        trained = content.get("trained")
        if not isinstance(trained, dict):
            raise ValueError("it does not say how the model was trained")
        check_fields(Trained, trained)
        content["trained"] = Trained(**trained)
        check_fields(ModelRecord, content)
        return ModelRecord(**content)


def refuse_training(run: Path) -> None:
    """Refuse to train a model further, whose optimizer is not there.

    Raises:
        SkipRNNError: it is one.
    """
    if is_model(run):
        raise SkipRNNError(
            f"{run.name} is a model that is ready, with nothing to resume; train one like it with "
            f"`{read_record(run).trained.command}`, or fine-tune it in Python: skiprnn.load"
        )


def _size(model: Path) -> int:
    return sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
