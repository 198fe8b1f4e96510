"""Texts of any length as chunks of 75 ids with weights. Needs no MLX.

The reference is A1111's modules/sd_hijack_clip.py, tokenize_line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .prompt import StepText
from .tokenizer import Tokenizer

COMMA_BACKTRACK = 20  # a full chunk ends after the last comma within this many ids


@dataclass
class Chunk:
    """Up to 75 ids without start, end and padding, and their weights."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def split_after_comma(self, comma: int) -> Chunk:
        """Remove and return what follows the last comma, if there is one among the last ids."""
        for place in range(len(self.ids) - 1, max(len(self.ids) - COMMA_BACKTRACK, 0) - 1, -1):
            if self.ids[place] == comma:
                rest = Chunk(self.ids[place + 1 :], self.weights[place + 1 :])
                del self.ids[place + 1 :], self.weights[place + 1 :]
                return rest
        return Chunk()


def chunks_of(text: StepText, tokenizer: Tokenizer) -> list[Chunk]:
    """A text -> at least one chunk.

    A full chunk ends after the last comma among its last 20 ids, if there is one; BREAK ends it early. An embedding's
    ids stay together.
    """
    room = tokenizer.max_length - 2
    (comma,) = tokenizer.encode(",")
    chunks: list[Chunk] = []
    for stretch in text.stretches:
        chunks.append(Chunk())
        for part in stretch:
            for word in _words(tokenizer.encode(part.text), tokenizer):
                if len(chunks[-1].ids) == room and word != [comma]:
                    chunks.append(chunks[-1].split_after_comma(comma))
                if len(chunks[-1].ids) + len(word) > room:
                    chunks.append(Chunk())
                chunks[-1].ids += word
                chunks[-1].weights += [part.weight] * len(word)
    if len(chunks) > 1 and not chunks[-1].ids:  # nothing follows the last BREAK
        chunks.pop()
    return chunks


def _words(ids: list[int], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids one by one, an embedding's together unless they exceed a chunk."""
    place = 0
    while place < len(ids):
        length = tokenizer.word_length(ids[place])
        length = length if length <= tokenizer.max_length - 2 else 1
        yield ids[place : place + length]
        place += length


def framed(chunks: list[Chunk], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's input: ids (N, 77) int32 with start, end and padding, and their weights, float32."""
    ids = np.full((len(chunks), tokenizer.max_length), tokenizer.pad_id, np.int32)
    weights = np.ones(ids.shape, np.float32)
    for row, row_weights, chunk in zip(ids, weights, chunks, strict=True):
        row[: len(chunk.ids) + 2] = [tokenizer.bos_id, *chunk.ids, tokenizer.eos_id]
        row_weights[1 : len(chunk.ids) + 1] = chunk.weights
    return ids, weights
