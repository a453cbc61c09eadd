"""``predict``: what a trained run says of one sequence, reading only the samples it uses."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from pipelines.data import doors
from pipelines.data.samples import (
    ARRAYS,
    IMAGES,
    Source,
    csv_source,
    image_source,
    open_sources,
    sequence_sources,
)
from pipelines.data.schema import FEATURES, schema_of
from pipelines.data.sequences import SPLITS, Sequences
from pipelines.errors import SkipRNNError
from pipelines.runs.directory import load_words
from pipelines.runs.evaluation import TrainedModel, load_model
from pipelines.runs.model import stream, without_skipping
from pipelines.tasks import Imdb, Mnist, Videos, load_data
from pipelines.tasks.imdb import PADDING, UNKNOWN, tokenize
from pipelines.tasks.mnist import SIDE
from pipelines.video.listing import SUFFIXES
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
    numeric_header: bool  # whether a first line 0,1,... was passed over as names of columns


@dataclass(frozen=True)
class VideoPrediction(Prediction):
    """What the model says of a video, whose steps past the end it may read as absent."""

    frames_used: int  # that went through the network
    frames: int  # there are
    answer_with_every_frame: dict[str, Any] | None = None  # of the same weights with the gate always open
    seconds_with_every_frame: float | None = None


class Predictor:
    """A trained run that predicts, one sequence at a time."""

    def __init__(
        self,
        run: Path,
        *,
        checkpoint: str = "best",
        device: str | None = "cpu",
        weights: str | None = None,
        compare: bool = False,
    ) -> None:
        """Load a run.

        Args:
            run: the run directory.
            checkpoint: "best" or "last".
            device: where to run it.
            weights: of the network that looks at video frames, where they are not to be had from where they came.
            compare: predict on videos with every frame used, too.

        Raises:
            SkipRNNError: it cannot be read, or skips at random.
        """
        self._weights, self._compare = weights, compare
        self._network: Any = None  # that looks at video frames
        self._run = Path(run)
        self._numbers: dict[str, int] | None = None  # of words
        self._model: TrainedModel = load_model(run, checkpoint=checkpoint, device=device)
        self._stream: Stream = stream(self._model.model)

    def file(
        self, path: Path, *, dataset: str | None = None, index: int | None = None, header: bool | None = None
    ) -> Iterator[Prediction]:
        """Predict on the sequences of a file, or on one of them, counted from 0.

        Args:
            path: what the task takes: an image for MNIST, a text for IMDB; one of the project's data files; or else
                what ``inputs.open_sources`` reads.
            dataset: which array of an .npz or HDF5 file; in a data file, by default ``test/x``.
            index: which of several sequences.
            header: whether a CSV file begins with one; None follows the rule of ``inputs.csv_source``.
        """
        task = self._model.task
        if isinstance(task, Videos) and Path(path).suffix.lower() in SUFFIXES:
            if index or dataset is not None:
                raise SkipRNNError(f"{path} is one video; drop --dataset and --index")
            yield self._video(Path(path), task)
            return
        if self._compare:
            raise SkipRNNError("only a video can be compared with every frame used; drop --compare")
        with self._open(Path(path), dataset, index, header) as sources:
            yield from map(self._predict, sources)

    @contextmanager
    def _open(
        self, path: Path, dataset: str | None, index: int | None, header: bool | None
    ) -> Iterator[Iterable[Source]]:
        task = self._model.task
        if os.path.isfile(path) and (schema := schema_of(path)):
            split = (dataset or "test/x").strip("/").partition("/")[0]
            if split not in SPLITS:
                raise SkipRNNError(
                    f"{path} has the datasets {', '.join(f'{name}/x' for name in SPLITS)}, not {dataset}"
                )
            rows = None if index is None else slice(index, index + 1)
            _, data = load_data(path, task, (split,), true_lengths=self._model.config.true_lengths, rows=rows)
            name = f"{path}:{split}/x"
            if schema == FEATURES:
                yield _chosen(sequence_sources(data.splits[split], name), index, path)
            else:
                yield sequence_sources(data.splits[split], name, index)
            return
        if isinstance(task, Mnist) and path.suffix.lower() in IMAGES:
            sources: Sequence[Source] = [image_source(path, SIDE)]
        elif isinstance(task, Imdb) and path.suffix.lower() not in ARRAYS:
            review = doors.read_bytes(path, "name a text file, or - for standard input").decode("utf-8", "replace")
            sources = [self.text(review, str(path))]
        else:
            with open_sources(path, task.stored_size, dataset, header) as sources:
                yield _chosen(sources, index, path)
            return
        yield _chosen(sources, index, path)

    @property
    def reads_text(self) -> bool:
        """Whether a sequence is a text, not rows of numbers."""
        return isinstance(self._model.task, Imdb)

    def text(self, text: str, name: str) -> Source:
        """A text as the words the model was trained on, cropped, and padded if it was trained on padding."""
        task = self._model.task
        assert isinstance(task, Imdb)
        if self._numbers is None:
            words = load_words(self._run)
            if task.digest_of(words) != task.vocabulary_sha256:
                raise SkipRNNError(
                    f"{self._run / 'words.txt'} was edited since the run was trained; `skiprnn train --resume "
                    f"{self._run}` restores it"
                )
            self._numbers = {word: number for number, word in enumerate(words) if word}
        words = tokenize(text)[: task.length]
        if not words:
            raise SkipRNNError(f"{name} holds no words")
        x = torch.tensor([[self._numbers.get(word, UNKNOWN) for word in words]], dtype=torch.int32)
        if not self._model.config.true_lengths:
            x = pad(x, (task.length - len(words), 0), value=PADDING)
        return sequence_sources(Sequences(x, torch.zeros(1)), name)[0]

    def read_text(self, text: str, name: str) -> Prediction:
        """Predict on a text."""
        return self._predict(self.text(text, name))

    def rows(self, lines: Iterable[str], name: str, header: bool | None = None) -> Iterator[Answer | Prediction]:
        """Predict on CSV rows as they arrive: an answer after each row that is used, and the prediction at the end."""
        source = csv_source(lines, self._model.task.stored_size, name, header)
        start = time.perf_counter()
        self._stream.reset()
        for step, output in self._stream.pull(source.read):
            yield Answer(step, self._model.task.answer(output))
        given = source.count()
        yield self._prediction(source, given, start)

    def _video(self, path: Path, task: Videos) -> VideoPrediction:
        from pipelines.video.lookup import every_frame, network_of, open_video

        if self._network is None:
            self._network = network_of(task, self._weights, self._model.device)
        pads = not self._model.config.true_lengths
        start = time.perf_counter()
        with open_video(path, task, self._network, pads=pads) as video:
            self._stream.reset()
            self._stream.run(video.read)
            answer = task.answer(self._stream.prediction)
            seconds = time.perf_counter() - start
            count, frames = video.count(), video.frames()
        used = self._stream.used
        said = VideoPrediction(str(path), answer, used, count, seconds, False, video.frames_used, frames)
        if not self._compare:
            return said
        plain = without_skipping(self._model.model).eval()
        start = time.perf_counter()
        features = torch.from_numpy(every_frame(path, task, self._network, pads=pads)).to(self._model.device)
        with torch.inference_mode():
            answer = task.answer(plain(features[None]).output[0].cpu())
        return replace(
            said, answer_with_every_frame=answer, seconds_with_every_frame=time.perf_counter() - start
        )  # fmt: skip

    def _predict(self, source: Source) -> Prediction:
        start = time.perf_counter()
        self._stream.reset()
        self._stream.run(source.read)
        return self._prediction(source, source.count(), start)

    def _prediction(self, source: Source, given: int, start: float) -> Prediction:
        answer = self._model.task.answer(self._stream.prediction)
        return Prediction(
            source.name, answer, self._stream.used, given, time.perf_counter() - start, source.numeric_header
        )


def _chosen(sources: Sequence[Source], index: int | None, path: Path) -> Sequence[Source]:
    if index is None:
        return sources
    if index >= len(sources):
        raise SkipRNNError(f"{path} holds {len(sources):,} sequences, so --index goes up to {len(sources) - 1}")
    return [sources[index]]
