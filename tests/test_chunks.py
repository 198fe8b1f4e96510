"""Chunks of 75 ids: where they end, and what stays together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_diffusion.text.chunks import Chunk, chunks_of, framed
from stable_diffusion.text.prompt import step_text
from stable_diffusion.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()
HOUSE, COMMA = CLIP.encode("house")[0], CLIP.encode(",")[0]


def lengths(text: str, tokenizer: Tokenizer = CLIP) -> list[int]:
    return [len(chunk.ids) for chunk in chunks_of(step_text(text), tokenizer)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [0]),
        ("house " * 75, [75]),
        ("house " * 76, [75, 1]),
        ("house " * 160, [75, 75, 10]),
        ("house BREAK", [1]),
        ("BREAK house", [0, 1]),
        ("BREAK", [0]),
        ("BREAK BREAK", [0, 0]),
        ("house BREAK " * 3 + "house", [1, 1, 1, 1]),
        ("house " * 80 + "BREAK house", [75, 5, 1]),
        ("house " * 75 + "BREAK house", [75, 1]),
        # A comma among the last twenty takes what follows it along.
        ("house " * 60 + ", " + "house " * 20, [61, 20]),
        ("house " * 55 + ", " + "house " * 24, [56, 24]),
        ("house " * 54 + ", " + "house " * 25, [75, 5]),
        ("house " * 60 + ", " + "house " * 14, [75]),
        ("house, " * 37 + "house house", [74, 2]),
        ("house " * 74 + ", house", [75, 1]),
        ("house " * 75 + ", house", [75, 2]),
        ("house " * 60 + ", " + "house " * 14 + ", house", [75, 2]),
    ],
)
def test_where_chunks_end(text, expected):
    assert lengths(text) == expected


def test_ids_and_weights_go_together():
    (chunk,) = chunks_of(step_text("a (red house:1.5), [hill]"), CLIP)
    assert chunk.ids == CLIP.encode("a red house, hill")
    assert chunk.weights == pytest.approx([1, 1.5, 1.5, 1, 1 / 1.1])
    first, second = chunks_of(step_text("house " * 60 + "(, " + "house " * 20 + ":2)"), CLIP)
    assert first.weights == [1] * 60 + [2] and second.weights == [2] * 20
    assert first.ids[-1] == COMMA and set(second.ids) == {HOUSE}


def test_an_embedding_stays_in_one_chunk():
    first_id = CLIP.vocab_size
    knowing = CLIP.with_words({"foggy": 10, "giant": 90}, first_id)
    assert lengths("house " * 70 + "foggy house", knowing) == [70, 11]
    assert lengths("house " * 65 + "foggy house", knowing) == [75, 1]
    chunks = chunks_of(step_text("house " * 60 + ", " + "house " * 5 + "foggy"), knowing)
    assert chunks[-1].ids == list(range(first_id, first_id + 10))
    assert lengths("giant house", knowing) == [75, 16]  # more than a chunk holds


@pytest.mark.parametrize("tokenizer", [CLIP, Tokenizer.clip("!")], ids=["SD 1.x", "SD 2.x"])
def test_a_text_without_signs_is_framed_as_the_tokenizer_does(tokenizer):
    text = "a red house on green hills"
    ids, weights = framed(chunks_of(step_text(text), tokenizer), tokenizer)
    assert np.array_equal(ids, tokenizer([text])[0]) and ids.dtype == np.int32
    assert (weights == 1).all()


def test_padding_and_marks_weigh_one():
    tokenizer = Tokenizer.clip("!")
    ids, weights = framed([Chunk([5, 6], [2.0, 0.5]), Chunk()], tokenizer)
    assert ids[:, :4].tolist() == [
        [tokenizer.bos_id, 5, 6, tokenizer.eos_id], [tokenizer.bos_id, tokenizer.eos_id, 0, 0]
    ]  # fmt: skip
    assert weights[0, :4].tolist() == [1, 2, 0.5, 1] and (weights[0, 4:] == 1).all() and (weights[1] == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["house ", ", ", "(red:1.2) ", "BREAK ", "[hill] "]), max_size=250))
def test_nothing_is_lost(words):
    text = "".join(words)
    chunks = chunks_of(step_text(text), CLIP)
    assert all(len(chunk.ids) == len(chunk.weights) <= 75 for chunk in chunks)
    plain = text.replace("(red:1.2)", "red").replace("[hill]", "hill").replace("BREAK", " ")
    assert [token for chunk in chunks for token in chunk.ids] == CLIP.encode(plain)
