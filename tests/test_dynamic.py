"""Dynamic prompts: their grammar, what is drawn from them, and wildcards in files."""

from __future__ import annotations

import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_diffusion.errors import InputError
from stable_diffusion.text import dynamic
from stable_diffusion.text.wildcards import Wildcards


def lines(name):
    """Wildcards by name."""
    found = {
        "colour": ["red", "blue"],
        "animal": ["cat", "__colour__ dog"],
        "cat-breeds": ["tabby"],
        "coat": ["a ${tone:grey} coat"],
        "loop": ["a", "__back__"],
        "back": ["b", "{x|__loop__}"],
        "deep": ["{__deep__|a}"],
    }
    if name not in found:
        raise InputError(f"There is no wildcard __{name}__.")
    return [(1.0, line) for line in found[name]]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a house", ["a house"]),
        ("a {red|blue} house", ["a red house", "a blue house"]),
        ("{ red | dark blue }", ["red", "dark blue"]),
        ("{a|}b", ["ab", "b"]),
        ("{a|{b|c}} d", ["a d", "b d", "c d"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{2$$a|b|c}", ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"]),
        ("{1-2$$ and $$a|b}", ["a", "b", "a and b", "b and a"]),
        ("{-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{0$$a|b}.", ["."]),
        ("{9$$a|b}", ["a,b", "b,a"]),
        ("{2$$ $$a|{b|c}}", ["a b", "a c", "b a", "c a"]),
        ("__colour__ house", ["red house", "blue house"]),
        ("{2$$__colour__}", ["red,blue", "blue,red"]),
        ("__animal__", ["cat", "red dog", "blue dog"]),
        ("__{cat|cat}-breeds__", ["tabby"]),
        ("${x={a|b}}${x}${x}", ["aa", "ab", "ba", "bb"]),
        ("${x=!{a|b}}${x}${x}", ["aa", "bb"]),
        ("${x:c} __coat(tone={red|blue})__ __coat__", ["c a red coat a grey coat", "c a blue coat a grey coat"]),
        ("%{(...:1.2)$$a {cat|dog}}", ["(a cat:1.2)", "(a dog:1.2)"]),
        ("# a comment\na {b|c}", ["a b", "a c"]),
        (r"\{a\|b\} {c|d}", ["{a|b} c", "{a|b} d"]),
    ],
)
def test_all_combinations(template, expected):
    assert dynamic.combinations(template, 1, lines) == expected
    drawn = {dynamic.draw(template, seed, 0, lines) for seed in range(200)}
    assert drawn == set(expected)


@pytest.mark.parametrize(
    "text",
    [
        "[a|b] (c:1.2) ((d)) [e:f:0.5] <lora:x:0.8> g AND h:0.3", "100% cotton, $5, #1", "a_b __ c __", "snake_case_x",
        "16:9 | 4:3", r"\(a\)",
    ],
)  # fmt: skip
def test_a1111s_own_language_stays(text):
    assert dynamic.combinations(f"{text} {{x|y}}", 1, lines) == [f"{text} x", f"{text} y"]
    assert not dynamic.has_syntax(text)


def test_a_bar_in_square_brackets_does_not_divide_options():
    assert dynamic.combinations("{[a|b]|c}", 1, lines) == ["[a|b]", "c"]
    assert dynamic.combinations("{[a|b}]", 1, lines) == ["[a]", "b]"]


@pytest.mark.parametrize(
    ("text", "is_dynamic"),
    [
        ("{a|b}", True), ("{{a|b}}", True), ("__colour__", True), ("${x=a}", True), ("{2$$a}", True),
        ("{{masterpiece}}, {best quality}", False), ("{a", False), ("}|{", False), ("a } b | {c}", False), ("", False),
    ],
)  # fmt: skip
def test_what_counts_as_dynamic(text, is_dynamic):
    assert dynamic.has_syntax(text) is is_dynamic


def test_weights_are_frequencies():
    drawn = Counter(dynamic.draw("{3::a|b|0::c}", seed, 0, lines) for seed in range(4000))
    assert set(drawn) == {"a", "b"} and 0.72 < drawn["a"] / 4000 < 0.78
    firsts = Counter(dynamic.draw("{2$$3::a|b|1::c}", seed, 0, lines)[0] for seed in range(4000))
    assert 0.57 < firsts["a"] / 4000 < 0.63


def test_the_same_seed_draws_the_same_prompt():
    """These draws stand in records and in people's notes: they may not change."""
    template = "a {red|blue|green|white} {house|boat}, {2$$sun|moon|stars}"
    drawn = [dynamic.draw(template, seed, 0, lines) for seed in (1, 2, 2**64 - 1)]
    assert drawn == ["a red boat, sun,moon", "a green boat, stars,moon", "a white house, moon,stars"]


