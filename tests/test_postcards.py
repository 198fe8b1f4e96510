"""The painter of postcards: the same card is the same picture, and the picture is what the caption says."""

from __future__ import annotations

import colorsys
import dataclasses
import re
from itertools import pairwise

import numpy as np
import pytest

from stable_diffusion.training.postcards import painter
from stable_diffusion.training.postcards.canvas import Canvas
from stable_diffusion.training.postcards.painter import (
    COLOURS,
    PLACES,
    SKIES,
    THINGS,
    TIMES,
    Postcard,
    caption,
    describe,
    paint,
)

RED_HOUSE = Postcard("sunset", "green hills", "house", "red", "clouds", seed=5)
WERE_CALLED = [
    "an orange sailboat on the sea at sunset, with clouds",
    "a red house on green hills by day, with birds",
    "a purple lighthouse by the sea at sunset, with birds",
    "a purple cactus in the desert by day, with birds",
    "a white house in the desert at night, with a clear sky",
    "a green cactus in the desert by day, with birds",
]
WERE_COLOURED = [  # red, green, blue of the upper half, then of the lower half
    [200.6, 115.6, 125.4, 184.1, 111.8, 106.8],
    [103.8, 172.7, 226.0, 129.3, 146.6, 115.3],
    [188.8, 104.4, 129.6, 183.5, 117.4, 128.8],
    [129.7, 166.0, 223.0, 206.8, 162.9, 131.7],
    [37.9, 31.6, 89.2, 106.2, 98.4, 130.6],
    [108.9, 175.9, 225.3, 194.9, 176.4, 121.7],
]


def every_combination() -> list[Postcard]:
    return [
        Postcard(time, place, thing, colour, sky, seed=100 * i + j)
        for i, time in enumerate(TIMES)
        for thing in THINGS
        for place in painter.PLACES_OF[thing]
        for colour in painter.colours_of(thing)
        for j, sky in enumerate(painter.SKIES_OF[time])
    ]


def many(count: int, held_out: bool = False, seed: int = 0) -> list[Postcard]:
    rng = np.random.default_rng(seed)
    return [painter.random_postcard(rng, held_out) for _ in range(count)]


def pixels(card: Postcard, size: int = 64) -> np.ndarray:
    return np.asarray(paint(card, size)).astype(np.int16)


def thing_mask(card: Postcard, size: int = 64) -> np.ndarray:
    """Where the picture changes when the thing is painted in another colour."""
    others = [dataclasses.replace(card, colour=colour) for colour in COLOURS if colour != card.colour][:3]
    return np.all([np.abs(pixels(card, size) - pixels(other, size)).sum(-1) > 24 for other in others], axis=0)


# --- the picture ---


def test_the_same_card_is_the_same_picture():
    assert paint(RED_HOUSE).tobytes() == paint(dataclasses.replace(RED_HOUSE)).tobytes()
    assert paint(RED_HOUSE).tobytes() != paint(dataclasses.replace(RED_HOUSE, seed=6)).tobytes()


def test_pictures_stay_what_they_were():
    """A model in the tree was trained on them: whoever changes them on purpose trains it again."""
    cards = many(6)
    assert [describe(card) for card in cards] == WERE_CALLED
    halves = [np.asarray(paint(card, 64)).reshape(2, -1, 3).mean(1) for card in cards]
    assert np.abs(np.reshape(halves, (6, 6)) - WERE_COLOURED).max() < 1  # edges may differ between Pillow's versions


def test_a_layer_does_not_move_when_another_changes():
    red, blue = pixels(RED_HOUSE), pixels(dataclasses.replace(RED_HOUSE, colour="blue"))
    changed = np.abs(red - blue).sum(-1) > 0
    assert 0.02 < changed.mean() < 0.3
    assert not changed[:20].any()  # the sky


def test_every_combination_paints():
    cards = every_combination()
    assert len(cards) == sum(
        len(painter.PLACES_OF[thing]) * len(painter.colours_of(thing)) * len(painter.SKIES_OF[time])
        for time in TIMES
        for thing in THINGS
    )
    different = set()
    for card in cards:
        picture = paint(card, 16)
        assert (picture.size, picture.mode) == ((16, 16), "RGB")
        different.add(picture.tobytes())
    assert len(different) > 0.999 * len(cards)


