"""``predict``: what a trained run says of one sequence, reading only the samples it uses."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.errors import SkipRNNError
from pipelines.evaluation import TrainedModel, load_model
from pipelines.inputs import Source, csv_source, open_sources
from pipelines.model import stream
from skiprnn import Stream


@dataclass(frozen=True)
class Answer:
    """What the model said after a sample it used."""

    step: int  # the sample's number in its sequence
    answer: dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What the model says of a whole sequence."""

    sequence: str  # where it came from
    answer: dict[str, Any]
    used: int  # samples read
    given: int
    seconds: float  # reading included


class Predictor:
    """A trained run that predicts, one sequence at a time."""

    def __init__(self, run: Path, *, checkpoint: str = "best", device: str | None = "cpu") -> None:
        """Load a run.

        Raises:
            SkipRNNError: it cannot be read, or skips at random.
        """
        self._model: TrainedModel = load_model(run, checkpoint=checkpoint, device=device)
        self._stream: Stream = stream(self._model.model)

    def file(self, path: Path, *, dataset: str | None = None, index: int | None = None) -> Iterator[Prediction]:
        """Predict on the sequences of a file, or on one of them, counted from 0; see ``inputs.open_sources``."""
        with open_sources(path, self._model.task.input_size, dataset) as sources:
            if index is not None and not 0 <= index < len(sources):
                raise SkipRNNError(f"{path} holds {len(sources)} sequences, so --index goes up to {len(sources) - 1}")
            for source in sources if index is None else [sources[index]]:
                yield self._predict(source)

    def rows(self, lines: IO[str], name: str) -> Iterator[Answer | Prediction]:
        """Predict on CSV rows as they arrive: an answer after each row that is used, and the prediction at the end."""
        source = csv_source(lines, self._model.task.input_size, name)
        start = time.perf_counter()
        self._stream.reset()
        for step, output in self._stream.pull(source.read):
            yield Answer(step, self._model.task.answer(output))
        given = source.count()
        yield self._prediction(source, given, start)

    def _predict(self, source: Source) -> Prediction:
        start = time.perf_counter()
        self._stream.reset()
        self._stream.run(source.read)
        return self._prediction(source, source.count(), start)

    def _prediction(self, source: Source, given: int, start: float) -> Prediction:
        answer = self._model.task.answer(self._stream.prediction)
        return Prediction(source.name, answer, self._stream.used, given, time.perf_counter() - start)
