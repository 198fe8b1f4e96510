"""The language of prompts: a table of what each means, and that every string means something, quickly."""

from __future__ import annotations

import time
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_diffusion.text.language import Weighted, parse_schedule, split_at_and, weigh

# Text -> [(text, weight), ...] of each stretch between BREAKs.
WEIGHTS = {
    "": [[]],
    "normal text": [[("normal text", 1)]],
    "an (important) word": [[("an ", 1), ("important", 1.1), (" word", 1)]],
    "(red:1.3) house": [[("red", 1.3), (" house", 1)]],
    "(red :1.3)": [[("red ", 1.3)]],
    "(red: 1.3 )": [[("red", 1.3)]],
    "(red:.5)": [[("red", 0.5)]],
    "(red:2.)": [[("red", 2)]],
    "(red:0)": [[("red", 0)]],
    "(red:-0.5)": [[("red", -0.5)]],
    "(red:+1.5)": [[("red", 1.5)]],
    "((red))": [[("red", 1.21)]],
    "(((red)))": [[("red", 1.331)]],
    "[red]": [[("red", 1 / 1.1)]],
    "[[red]]": [[("red", 1 / 1.21)]],
    "([red])": [[("red", 1)]],
    "(a (red:1.5) house)": [[("a ", 1.1), ("red", 1.65), (" house", 1.1)]],
    "((red:1.5) house:0.5)": [[("red", 0.75), (" house", 0.5)]],
    "(a:1.5)(b:1.5)": [[("ab", 1.5)]],
    "(a:1.1)(b)": [[("ab", 1.1)]],
    "((a):1.5) ((b:1.5))": [[("a", 1.65), (" ", 1), ("b", 1.65)]],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        [
            ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
            ("sky", 1.4641), (".", 1.1),
        ]
    ],
    # Escapes.
    r"\(literal\]": [[("(literal]", 1)]],
    r"(a \(b\):1.3)": [[("a (b)", 1.3)]],
    r"\\(a)": [[("\\", 1), ("a", 1.1)]],
    r"a\b": [[("ab", 1)]],
    "a\\": [[("a", 1)]],
    r"\[a:b:0.5\]": [[("[a:b:0.5]", 1)]],
    # What does not pair, or is no number.
    "(unbalanced": [[("unbalanced", 1.1)]],
    "[unbalanced": [[("unbalanced", 1 / 1.1)]],
    "((a": [[("a", 1.21)]],
    "a) b": [[("a) b", 1)]],
    "a] b": [[("a] b", 1)]],
    "a:1.3) b": [[("a:1.3) b", 1)]],
    "([a)]": [[("a", 1)]],
    "(a[b)c]": [[("a", 1.1), ("b", 1), ("c", 1 / 1.1)]],
    "()": [[]],
    "(:1.3)": [[]],
    "(a:b)": [[("a:b", 1.1)]],
    "(a:1.2.3)": [[("a:1.2.3", 1.1)]],
    "(a:.)": [[("a:.", 1.1)]],
    "[a:1.5]": [[("a:1.5", 1 / 1.1)]],
    "a : b": [[("a : b", 1)]],
    # BREAK.
    "a BREAK b": [[("a", 1)], [("b", 1)]],
    "a\n BREAK \nb BREAK": [[("a", 1)], [("b", 1)], []],
    "BREAK": [[], []],
    "BREAKFAST, unBREAKable": [[("BREAKFAST, unBREAKable", 1)]],
    "break": [[("break", 1)]],
    "(a BREAK b:1.3) c": [[("a", 1.3)], [("b", 1.3), (" c", 1)]],
}  # fmt: skip

