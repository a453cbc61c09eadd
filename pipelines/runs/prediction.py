"""``predict``: what a trained run says of one sequence, reading only the samples it uses."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipelines.data.samples import Source, csv_source, sequence_sources
from pipelines.data.schema import FEATURES, schema_of
from pipelines.data.sequences import SPLITS
from pipelines.errors import SkipRNNError
from pipelines.runs.directory import load_words
from pipelines.runs.load import TrainedModel, load_model
from pipelines.runs.model import stream, without_skipping
from pipelines.sources.own.folder import TABLE, labels_of
from pipelines.tasks import load_data
from pipelines.tasks.base import Reading
from skiprnn import Stream
from skiprnn.gate import NEVER


@dataclass(frozen=True)
class Input:
    """A file to predict on."""

    path: Path
    label: str | None = None  # that the folder it was found in has for it


@dataclass(frozen=True)
class Answer:
    """What the model said after a sample it used; it stands until the next."""

    sequence: str  # where it came from
    step: int  # the sample's number in its sequence
    until: int | None  # that of the next sample that will be used, if the sequence is as long; None: none will
    answer: dict[str, Any]
    truth: dict[str, Any] | None  # what it should be, where that is known


@dataclass(frozen=True)
class Prediction:
    """What the model says of a whole sequence, or of its last step where each has an answer."""

    sequence: str  # where it came from
    answer: dict[str, Any]
    truth: dict[str, Any] | None  # what it should be, where that is known
    used: int  # samples read
    given: int
    seconds: float  # reading included
    numeric_header: bool  # whether a first line 0,1,... was passed over as names of columns
    columns_reordered: bool  # whether its columns stood in another order than the run reads them in
    columns_left_out: tuple[str, ...]  # which hold labels, not samples


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
        self._compare = compare
        self._model: TrainedModel = load_model(run, checkpoint=checkpoint, device=device)
        self._stream: Stream = stream(self._model.model)
        self._reading = Reading(
            Path(run), cache(lambda: load_words(run)), self._model.config.true_lengths, self._model.device, weights
        )

    def inputs(self, paths: Iterable[Path]) -> list[Input]:
        """The files themselves, and of folders those in and below them whose names end as what the task takes does.

        The label of a file in a folder is that of the folder's ``labels.csv``, or else the name of the folder it lies
        in, where that is a class; that of a file by itself is that of the ``labels.csv`` beside it.

        Raises:
            SkipRNNError: a folder holds no such file, or its table cannot be read.
        """
        found: list[Input] = []
        beside = cache(_labels_beside)
        for path in map(Path, paths):
            found += self._in_folder(path) if path.is_dir() else [Input(path, beside(path.parent).get(path.name))]
        return found

    def _in_folder(self, folder: Path) -> list[Input]:
        endings, labels = self._model.task.file_endings, labels_of(folder)
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in endings
            and path.name != TABLE
            and not path.name.startswith(".")
            and path.is_file()
        )
        if not files:
            raise SkipRNNError(f"{folder} holds no file to predict on, whose name would end in {', '.join(endings)}")
        return [Input(path, labels.get(path.relative_to(folder).as_posix(), path.parent.name)) for path in files]

    def file(
        self,
        path: Path,
        *,
        dataset: str | None = None,
        index: int | None = None,
        header: bool | None = None,
        label: str | None = None,
    ) -> Iterator[Answer | Prediction]:
        """Predict on the sequences of a file, or on one of them, counted from 0.

        Where each step has an answer there is one after each sample used, and the prediction at the end.

        Args:
            path: what the task takes: an image for MNIST, a text for IMDB; one of the project's data files; or else
                what ``samples.open_sources`` reads.
            dataset: which array of an .npz or HDF5 file; in a data file, by default ``test/x``.
            index: which of several sequences.
            header: whether a CSV file begins with one; None follows the rule of ``samples.csv_source``.
            label: what it is, if that is known; one that says nothing to the task is passed over.
        """
        with self._open(Path(path), dataset, index, header) as sources:
            for source in sources:
                yield from self._predict(source, label)

    @contextmanager
    def _open(
        self, path: Path, dataset: str | None, index: int | None, header: bool | None
    ) -> Iterator[Iterable[Source]]:
        if not (schema := schema_of(path)):
            with self._model.task.open(path, replace(self._reading, dataset=dataset, header=header)) as sources:
                yield _chosen(sources, index, path)
            return
        split = (dataset or "test/x").strip("/").partition("/")[0]
        if split not in SPLITS:
            raise SkipRNNError(f"{path} has the datasets {', '.join(f'{name}/x' for name in SPLITS)}, not {dataset}")
        rows = None if index is None else slice(index, index + 1)
        _, data = load_data(path, self._model.task, (split,), true_lengths=self._reading.true_lengths, rows=rows)
        name = f"{path}:{split}/x"
        if schema == FEATURES:
            yield _chosen(sequence_sources(data.splits[split], name), index, path)
        else:
            yield sequence_sources(data.splits[split], name, index, reordered=data.reordered)

    @property
    def each_step(self) -> bool:
        """Whether each sample used has an answer."""
        return self._model.task.each_step

    @property
    def reads_text(self) -> bool:
        """Whether a sequence is a text, not rows of numbers."""
        return self._model.task.reads_text

    def text(self, text: str, name: str) -> Prediction:
        """Predict on a text."""
        return self._predict_whole(self._model.task.text(text, name, self._reading))

    def rows(self, lines: Iterable[str], name: str, header: bool | None = None) -> Iterator[Answer | Prediction]:
        """Predict on CSV rows as they arrive: an answer after each row that is used, and the prediction at the end."""
        task = self._model.task
        yield from self._follow(csv_source(lines, task.stored_size, name, header, task.columns, task.label_columns))

    def _follow(self, source: Source, label: str | None = None) -> Iterator[Answer | Prediction]:
        start = time.perf_counter()
        self._stream.reset()
        for step, output in self._stream.pull(source.read):
            skipped = self._stream.skip_next
            until = None if skipped == NEVER else step + 1 + skipped
            truth = self._truth(source, label, step) if self.each_step else None
            yield Answer(source.name, step, until, self._model.task.answer(output), truth)
        yield self._prediction(source, start, label)

    def _predict(self, source: Source, label: str | None) -> Iterator[Answer | Prediction]:
        if self.each_step and not self._compare:
            yield from self._follow(source, label)
        else:
            yield self._predict_whole(source, label)

    def _predict_whole(self, source: Source, label: str | None = None) -> Prediction:
        if self._compare and source.every is None:
            raise SkipRNNError("only a video can be compared with every frame used; drop --compare")
        start = time.perf_counter()
        self._stream.reset()
        self._stream.run(source.read)
        said = self._prediction(source, start, label)
        if source.frames is None:
            return said
        frames_used, frames = source.frames()
        compared = self._with_every_sample(source.every) if self._compare and source.every else {}
        return VideoPrediction(**vars(said), frames_used=frames_used, frames=frames, **compared)

    def _with_every_sample(self, read: Callable[[], Any]) -> dict[str, Any]:
        plain = without_skipping(self._model.model).eval()
        start = time.perf_counter()
        samples = torch.from_numpy(read()).to(self._model.device)
        with torch.inference_mode():
            answer = self._model.task.answer(plain(samples[None]).output[0].cpu())
        return {"answer_with_every_frame": answer, "seconds_with_every_frame": time.perf_counter() - start}

    def _prediction(self, source: Source, start: float, label: str | None) -> Prediction:
        answer = self._model.task.answer(self._stream.prediction)
        seconds = time.perf_counter() - start  # of a video, whose other frames are decoded to be counted
        given = source.count()
        seconds = time.perf_counter() - start if source.frames is None else seconds
        truth = self._truth(source, label, given - 1)
        return Prediction(
            source.name, answer, truth, self._stream.used, given, seconds, source.numeric_header, source.reordered,
            source.left_out,
        )  # fmt: skip

    def _truth(self, source: Source, label: str | None, step: int) -> dict[str, Any] | None:
        """What the model should say of a sequence, or of one of its steps."""
        task, target = self._model.task, source.target
        if target is None:
            return None if label is None or self.each_step else task.labelled(label)
        if not self.each_step:
            return task.truth(target)
        return task.truth(target[step]) if step >= 0 else None


def _labels_beside(folder: Path) -> dict[str, str]:
    """The labels of a folder that was not asked for, whose table may be anything."""
    try:
        return labels_of(folder)
    except SkipRNNError:
        return {}


def _chosen(sources: Sequence[Source], index: int | None, path: Path) -> Sequence[Source]:
    if index is None:
        return sources
    if index >= len(sources):
        if len(sources) == 1:
            raise SkipRNNError(f"{path} holds one sequence; drop --index")
        raise SkipRNNError(f"{path} holds {len(sources):,} sequences, so --index goes up to {len(sources) - 1}")
    return [sources[index]]