def test_in_turn_and_drawn_all_the_same():
    assert [dynamic.draw("{@a|b|c}", 7, i, lines) for i in range(4)] == ["a", "b", "c", "a"]
    assert dynamic.combinations("{@a|b} {c|d|e}", 1, lines) == ["a c", "b d", "a e"]
    found = dynamic.combinations("{~a|b} {c|d}", 1, lines)
    assert [text[-1] for text in found] == ["c", "d"] and {text[0] for text in found} <= set("ab")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("__loop__", r"__loop__ includes itself \(__loop__ -> __back__ -> __loop__\)"),
        ("x __deep__", "__deep__ includes itself"),
        ("__nothing__", "no wildcard __nothing__"),
        ("{a|b", "before 'a|b' is never closed"),
        ("{0::a|0::b}", "weights of a choice are 0"),
        ("{" * 60 + "a" + "}" * 60, "more than 50 deep"),
        ("{a|b}" + "x" * 100_000, "has 100005 characters, more than 20000"),
        ("%{a}", "should be like"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before(template, message):
    with pytest.raises(InputError, match=message):
        dynamic.check(template, lines)


def test_what_shows_only_when_drawn_is_refused_too():
    with pytest.raises(InputError, match=r"\$\{x\} has no value"):
        dynamic.draw("${x} {a|b}", 1, 0, lines)
    with pytest.raises(InputError, match=r"\$\{x\} includes itself"):
        dynamic.draw("${x=a ${x}}${x}", 1, 0, lines)
    with pytest.raises(InputError, match="has no combination"):
        dynamic.combinations("{2$$a|a}", 1, lines)
    with pytest.raises(InputError, match="__loop__ includes itself"):
        [dynamic.draw("__{loop|loop}__", seed, 0, lines) for seed in range(50)]


def test_explosions_are_refused():
    ten = "{" + "|".join(string.ascii_letters[:10]) + "}"
    assert len(dynamic.combinations(ten * 4, 1, lines)) == 10_000
    for template in (ten * 5, ten * 900, "{9$$" + ten[1:], "${x=!" + ten + "}" + "${x}" * 5 + ten * 4):
        with pytest.raises(InputError, match="more than 10000 combinations"):
            dynamic.combinations(template, 1, lines)
    many = {f"w{i}": f"__w{i + 1}__ " * 100 for i in range(5)} | {"w5": "word"}
    with pytest.raises(InputError, match="more than"):
        dynamic.draw("__w0__", 1, 0, lambda name: [(1.0, many[name])])


@given(st.text(alphabet="ab{}|$_[]\\:1.-~@!%#=() \n", max_size=60), st.integers(0, 99))
def test_any_text_is_drawn_from_or_refused(text, seed):
    try:
        drawn = dynamic.draw(text, seed, 0, lines)
    except InputError:
        return
    assert drawn == dynamic.draw(text, seed, 0, lines)
    if "~" not in text and "@" not in text:
        try:
            assert drawn in dynamic.combinations(text, seed, lines)
        except InputError as error:
            assert "combination" in str(error) or "no wildcard" in str(error) or "no value" in str(error)


# --- Files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "colour.txt").write_text("# colours\nred\n\n2::blue\nred\n", encoding="utf-8")
    (tmp_path / "animals" / "cat.txt").write_text("\ufefftabby\n", encoding="utf-8")
    (tmp_path / "animals" / "dog.txt").write_text("pug\n")
    (tmp_path / "clothes.yaml").write_text("clothes:\n  hats: [cap, 0.5::bowler]\n  shoes: boots\n1: one\n")
    (tmp_path / "weights.json").write_text('{"sky": [{"text": "clear", "weight": 3}, "grey"]}')
    (tmp_path / "plain.yaml").write_text("- a\n- b\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("colour", [(1, "red"), (2, "blue")]),
        ("Colour", [(1, "red"), (2, "blue")]),
        ("animals/cat", [(1, "tabby")]),
        ("animals\\cat", [(1, "tabby")]),
        ("animals/*", [(1, "tabby"), (1, "pug")]),
        ("dog", [(1, "pug")]),
        ("clothes/hats", [(1, "cap"), (0.5, "bowler")]),
        ("clothes/shoes", [(1, "boots")]),
        ("1", [(1, "one")]),
        ("sky", [(3, "clear"), (1, "grey")]),
        ("plain", [(1, "a"), (1, "b")]),
    ],
)
def test_lines_of_files(folder, name, expected):
    assert Wildcards([folder]).lines(name) == expected


def test_names_and_what_is_not_there(folder):
    found = Wildcards([folder])
    assert found.names() == [
        "1",
        "animals/cat",
        "animals/dog",
        "clothes/hats",
        "clothes/shoes",
        "colour",
        "plain",
        "sky",
    ]
    with pytest.raises(InputError, match=r"no wildcard __color__\. Near it: colour"):
        found.lines("color")
    (folder / "empty.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="__empty__ has no lines"):
        Wildcards([folder]).lines("empty")
    with pytest.raises(InputError, match=r"no wildcard __\.\./secret__"):
        (folder.parent / "secret.txt").write_text("x")
        found.lines("../secret")


@pytest.mark.parametrize("text", ["a: [b", "a: !!python/object/apply:os.system [ls]", "a: [[1]]", "a: &a\n  b: *a\n"])
def test_broken_yaml_is_said(tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InputError, match=r"broken\.yaml"):
        Wildcards([tmp_path]).lines("x")


def test_where_wildcards_are(tmp_path, monkeypatch):
    from stable_diffusion.text import wildcards

    a1111 = tmp_path / "webui"
    (a1111 / "models" / "Stable-diffusion").mkdir(parents=True)
    own = a1111 / "extensions" / "sd-dynamic-prompts" / "wildcards"
    own.mkdir(parents=True)
    for named in (a1111, a1111 / "models" / "Stable-diffusion"):
        monkeypatch.setenv("STABLE_DIFFUSION_MODELS", str(named))
        assert own in wildcards.folders()