# Text -> (last step, text) where it changes, of ten steps.
SCHEDULES = {
    "test": [(10, "test")],
    "": [(10, "")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [b: 3 ]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "a [b::4]c": [(4, "a bc"), (10, "a c")],
    "[red:blue:0.25]": [(2, "red"), (10, "blue")],
    "[red:blue:0.29]": [(2, "red"), (10, "blue")],
    "[red:blue:1.0]": [(10, "red")],
    "[red:blue:1]": [(1, "red"), (10, "blue")],
    "[red:blue:0]": [(10, "blue")],
    "[red:blue:-3]": [(10, "blue")],
    "[red:blue:99]": [(10, "red")],
    "[red:blue:1e999]": [(10, "red")],
    "[red:blue:1e0]": [(1, "red"), (10, "blue")],
    "[a:b:0.5][c:d:7]": [(5, "ac"), (7, "bc"), (10, "bd")],
    "[[a:b:2]:[c:d:8]:5]": [(2, "a"), (5, "b"), (8, "c"), (10, "d")],
    "([a:b:2]:1.3)": [(2, "(a:1.3)"), (10, "(b:1.3)")],
    "[a (b:1.2):c [d]:5]": [(5, "a (b:1.2)"), (10, "c [d]")],
    r"[a\:b:c:5]": [(5, r"a\:b"), (10, "c")],
    # Turns.
    "[a|(b:1.1)]": [(i, ("(b:1.1)", "a")[i % 2]) for i in range(1, 11)],
    "[fe|]male": [(i, ("male", "female")[i % 2]) for i in range(1, 11)],
    "[a|b|c]": [(i, "cab"[i % 3]) for i in range(1, 11)],
    "[a|[b|c]]": [(1, "a"), (2, "c"), (3, "a"), (4, "c"), (5, "a"), (6, "c"), (7, "a"), (8, "c"), (9, "a"), (10, "c")],
    "[[a|b]:c:3]": [(1, "a"), (2, "b"), (3, "a"), (10, "c")],
    "[a:x:3|b]": [(10, "[a:x:3|b]")],
    # No schedules.
    "a [unbalanced": [(10, "a [unbalanced")],
    "[a]": [(10, "[a]")],
    "[a:b]": [(10, "[a:b]")],
    "[a:b:c]": [(10, "[a:b:c]")],
    "[a:b:c:5]": [(10, "[a:b:c:5]")],
    "(a:b:c) [d:5]": [(5, "(a:b:c) "), (10, "(a:b:c) d")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a (b:5]": [(10, "[a (b:5]")],
    "[a [b:c] d:5]": [(10, "[a [b:c] d:5]")],
    "[a:(b:c:d):5]": [(10, "[a:(b:c:d):5]")],
    "(a|b) [c:5]": [(5, "(a|b) "), (10, "(a|b) c")],
    "a | b [c:5]": [(5, "a | b "), (10, "a | b c")],
    r"\[a:b:5]": [(10, r"\[a:b:5]")],
    "a\\": [(10, "a\\")],
}  # fmt: skip

COMPOSITIONS = {
    "a cat": [("a cat", 1)],
    "a cat AND a dog": [("a cat", 1), (" a dog", 1)],
    "a cat:1.2 AND a dog :0.5 AND a hill: -1": [("a cat", 1.2), (" a dog", 0.5), (" a hill", -1)],
    "a (cat:1.2) AND b": [("a (cat:1.2)", 1), (" b", 1)],
    "a AND": [("a", 1), ("", 1)],
    "a\nAND\nb": [("a", 1), ("\nb", 1)],
    "SAND and ANDES": [("SAND and ANDES", 1)],
    "a poster, 16:9": [("a poster, 16:9", 1)],
    "[a:b:0.5] AND c:2": [("[a:b:0.5]", 1), (" c", 2)],
}


@pytest.mark.parametrize("text", WEIGHTS)
def test_weights(text):
    found = weigh(text)
    assert [[part.text for part in stretch] for stretch in found] == [
        [text for text, _ in stretch] for stretch in WEIGHTS[text]
    ]
    weights = [part.weight for stretch in found for part in stretch]
    assert weights == pytest.approx([weight for stretch in WEIGHTS[text] for _, weight in stretch])


@pytest.mark.parametrize("text", SCHEDULES)
def test_schedules(text):
    expected: list[str] = []
    for end, at in SCHEDULES[text]:
        expected += [at] * (end - len(expected))
    assert parse_schedule(text).at_steps(10) == expected


@pytest.mark.parametrize("text", COMPOSITIONS)
def test_compositions(text):
    assert split_at_and(text) == COMPOSITIONS[text]


def test_the_example_of_the_reference():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[ in background:0.25] [shoddy:masterful:0.5]"
    )
    runs = [(len(list(run)), words) for words, run in groupby(parse_schedule(text).at_steps(100))]
    assert runs == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (25, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (10, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (15, "fantasy landscape with a lake and an oak in background masterful"),
        (25, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


def test_equal_weights_are_one_part_in_whichever_order_their_brackets_stand():
    assert weigh("(((a:1.3)))(((b):1.3))") == [[Weighted("ab", 1.573)]]


ANY = st.text(st.one_of(st.sampled_from("()[]:|\\ab 1.5"), st.characters()), max_size=60)
PLAIN = st.text(st.characters(exclude_characters="()[]:|\\"), max_size=60).filter(
    lambda text: "AND" not in text and "BREAK" not in text
)


@given(ANY, st.integers(1, 12))
def test_every_string_means_something(text, steps):
    for part in split_at_and(text):
        texts = parse_schedule(part.text).at_steps(steps)
        assert len(texts) == steps
        for now in set(texts):
            stretches = weigh(now)
            assert len(stretches) == now.count("BREAK") + 1 or "BREAK" in now
            for stretch in stretches:
                assert all(part.text for part in stretch)
                assert all(a.weight != b.weight for a, b in pairwise(stretch))


@given(PLAIN)
def test_text_without_signs_stays_as_it_is(text):
    assert split_at_and(text) == [(text, 1.0)]
    assert parse_schedule(text).at_steps(3) == [text] * 3
    assert weigh(text) == ([[(text, 1.0)]] if text else [[]])


@given(st.text(max_size=60))
def test_what_is_escaped_stays_as_it_is(text):
    text = text.replace("BREAK", "")
    escaped = "".join(f"\\{c}" if c in "()[]\\" else c for c in text)
    assert "".join(part.text for part in weigh(escaped)[0]) == text


LONG = {
    "open round": "(" * 100_000,
    "open square": "[" * 100_000,
    "pairs": "(" * 50_000 + "a" + ")" * 50_000,
    "crossing": "([" * 25_000 + ")]" * 25_000,
    "weights": "(a:1.2" * 20_000 + ")" * 20_000,
    "numbers": ":1.1)" * 20_000,
    "schedules": "[a:b:0.5]" * 11_000,
    "deep schedules": "[a:" * 30_000 + ":5]" * 30_000,
    "deep turns": "[a|" * 30_000 + "]" * 30_000,
    "colons": "[" + ":1" * 50_000 + "]",
    "spaces": ":" + " " * 100_000 + "AND" + " " * 100_000 + ":",
    "breaks": "BREAK " * 17_000 + " " * 50_000,
    "backslashes": "\\" * 99_999,
    "digits": "(a:" + "1" * 100_000 + "." * 100_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_hundred_thousand_signs_take_a_moment(name):
    start = time.process_time()
    for part in split_at_and(LONG[name]):
        for text in set(parse_schedule(part.text).at_steps(20)):
            weigh(text)
    assert time.process_time() - start < 10  # a second at most, were it not for slow machines; squared: minutes
