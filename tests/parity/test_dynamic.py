"""Dynamic prompts, compared with the package dynamicprompts: all combinations of 1,000 templates, and what is drawn."""

from __future__ import annotations

import random
from collections import Counter

import pytest

pytest.importorskip("dynamicprompts")

from dynamicprompts.generators import CombinatorialPromptGenerator, RandomPromptGenerator
from dynamicprompts.wildcards import WildcardManager

from stable_diffusion.text import dynamic
from stable_diffusion.text.wildcards import Wildcards

pytestmark = pytest.mark.parity

FILES = {
    "colour.txt": "red\nblue\n# a comment\n\nblue\n",
    "animals/cat.txt": "tabby\nsphynx\n",
    "animals/dog.txt": "pug\n{big|small} poodle\n",
    "nested.txt": "a __colour__ one\nplain\n",
    "clothes.yaml": "clothes:\n  hats: [cap, bowler]\n  shoes: [boots, '{old|new} clogs']\nplain:\n  - linen\n",
}
NAMES = ("colour", "animals/cat", "animals/*", "nested", "clothes/hats", "clothes/*", "dog", "plain")
WORDS = ("a", "house", "[x:y:0.5]", "(sun:1.2)", "b c", "16:9", "sky,", "AND", "<lora:z:1>", "é")
MOST = 60  # combinations of a template


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wildcards")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def template(rng: random.Random, depth: int = 0) -> str:
    """A random template; blanks stand between words only, where both keep them."""
    pieces = [piece(rng, depth) for _ in range(rng.randint(1, 3 if depth else 4))]
    return " ".join(pieces)


def piece(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if kind < 0.45 or depth > 1:
        return rng.choice(WORDS)
    if kind < 0.6:
        return f"__{rng.choice(NAMES)}__"
    if kind < 0.66:
        return f"{{{rng.choice(('2$$', '1-2$$', '2$$ + $$'))}__{rng.choice(NAMES)}__}}"
    options = [rng.choice(("", "", "2::", "0.5::")) + template(rng, depth + 1) for _ in range(rng.randint(2, 3))]
    if rng.random() < 0.2:
        options[rng.randrange(len(options))] = ""
    bounds = rng.choice(("", "", "", "2$$", "1-2$$", "-2$$", "2-$$", "2$$ and $$", "0-1$$"))
    return f"{{{bounds}{'|'.join(options)}}}"


def test_all_combinations_of_1000_templates(folder):
    rng = random.Random(1)
    theirs, ours = CombinatorialPromptGenerator(WildcardManager(folder)), Wildcards([folder]).lines
    compared = dynamic_ones = 0
    while compared < 1000:
        text = template(rng)
        try:
            listed = list(map(str, theirs.generate(text, MOST + 1)))  # with duplicates
        except RuntimeError:  # {2$$a|a} in a choice, which has no combination of two
            continue
        if len(listed) > MOST:
            continue
        found = set(listed)
        compared += 1
        dynamic_ones += dynamic.has_syntax(text)
        assert set(dynamic.combinations(text, 1, ours)) == found, text
    assert dynamic_ones > 600


def test_draws_are_among_them_and_as_frequent(folder):
    rng = random.Random(2)
    theirs, ours = WildcardManager(folder), Wildcards([folder]).lines
    for text in [template(rng) for _ in range(20)]:
        every = set(map(str, RandomPromptGenerator(theirs, seed=1).generate(text, 100)))
        drawn = {dynamic.draw(text, seed, 0, ours) for seed in range(100)}
        if len(every) == 1 or len(drawn) == 1:
            assert every == drawn, text
        if len(every) <= 4:
            assert drawn == every, text


@pytest.mark.parametrize(
    "text",
    ["{a|b|c}", "{3::a|b|0.5::c}", "{1-2$$a|b|c}", "{2$$2::a|b|c}", "{x|__colour__}", "{-3$$a|b}", "{2$$__cat__}"],
)
def test_frequencies(folder, text):
    """The total variation distance of 2,000 draws of each is below what chance gives once in a thousand times."""
    n = 2000
    theirs = Counter(map(str, RandomPromptGenerator(WildcardManager(folder), seed=3).generate(text, n)))
    ours = Counter(dynamic.draw(text, seed, 0, Wildcards([folder]).lines) for seed in range(n))
    distance = sum(abs(theirs[each] - ours[each]) for each in theirs | ours) / (2 * n)
    assert distance < 0.07, (theirs, ours)