@pytest.mark.parametrize("size", [1, 8, 31, 64, 100, 256, 513])
def test_any_size(size):
    assert paint(RED_HOUSE, size).size == (size, size)


def test_larger_is_the_same_picture():
    small, large = paint(RED_HOUSE, 64), paint(RED_HOUSE, 256).reduce(4)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(large)).mean() < 2


def test_edges_are_smooth():
    canvas = Canvas(32)
    canvas.polygon([(0, 0), (1, 0), (0, 1)], (255, 255, 255))
    assert len(np.unique(np.asarray(canvas.picture()))) > 2


def test_time_is_told_by_the_sky():
    for card in many(150, seed=1):
        red, _, blue = np.asarray(paint(card, 32))[:16, ::31].reshape(-1, 3).mean(0)  # the upper half's left and right
        if card.time == "night":
            assert max(red, blue) < 150, card
        elif card.time == "day":
            assert blue > 150 and blue > red - 8, card
        else:
            assert red > blue + 20, card


HUES = {"red": 0.99, "orange": 0.08, "yellow": 0.13, "green": 0.39, "blue": 0.61, "purple": 0.76, "pink": 0.92}


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_its_colour_at_every_time(colour, time):
    """The middle colour where the thing is: its hue where it has one, else how light and how grey it is."""
    for thing in THINGS:
        card = Postcard(time, painter.PLACES_OF[thing][0], thing, colour, "clear", seed=11)
        mask = thing_mask(card)
        rows = np.nonzero(mask.any(1))[0]
        mask[rows[0] + int(0.7 * len(rows)) :] = False  # below are doors, shadows and reflections
        middle = np.median(pixels(card)[mask], axis=0) / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*middle)
        if colour == "black":
            assert value < 0.42, (card, middle)
        elif colour == "white":
            assert value > 0.6 and saturation < 0.2, (card, middle)
        else:
            distance = abs((hue - HUES[colour] + 0.5) % 1 - 0.5)
            assert distance < 0.04 and saturation > 0.3 and value > 0.45, (card, middle, hue)
            nearest = min(HUES, key=lambda name: abs((hue - HUES[name] + 0.5) % 1 - 0.5))
            assert nearest == colour or {nearest, colour} <= {"red", "pink"}, (card, hue)


@pytest.mark.parametrize("thing", THINGS)
def test_a_thing_is_large_enough_and_inside(thing):
    for seed in range(8):
        card = Postcard("day", painter.PLACES_OF[thing][0], thing, "red", "clear", seed)
        rows, columns = np.nonzero(thing_mask(card))
        sides = (np.ptp(rows) + 1) / 64, (np.ptp(columns) + 1) / 64
        assert 0.2 <= max(sides) <= 0.65, (card, sides)
        assert thing_mask(card).mean() > 0.02
        assert rows.max() < 63 and 12 < np.median(columns) < 52


@pytest.mark.parametrize("sky", [sky for sky in SKIES if sky != "clear"])
def test_what_is_in_the_sky_can_be_seen(sky):
    time = next(time for time in TIMES if sky in painter.SKIES_OF[time])
    for seed in range(6):
        card = Postcard(time, "sea", "tent", "red", sky, seed)
        changed = np.abs(pixels(card, 128) - pixels(dataclasses.replace(card, sky="clear"), 128)).sum(-1) > 60
        assert changed[:64].mean() > (0.01 if sky == "stars" else 0.02), card


# --- which cards there are ---


def test_things_stand_where_they_make_sense():
    for card in many(400) + many(100, held_out=True):
        assert card.place in painter.PLACES_OF[card.thing]
        assert card.sky in painter.SKIES_OF[card.time]
        assert card.colour in painter.colours_of(card.thing)


def test_held_out_cards_never_come_and_are_about_a_ninth():
    assert not any(map(painter.is_held_out, many(3000)))
    assert all(map(painter.is_held_out, many(300, held_out=True)))
    kinds = {(card.thing, card.colour, card.time): painter.is_held_out(card) for card in every_combination()}
    assert sum(kinds.values()) == 24 and len(kinds) == 198
    for time in TIMES:  # spread evenly: one colour of each thing, one thing in each colour, at each time
        held = [(thing, colour) for (thing, colour, when), out in kinds.items() if out and when == time]
        assert sorted(thing for thing, _ in held) == sorted(THINGS)
        assert sorted(colour for _, colour in held) == sorted(COLOURS[:8])


