"""The IMDB task: is a film review positive?"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.data import doors
from pipelines.data.samples import ARRAYS, Source, sequence_sources
from pipelines.data.sequences import Sequences, Split
from pipelines.errors import SkipRNNError
from pipelines.tasks.base import FORMATS, PAGE, ClassificationTask, Reading, Usage
from skiprnn.words import PADDING, TOKENIZER, UNKNOWN, digest_of_words, numbers_of_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.tasks.drawing import Text


@dataclass(frozen=True)
class Imdb(ClassificationTask):
    """The first words of a review as numbers, embedded by vectors that are trained too.

    Longer reviews are cropped; shorter ones are padded at their front, and the padding (zero vectors) is read like
    words, as the paper counts it, unless the run asks for true lengths.

    Source: Campos et al., ICLR 2018, section 4.4; Maas et al., 2011.
    """

    length: int = 200  # words
    dimensions: int = 300  # of a word's vector
    vocabulary: int = 2  # words, with padding and the unknown one
    vocabulary_sha256: str = ""
    tokenizer: str = TOKENIZER

    name = "imdb"
    classes = ("negative", "positive")
    signal_name = "word"
    meaning = ("length", "vocabulary_sha256", "tokenizer")
    reads_text = True
    file_endings = (".txt", *ARRAYS)
    usage_formats = (*FORMATS, PAGE)

    def __post_init__(self) -> None:
        if min(self.length, self.dimensions) < 1 or not 2 <= self.vocabulary < 2**31:
            raise SkipRNNError(f"imdb needs a length and dimensions of 1 or more, got {self.length}, {self.dimensions}")
        if self.tokenizer != TOKENIZER:
            raise SkipRNNError(f"unknown tokeniser {self.tokenizer}; this skiprnn has {TOKENIZER}")

    stored_size = 1

    @property
    def input_size(self) -> int:
        """Numbers of a word's vector."""
        return self.dimensions

    def embedding(self) -> nn.Module:
        return nn.Embedding(self.vocabulary, self.dimensions, padding_idx=PADDING)

    @torch.no_grad()
    def initialize(self, embedding: nn.Module, extra: dict[str, npt.NDArray[Any]]) -> None:
        assert isinstance(embedding, nn.Embedding)
        vectors = extra.get("vectors")
        if vectors is None or vectors.dtype != np.float32 or vectors.shape != embedding.weight.shape:
            raise SkipRNNError(f"the data holds no vectors of shape {tuple(embedding.weight.shape)}; generate it again")
        if not np.isfinite(vectors).all():
            raise SkipRNNError("a vector of the data holds NaN or infinity; generate it again")
        embedding.weight.copy_(torch.from_numpy(vectors))

    def with_padding(self, sequences: Split) -> Split:
        assert isinstance(sequences, Sequences)
        if sequences.lengths is None:
            return sequences
        steps = sequences.x.shape[1]
        place = torch.arange(steps) - (steps - sequences.lengths[:, None])  # of the word, before the padding came
        x = sequences.x.gather(1, place.clamp(min=0)).where(place >= 0, PADDING)
        return Sequences(x, sequences.y)

    def check(self, sequences: Split) -> None:
        assert isinstance(sequences, Sequences)
        self.check_classes(sequences.y)
        x = sequences.x
        if x.dtype != torch.int32 or x.shape[1] != self.length or x.min() < 0 or x.max() >= self.vocabulary:
            raise SkipRNNError(f"x must hold {self.length} numbers of words a review, from 0 to {self.vocabulary - 1}")

    def signal(self, x: Tensor) -> Tensor:
        return (x != PADDING).float()

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[Sequence[Source]]:
        if path.suffix.lower() in ARRAYS:
            return super().open(path, reading)
        review = doors.read_bytes(path, "name a text file, or - for standard input").decode("utf-8", "replace")
        return nullcontext([self.text(review, str(path), reading)])

    def text(self, text: str, name: str, reading: Reading) -> Source:
        """A text as the words the run was trained on, cropped, and padded if it was trained on padding."""
        if "numbers" not in reading.kept:
            vocabulary = reading.words()
            self.check_words(vocabulary, reading.run)
            reading.kept["numbers"] = {word: number for number, word in enumerate(vocabulary) if word}
        x = numbers_of_text(text, reading.kept["numbers"], self.length, pads=not reading.true_lengths)
        if not len(x):
            raise SkipRNNError(f"{name} holds no words")
        return sequence_sources(Sequences(x[None], torch.zeros(1)), name, labelled=False)[0]

    def check_words(self, words: list[str], run: Path) -> None:
        if digest_of_words(words) != self.vocabulary_sha256:
            raise SkipRNNError(
                f"{run / 'words.txt'} was edited since the run was trained; `skiprnn train --resume {run}` restores it"
            )

    def draw_usage(self, usage: Usage) -> "Figure":
        from pipelines.tasks.drawing import texts

        return texts(self._texts(usage), usage.title)

    def usage_page(self, usage: Usage) -> str:
        from pipelines.tasks.drawing import page

        return page(self._texts(usage), usage.title)

    def _texts(self, usage: Usage) -> list["Text"]:
        words, found = usage.words(), []
        columns = (usage.rows, usage.said, usage.sequences.x.tolist(), usage.used.tolist())
        for row, said, x, gate in zip(*columns, strict=True):
            pairs = [
                (words[number] if number != UNKNOWN else "⟨?⟩", on)
                for number, on in zip(x, gate, strict=True)
                if number != PADDING
            ]
            padding = [on for number, on in zip(x, gate, strict=True) if number == PADDING]
            heading = f"#{row}: {said}; {sum(on for _, on in pairs)} of {len(pairs)} words used"
            if any(padding):
                heading += f", and {sum(padding)} of {len(padding)} of padding"
            found.append((heading, pairs))
        return found
