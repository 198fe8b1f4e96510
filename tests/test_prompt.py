"""A prompt, parsed once: what everybody else asks of it. The grammar itself is test_language.py's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_diffusion.errors import InputError
from stable_diffusion.text.language import Weighted
from stable_diffusion.text.prompt import A1111, PLAIN, Blend, BlendedText, Change, as_text, parse, step_text
from stable_diffusion.text.tags import Strength


def texts(prompt, steps: int) -> list[list[str]]:
    return [[each.text for each in part.at_steps(steps)] for part in prompt.parts]


def test_a_plain_prompt():
    prompt = parse("a (red:1.5) house BREAK a boat")
    (part,) = prompt.parts
    (text,) = set(part.at_steps(3))
    assert text.stretches == (
        (Weighted("a ", 1.0), Weighted("red", 1.5), Weighted(" house", 1.0)),
        (Weighted("a boat", 1.0),),
    )
    assert [piece.text for piece in text.pieces] == ["a ", "red", " house", "a boat"]
    assert (prompt.weights, prompt.loras, part.changes, part.words) == ((1.0,), (), (), "a  red  house a boat")


def test_parts_have_weights_and_schedules_of_their_own():
    prompt = parse("[a|b] AND c [d:2]:0.5 <lora:x:0.8>")
    assert texts(prompt, 3) == [["a", "b", "a"], [" c ", " c ", " c d"]]
    assert prompt.weights == (1.0, 0.5) and prompt.loras == (("x", Strength(0.8, 0.8)),)


def test_changes_in_words():
    (part,) = parse("a [(b:1.2):c:0.4] [d|[e:f:3]|]").parts
    assert part.changes == (Change(("b", "c"), "0.4"), Change(("e", "f"), "3"), Change(("d", "e", "")))


def test_a_negative_text_has_no_parts():
    assert texts(parse("a AND b:0.5 [c:d:1]", negative=True), 2) == [["a AND b:0.5 c", "a AND b:0.5 d"]]


def test_plain_language_reads_nothing_but_tags():
    prompt = parse("(a:2) AND [b|c]<lora:x>", PLAIN)
    (part,) = prompt.parts
    (text,) = set(part.at_steps(2))
    assert text == step_text("(a:2) AND [b|c]", PLAIN) != step_text("(a:2) AND [b|c]")
    assert text.literal and [piece.text for piece in text.pieces] == ["(a:2) AND [b|c]"] and part.changes == ()
    assert [name for name, _ in prompt.loras] == ["x"]


class TestBlends:
    def test_two_follow_their_own_schedules(self):
        (part,) = parse(Blend("[a:b:1]", "(c:2)", 0.25)).parts
        first, second = part.at_steps(2)
        assert first == BlendedText(step_text("a"), step_text("(c:2)"), 0.25) and second.start.text == "b"
        assert [piece.text for piece in first.pieces] == ["a", "c"] and part.weight == 1

    def test_loras_of_both_count_once(self):
        prompt = parse(Blend("a<lora:x:0.5><lora:y>", "b<lora:y:1>", 0.5))
        assert prompt.loras == (("x", Strength(0.5, 0.5)), ("y", Strength(1, 1)))
        assert len(parse("a<lora:y><lora:y>").loras) == 2

    def test_and_is_refused(self):
        with pytest.raises(InputError, match="AND cannot be blended"):
            parse(Blend("a", "b AND c", 0.5))
        assert texts_of(parse(Blend("a", "b AND c", 0.5), PLAIN)) == ["a", "b AND c"]

    def test_as_text(self):
        assert as_text("(a:2)") == step_text("(a:2)")
        assert as_text(Blend("a", "b", 0.5), PLAIN).end == step_text("b", PLAIN)


def texts_of(prompt) -> list[str]:
    return [end.text for part in prompt.parts for text in part.at_steps(1) for end in text.ends]


def test_broken_tags_are_refused_when_they_are_used():
    """Somebody may still be typing."""
    prompt = parse("a <lora:x:much> house")
    assert prompt.parts[0].text == "a  house"
    with pytest.raises(InputError, match="much"):
        prompt.loras  # noqa: B018


def test_an_unknown_language():
    for read in (parse, step_text):
        with pytest.raises(InputError, match="prompt_language = 'french' should be one of a1111, plain"):
            read("a", "french")


@given(st.text(st.sampled_from("()[]:|.5a AND<lora:x>"), max_size=40), st.sampled_from([A1111, PLAIN]))
def test_any_text_is_read(text, language):
    prompt = parse(text, language)
    for part in prompt.parts:
        assert len(part.at_steps(3)) == 3
        assert all(isinstance(piece.text, str) for now in part.at_steps(3) for piece in now.pieces)