def test_held_out_is_a_rule_of_thing_colour_and_time_alone():
    for card in many(50, held_out=True, seed=3):
        for place in PLACES:
            assert painter.is_held_out(dataclasses.replace(card, place=place, sky="clear", seed=0))


def test_every_word_of_every_attribute_comes():
    cards = many(2000)
    for name, options in {"time": TIMES, "place": PLACES, "thing": THINGS, "colour": COLOURS, "sky": SKIES}.items():
        share = [sum(getattr(card, name) == option for card in cards) / len(cards) for option in options]
        assert min(share) > 0.04, (name, share)


# --- the words ---

SAID = {
    "day": r"\bby day\b|\bon a bright day\b|\bin the daytime\b|, day\b|^by day|^on a bright day|^in the daytime",
    "sunset": r"sunset|evening|dusk",
    "night": r"night",
    "green hills": r"hills",
    "snowy mountains": r"mountains|in the snow\b",
    "desert": r"desert",
    "sea": r"\bsea\b|ocean",
    "house": r"house\b(?<!lighthouse)",
    "tree": r"\btree\b",
    "tent": r"\btent\b",
    "hot-air balloon": r"balloon",
    "windmill": r"windmill",
    "cactus": r"cactus",
    "sailboat": r"sailboat|sailing boat",
    "lighthouse": r"lighthouse",
    **{colour: rf"\b{colour}\b(?! hills)" for colour in COLOURS},
    "clear": r"clear sky",
    "clouds": r"clouds",
    "sun": r"\bsun\b",
    "moon": r"moon",
    "stars": r"stars",
    "rainbow": r"rainbow",
    "birds": r"birds",
}


def said(text: str) -> set[str]:
    return {attribute for attribute, words in SAID.items() if re.search(words, text)}


def attributes(card: Postcard) -> set[str]:
    return {card.time, card.place, card.thing, card.colour, card.sky}


def test_the_canonical_caption_names_everything():
    assert describe(RED_HOUSE) == "a red house on green hills at sunset, with clouds"
    for card in every_combination():
        assert said(describe(card)) == attributes(card), describe(card)


def test_a_caption_says_nothing_that_is_not_there():
    rng = np.random.default_rng(0)
    complete = 0
    for card in many(3000):
        text = caption(card, rng)
        assert card.thing in said(text) and said(text) <= attributes(card), (text, card)
        assert text == text.lower() and "  " not in text and not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        if card.thing in painter.GROWING and card.colour != "green":
            assert card.colour in said(text), text  # without a word they are green
        complete += said(text) == attributes(card)
    assert 0.6 < complete / 3000 < 0.9


def test_wording_varies_and_stays_small():
    rng = np.random.default_rng(0)
    assert len({caption(RED_HOUSE, rng) for _ in range(300)}) > 60
    words = {word for card in many(4000) for word in caption(card, rng).replace(",", "").split()}
    assert 50 < len(words) < 200


@pytest.mark.parametrize(
    "prompt",
    [
        "a red house on green hills at sunset, with clouds",
        "a yellow windmill on rolling hills at sunset, with the sun",
        "a blue sailboat on the sea by day, with a rainbow",
        "a pink house in the mountains at night, with the moon",
        "a white lighthouse by the sea on a dark night, with a full moon",
        "a red balloon over the sea on a bright day, with clouds",
        "a pine tree on snowy mountains",
        "an orange hot air balloon over the ocean in the evening, birds",
        "a green cactus among desert dunes, a clear sky",
        "a yellow tent in the desert at night, with stars",
        "a blue tent under the moon",
    ],
)
def test_prompts_that_are_in_use_stay_in_the_vocabulary(prompt):
    rng = np.random.default_rng(1)
    pairs = set()
    for card in many(6000):
        words = caption(card, rng).replace(",", "").split()
        pairs |= set(pairwise(words))
    words = prompt.replace(",", "").split()
    missing = [
        pair
        for pair in pairwise(words)
        if pair not in pairs and not set(pair) & set(COLOURS)  # colours go with every thing
    ]
    assert not missing


def test_pines_are_called_so():
    for card in many(600):
        if card.thing == "tree":
            assert ("pine tree" in describe(card)) == painter.is_pine(card)
            assert painter.is_pine(card) or "pine" not in caption(card, np.random.default_rng(card.seed))
