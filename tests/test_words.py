"""Words as typed, and the places of their tokens."""

from __future__ import annotations

import pytest

from stable_diffusion.text.chunks import chunks_of, framed
from stable_diffusion.text.prompt import PLAIN, Blend, as_text, parse, step_text
from stable_diffusion.text.tokenizer import Tokenizer
from stable_diffusion.text.words import merged, words_of

CLIP = Tokenizer.clip()


def words(text: str, tokenizer: Tokenizer = CLIP, language: str = "a1111") -> dict[str, tuple[int, ...]]:
    return {word.text: word.places for word in words_of(step_text(text, language), tokenizer)}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        (" , . !", {}),
        ("a red house", {"a": (1,), "red": (2,), "house": (3,)}),
        ("House, by Rembrandtesque.", {"House": (1,), "by": (3,), "Rembrandtesque": (4, 5, 6, 7)}),
        ("a hot-air balloon", {"a": (1,), "hot-air": (2, 3, 4), "balloon": (5,)}),
        ("it's (red:1.3) [dim]", {"it's": (1, 2), "red": (3,), "dim": (4,)}),
        ("(red)house", {"red": (1,), "house": (2,)}),
        ("\\(x\\) y", {"x": (2,), "y": (4,)}),
        ("a BREAK (blue BREAK boat)", {"a": (1,), "blue": (78,), "boat": (155,)}),
        ("🎈", {"🎈": (1,)}),
    ],
)
def test_words_are_as_typed_without_punctuation(text, expected):
    assert words(text) == expected


def test_places_are_those_of_the_ids():
    """Over several chunks, where a comma takes what follows it into the next one."""
    text = "house " * 60 + ", " + "red tree " * 20
    ids = framed(chunks_of(step_text(text), CLIP), CLIP)[0].reshape(-1)
    found = words_of(step_text(text), CLIP)
    assert len(found) == 100 and max(found[-1].places) > 77
    for word in found:
        assert [ids[place] for place in word.places] == CLIP.encode(word.text)


def test_an_embedding_is_one_word_whatever_its_name():
    knowing = CLIP.with_words({"my style": 3, "<cat-toy>": 2, "--": 2}, 60000)
    found = words("a my style house, <cat-toy>, by -- you", knowing)
    assert found["my style"] == (2, 3, 4) and found["<cat-toy>"] == (7, 8) and found["--"] == (11, 12)
    assert found["you"] == (13,)


def test_of_a_literal_text_what_is_not_read_is_left_out():
    found = words_of(step_text("(red house), " + "tree " * 90 + "end", PLAIN), CLIP)
    assert found[0].text == "red" and found[0].places == (2,)
    assert found[-1].text == "tree" and found[-1].places == (75,)


def test_tags_are_no_words_and_a_blend_has_those_of_both():
    (part,) = parse("a house <lora:ink:0.5>").parts
    assert [word.text for word in words_of(part.at_steps(1)[0], CLIP)] == ["a", "house"]
    both = words_of(as_text(Blend("a house", "a boat", 0.5)), CLIP)
    assert [(word.text, word.places) for word in both] == [("a", (1,)), ("house", (2,)), ("a", (1,)), ("boat", (2,))]


def test_words_that_stay_are_the_same_ones():
    whole, places = merged([["a", "red", "house", "and", "a", "red", "tent"], ["a", "blue", "house", "and", "a", "red",
                            "tent"], ["house"], []])  # fmt: skip
    assert whole == ["a", "red", "blue", "house", "and", "a", "red", "tent"]
    assert places == [[0, 1, 3, 4, 5, 6, 7], [0, 2, 3, 4, 5, 6, 7], [3], []]
    assert merged([]) == ([], [])
