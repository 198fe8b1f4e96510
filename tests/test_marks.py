"""The row under a prompt: what its signs mean, in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_diffusion.service.marks import MAX_LENGTH, marks


@pytest.mark.parametrize(
    "text, said",
    [
        ("a red house, 16:9", []),
        ("a (red house:1.3), [on] ((hills))", ["red house ×1.3", "on ×0.909", "hills ×1.21"]),
        ("(red) house (red)", ["red ×1.1"]),
        ("(, :1.3)", []),
        ("[red:blue:0.4] house [in snow:0.5] [, trees::8]",
         ["red → blue after 40 %", "in snow after 50 %", "trees until step 8"]),
        ("[(red:1.2):blue:5]", ["red → blue after step 5", "red ×1.2"]),
        ("[red|(blue:1.2)|] cat", ["red, blue, nothing in turn", "blue ×1.2"]),
        ("a cat:1.2 AND a (dog):0.5", ["a cat AND ×1.2", "a dog AND ×0.5", "dog ×1.1"]),
        ("<lora:x:0.5> a house", []),
        ("(" + "long " * 30 + ":2)", ["long long long long long long l… ×2"]),
        (r"\(red\)", []),
        ("(a\n\nb:2)", ["a b ×2"]),
    ],
)  # fmt: skip
def test_marks(text, said):
    assert [mark.words for mark in marks(text, 20)] == said


def test_a_negative_prompt_has_no_parts():
    assert [mark.words for mark in marks("(a:2) AND b:0.5", 20, negative=True)] == ["a ×2"]


@given(st.text(st.one_of(st.sampled_from("()[]:|.5a "), st.characters()), max_size=60))
def test_any_prompt_has_short_marks(text):
    for mark in marks(text, 5):
        assert mark.text and len(mark.meaning) < 30
        assert len(mark.text) <= MAX_LENGTH or mark.meaning != "×"
