"""The words of a text as typed, and the places of their tokens in what the network attends to. Needs no MLX."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from .chunks import chunks_of
from .prompt import StepText, Text
from .tokenizer import Tokenizer

MAX_PIECES = 2000  # of a stretch of text, beyond which an embedding's name with spaces in it is not looked for


@dataclass(frozen=True)
class Word:
    """A word as typed, without the punctuation around it, and the places of its tokens, counted over all chunks."""

    text: str
    places: tuple[int, ...]


def words_of(text: Text, tokenizer: Tokenizer) -> list[Word]:
    """The words of a text at one step, in order; of a blend those of both its texts, which share their places.

    What stands between spaces is one word, whatever its number of tokens: "hot-air", a rare word in several pieces, the
    name of an embedding. Brackets of the prompt language end a word and belong to none, nor does punctuation at its
    ends. Of a literal text the words are left out that are not read.
    """
    found = [word for end in text.ends for word in _words_of(end, tokenizer)]
    return [word for word in found if word.places]


def merged(texts: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The words of a prompt that changes from step to step, as one list, and where in it each text's words are.

    What a comparison of the texts finds unchanged is one word: of "a red house" and "a blue house", "house" and "a".
    """
    whole: list[str] = []
    places: list[list[int]] = []
    for words in texts:
        longer: list[str] = []
        moved: list[int] = []
        own: list[int] = []
        for what, a, b, c, d in SequenceMatcher(None, whole, words, autojunk=False).get_opcodes():
            moved += range(len(longer), len(longer) + b - a)
            longer += whole[a:b]
            if what == "equal":
                own += moved[a:b]
            else:
                own += range(len(longer), len(longer) + d - c)
                longer += words[c:d]
        places = [[moved[i] for i in each] for each in places] + [own]
        whole = longer
    return whole, places


def _words_of(text: StepText, tokenizer: Tokenizer) -> Iterator[Word]:
    pieces = [piece for part in text.pieces for piece in _pieces(part.text, tokenizer)]
    places = _places(text, tokenizer)
    first = 0
    for name, before, inside, after in pieces:
        own = places[first + before : first + before + inside]
        first += before + inside + after
        if name:
            yield Word(name, tuple(own))


def _places(text: StepText, tokenizer: Tokenizer) -> list[int]:
    """The place of each of a text's ids, of which no order changes when they are divided into chunks."""
    room = tokenizer.max_length - 2
    if text.literal:
        return list(range(1, min(tokenizer.count(text.text), room) + 1))
    lengths = [len(chunk.ids) for chunk in chunks_of(text, tokenizer)]
    return [i * tokenizer.max_length + 1 + j for i, length in enumerate(lengths) for j in range(length)]


def _pieces(text: str, tokenizer: Tokenizer) -> Iterator[tuple[str, int, int, int]]:
    """What stands between spaces: the word in it, "" for none, and the numbers of ids before, in and after it."""
    ids = tokenizer.encode(text)
    typed = text.split()
    start = done = 0
    while start < len(typed):
        for end in range(start + 1, (len(typed) if len(typed) <= MAX_PIECES else start + 1) + 1):
            name = " ".join(typed[start:end])
            found = tokenizer.encode(name)
            if ids[done : done + len(found)] == found:
                break
        else:  # what the tokenizer reads in another way when it stands alone: all that is left is one word
            name, end, found = " ".join(typed[start:]), len(typed), ids[done:]
        yield _without_punctuation(name, found, tokenizer)
        start, done = end, done + len(found)


def _without_punctuation(piece: str, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, int, int, int]:
    marks = [unicodedata.category(sign).startswith("P") for sign in piece]
    if all(marks) and all(tokenizer.word_length(each) == 1 for each in ids):
        return "", 0, 0, len(ids)
    first = marks.index(False) if False in marks else 0
    last = len(piece) - (marks[::-1].index(False) if False in marks else 0)
    before, inside, after = (tokenizer.encode(part) for part in (piece[:first], piece[first:last], piece[last:]))
    if [*before, *inside, *after] != list(ids):  # the signs are part of the word: an embedding's name, <cat>
        return piece, 0, len(ids), 0
    return piece[first:last], len(before), len(inside), len(after)
