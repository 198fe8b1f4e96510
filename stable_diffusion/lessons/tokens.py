"""The pieces of a prompt, and how each word is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .common import CLIP, EXAMPLE, prompt_of
from .lesson import Block, Lesson, Options, Paper, Report, Say, Side, Table, Values, Words

LONGEST = 12  # words whose merges are shown


@dataclass(frozen=True)
class Token:
    """One piece of a prompt."""

    position: int
    text: str
    id: int


@dataclass(frozen=True)
class Pieces:
    """The tokens of a prompt, and for each of its words the merges, from letters on."""

    tokens: tuple[Token, ...]
    merges: dict[str, list[list[str]]]


def compute(model: Any, report: Report, values: Values) -> Pieces:
    """The tokens of a prompt, and how each of its words is put together."""
    text, tokenizer = prompt_of(values), model.tokenizer
    words = [word for word in dict.fromkeys(text.split()) if word.isalpha()][:LONGEST]
    merges = {word: tokenizer.merge_steps(word) for word in words}
    return Pieces(pieces_of(tokenizer, text), merges)


def pieces_of(tokenizer: Any, text: str) -> tuple[Token, ...]:
    """The pieces of a text and their numbers, with the marks of start and end, as far as the encoder reads."""
    room = tokenizer.max_length - 2
    pieces, ids = tokenizer.tokens(text)[:room], tokenizer.encode(text)[:room]
    marked = [("(start)", tokenizer.bos_id), *zip(pieces, ids, strict=True), ("(end)", tokenizer.eos_id)]
    return tuple(Token(i, piece, token_id) for i, (piece, token_id) in enumerate(marked))


def show(found: Pieces, values: Values) -> Sequence[Block]:
    word = max(found.merges, key=len, default="") if values["word"] == "the longest word" else ""
    rows = found.merges.get(word) or next(iter(found.merges.values()), [])
    table = [{"Position": token.position, "Token": token.text, "Number": token.id} for token in found.tokens]
    return [
        Side(
            [
                [Table(table)],
                [Table([{"Merge": i, "Pieces": " · ".join(row)} for i, row in enumerate(rows)])],
            ]
        ),
        Say(f"{len(found.tokens) - 2} tokens and the two marks; the encoder reads 77, so the rest is padding."),
    ]


LESSON = Lesson(
    key="tokens",
    title="From letters to tokens",
    text=(
        "The text encoder reads numbers, not letters. Its vocabulary was made by *byte pair encoding*: begin with "
        "single letters, find the pair of neighbours that is most common in a large collection of texts, make it a "
        "piece of its own, and repeat thousands of times. A new text goes the same way: its letters are merged in the "
        "order in which the pairs were found. Frequent words end as one token, rare ones stay in pieces. The encoder "
        "reads 77 tokens with a start and an end mark; a shorter prompt is padded, a longer one is read in chunks."
    ),
    equations=(
        r"\text{prompt} \;\to\; (\text{start}, w_1, \dots, w_n, \text{end}, \dots) \in \{0, \dots, V - 1\}^{77}",
    ),
    compute=compute,
    show=show,
    asks=(Words("prompt", "Prompt", EXAMPLE),),
    views=(Options("word", "Show the merges of", ("the longest word", "the first word")),),
    papers=(
        Paper("Sennrich et al. 2016, Neural machine translation of rare words", "https://arxiv.org/abs/1508.07909"),
        CLIP,
    ),
)
