"""Texts as numbers of words."""

import hashlib
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

TOKENIZER = "words-1"
PADDING, UNKNOWN = 0, 1  # numbers of words; the vocabulary starts after them
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_TAG = re.compile(r"<[^<>]*>")


def tokenize(text: str) -> list[str]:
    """The tokeniser "words-1": tags out, lower case, runs of letters and digits with the apostrophes inside them."""
    return _WORD.findall(_TAG.sub(" ", text).replace("’", "'").lower())


def digest_of_words(words: Sequence[str]) -> str:
    """The SHA-256 of a vocabulary by its numbers, the two that are none first."""
    return hashlib.sha256("\n".join(words[UNKNOWN + 1 :]).encode("utf-8", "surrogatepass")).hexdigest()


def numbers_of_text(text: str, numbers: Mapping[str, int], length: int, *, pads: bool) -> Tensor:
    """A text as the numbers of its first words.

    Args:
        text: may hold tags.
        numbers: of the words that are known.
        length: words, at most.
        pads: a shorter text is padded at its front.

    Returns:
        (T,) int32; without ``pads`` it has no number where the text has no words.
    """
    x = torch.tensor([numbers.get(word, UNKNOWN) for word in tokenize(text)[:length]], dtype=torch.int32)
    return pad(x, (length - len(x), 0), value=PADDING) if pads and len(x) else x
