"""Flat-colour postcards: a few attributes -> a caption and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from . import things
from .canvas import Canvas, Frame, Silhouette, mix
from .scenery import INK, LAND, SAND, View, paint_land, paint_sky, rock, shore

TIMES = ("day", "sunset", "night")
PLACES = ("green hills", "snowy mountains", "desert", "sea")
THINGS = ("house", "tree", "tent", "hot-air balloon", "windmill", "cactus", "sailboat", "lighthouse")
NEW_THINGS = ("lantern",)  # that no data of the embedded model show, and no captions name
COLOURS = ("red", "blue", "yellow", "white", "purple", "orange", "pink", "black", "green")
SKIES = ("clear", "clouds", "sun", "moon", "stars", "rainbow", "birds")

PLACES_OF: dict[str, tuple[str, ...]] = {
    "house": PLACES,
    "tree": ("green hills", "snowy mountains"),
    "tent": PLACES,
    "hot-air balloon": PLACES,
    "windmill": ("green hills", "snowy mountains", "sea"),
    "cactus": ("desert",),
    "sailboat": ("sea",),
    "lighthouse": ("sea",),
    "lantern": PLACES,
}
SKIES_OF: dict[str, tuple[str, ...]] = {
    "day": ("clear", "clouds", "sun", "rainbow", "birds"),
    "sunset": ("clear", "clouds", "sun", "birds"),
    "night": ("clear", "clouds", "moon", "stars"),
}
GROWING = ("tree", "cactus")  # green by nature, and only sometimes another colour

# In each list the first wording is the canonical one.
TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("by day", "on a bright day", "in the daytime"),
    "sunset": ("at sunset", "in the evening", "at dusk"),
    "night": ("at night", "on a dark night", "by night"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "green hills": ("on green hills", "on rolling hills", "on the hills"),
    "snowy mountains": ("in snowy mountains", "in the mountains", "on snowy mountains", "in the snow"),
    "desert": ("in the desert", "on desert dunes", "among desert dunes"),
    "sea": ("by the sea", "by the ocean"),
}
PLACE_NAMES: dict[str, tuple[str, ...]] = {
    "green hills": ("green hills", "rolling hills", "the hills"),
    "snowy mountains": ("snowy mountains", "the mountains"),
    "desert": ("the desert", "desert dunes"),
    "sea": ("the sea", "the ocean"),
}
THING_NAMES: dict[str, tuple[str, ...]] = {
    "hot-air balloon": ("hot air balloon", "hot-air balloon", "balloon"),
    "sailboat": ("sailboat", "sailing boat"),
}
SKY_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("a clear sky",),
    "clouds": ("clouds",),
    "sun": ("the sun",),
    "moon": ("the moon", "a full moon"),
    "stars": ("stars",),
    "rainbow": ("a rainbow",),
    "birds": ("birds",),
}
UNDER: dict[str, str] = {
    "clear": "under a clear sky",
    "clouds": "under the clouds",
    "moon": "under the moon",
    "stars": "under the stars",
    "rainbow": "under a rainbow",
}


@dataclass(frozen=True)
class Postcard:
    """What is on one postcard. `seed` decides what no word describes: composition, shapes, shades."""

    time: str
    place: str
    thing: str
    colour: str
    sky: str
    seed: int = 0


def colours_of(thing: str) -> tuple[str, ...]:
    return COLOURS if thing in GROWING else COLOURS[:-1]


def is_held_out(card: Postcard) -> bool:
    """Whether training never sees this thing in this colour at this time: about a ninth of all.

    Of each thing at each time one colour is held out, another one for every thing and time; never green.
    """
    if card.colour == "green":
        return False
    number = COLOURS.index(card.colour) + 3 * THINGS.index(card.thing) + 3 * TIMES.index(card.time)
    return number % 8 == 7


def is_pine(card: Postcard) -> bool:
    """Whether the tree is a pine: always in the snow, sometimes on the hills."""
    return card.thing == "tree" and (card.place == "snowy mountains" or card.seed % 3 == 0)


def random_postcard(rng: np.random.Generator, held_out: bool = False) -> Postcard:
    """A postcard that training may see, or with `held_out` one that it must not."""
    while True:
        thing = _pick(THINGS, rng)
        colours = colours_of(thing)
        colour = "green" if thing in GROWING and rng.random() < 0.4 else _pick(colours[:8], rng)
        time = _pick(TIMES, rng)
        card = Postcard(
            time, _pick(PLACES_OF[thing], rng), thing, colour, _pick(SKIES_OF[time], rng), int(rng.integers(2**31))
        )
        if is_held_out(card) == held_out:
            return card


def new_postcard(rng: np.random.Generator) -> Postcard:
    """A postcard of one of the `NEW_THINGS`."""
    thing, time = _pick(NEW_THINGS, rng), _pick(TIMES, rng)
    colour, place, sky = _pick(COLOURS[:8], rng), _pick(PLACES_OF[thing], rng), _pick(SKIES_OF[time], rng)
    return Postcard(time, place, thing, colour, sky, int(rng.integers(2**31)))


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def describe(card: Postcard) -> str:
    """The canonical full caption: "a red house on green hills at sunset, with clouds"."""
    place = _places(card)[0]
    return f"{_article(_colour(card, _name(card)))} {place} {TIME_WORDS[card.time][0]}, with {SKY_WORDS[card.sky][0]}"


def caption(card: Postcard, rng: np.random.Generator) -> str:
    """One of many wordings of the card. Some leave things out, but none mentions what is not there."""
    thing = _thing(card, rng)
    if rng.random() < 0.06:
        return _article(thing)
    time = _pick(TIME_WORDS[card.time], rng) if rng.random() > 0.08 else ""
    place = _pick(_places(card), rng) if rng.random() > 0.06 else ""
    sky = _pick(SKY_WORDS[card.sky], rng) if rng.random() > 0.08 else ""
    name = _pick(PLACE_NAMES[card.place], rng)
    form = rng.random()
    if form < 0.45:  # the canonical order
        return _close(_words(_article(thing), place, time), sky, rng.random() < 0.75)
    if form < 0.60:  # "... at sunset on green hills"
        return _close(_words(_article(thing), time, place), sky, rng.random() < 0.75)
    if form < 0.70 and time:  # "at sunset, a red house ..."
        return _close(f"{time}, {_words(_article(thing), place)}", sky, True)
    if form < 0.80:  # "green hills at sunset, with a red house and clouds"
        also = f" and {sky}" if sky else ""
        return f"{_words(name, time)} with {_article(thing)}{also}"
    if form < 0.88 and card.sky in UNDER:  # "a red house under the stars ..."
        return _words(_article(thing), UNDER[card.sky], place, time)
    if form < 0.94:  # as lists of tags
        tags = (thing, name.removeprefix("the "), card.time, sky.removeprefix("a ").removeprefix("the "))
        return ", ".join(tag for tag in tags if tag)
    return _close(_words("a postcard of", _article(thing), place, time), sky, True)


def _thing(card: Postcard, rng: np.random.Generator) -> str:
    """The thing with its colour. Plants are green unless a colour is given, so any other is always given."""
    name = _name(card) if rng.random() < 0.5 else _pick(THING_NAMES.get(card.thing, (_name(card),)), rng)
    if card.thing == "tree" and rng.random() < 0.5:
        name = "tree"
    silent = 0.5 if card.colour == "green" else 0.0 if card.thing in ("tree", "cactus") else 0.06
    return name if rng.random() < silent else _colour(card, name)


def _name(card: Postcard) -> str:
    return "pine tree" if is_pine(card) else THING_NAMES.get(card.thing, (card.thing,))[0]


def _colour(card: Postcard, name: str) -> str:
    return f"{card.colour} {name}"


def _places(card: Postcard) -> tuple[str, ...]:
    """Where the thing is relative to the place: a balloon is over it, a sailboat on it."""
    if card.thing == "hot-air balloon":
        return tuple(f"over {name}" for name in PLACE_NAMES[card.place])
    if card.thing == "sailboat":
        return ("on the sea", "on the ocean", "at sea")
    return PLACE_WORDS[card.place]


def _close(words: str, sky: str, comma: bool) -> str:
    if not sky:
        return words
    return f"{words}, with {sky}" if comma else f"{words}, {sky}"


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def paint(card: Postcard, size: int = 128) -> Image.Image:
    """The picture (size, size) RGB; the same card and size always give the same one."""
    view = _compose(card)
    canvas = Canvas(size)
    paint_sky(canvas, view, _stream(card, "sky"))
    paint_land(canvas, view, _stream(card, "land"))
    _paint_thing(canvas, canvas, card, view)
    return canvas.picture()


def thing_mask(card: Postcard, size: int = 128) -> np.ndarray:
    """Where `paint` draws the thing, without its shadow, reflection or light: (size, size) float32 in [0, 1]."""
    silhouette = Silhouette(size)
    _paint_thing(Canvas(size), silhouette, card, _compose(card))
    return np.asarray(silhouette.picture().convert("L"), np.float32) / 255


def _stream(card: Postcard, layer: str) -> Random:
    """Random numbers of one layer, so that another thing in front leaves the hills unchanged."""
    return Random(f"{layer} {card.seed}")


def _compose(card: Postcard) -> View:
    """The thing stands in the middle or away from the light; the sun or moon is on the other side."""
    rng = _stream(card, "view")
    light = 1 if rng.random() < 0.5 else -1
    x = 0.5 - light * rng.uniform(0.02, 0.21)
    horizon, base = rng.uniform(0.54, 0.64), rng.uniform(0.82, 0.89)
    side, high = 0.5 + light * rng.uniform(0.27, 0.34), rng.uniform(0.17, 0.22)
    setting = card.sky == "sun" and card.time == "sunset"
    body = (side, horizon - (0.17 if card.place == "snowy mountains" else 0.06) if setting else high)
    foot = base
    if card.thing == "hot-air balloon":
        x, foot = 0.5 - light * rng.uniform(0.10, 0.22), rng.uniform(0.61, 0.73)
    elif card.thing == "sailboat":
        foot = base - 0.05
    return View(card.time, card.place, card.sky, light, horizon, base, body, x, foot)


def _paint_thing(ground: Canvas, canvas: Canvas, card: Postcard, view: View) -> None:
    """The thing, and on the `ground` what it stands on and what falls there."""
    rng = _stream(card, "thing")
    kind = "pine tree" if is_pine(card) else card.thing
    low, high = things.HEIGHTS[kind]
    height = rng.uniform(low, high)
    frame = Frame(canvas, view.x, view.foot, height, view.light)
    tones = things.Tones.of(card.colour, card.time)
    if kind == "lighthouse":
        rock(ground, view, height * 0.30)
        if card.time == "night":
            things.beam(Frame(ground, view.x, view.foot, height, view.light))
    elif kind == "sailboat":
        _reflection(ground, view, tones, height)
    elif kind != "hot-air balloon":
        _stand(ground, view, kind, height, rng)
    if kind == "house":
        things.house(frame, tones, rng, snowy=card.place == "snowy mountains")
    else:
        things.DRAW[kind](frame, tones, rng)


def _reflection(canvas: Canvas, view: View, tones: things.Tones, height: float) -> None:
    water = LAND["sea", view.time][2]
    for i, half in enumerate((0.42, 0.34, 0.24)):
        colour = mix(water, tones.shade if i == 0 else tones.body, 0.62 - 0.08 * i)
        canvas.pill(view.x - view.light * 0.02 * (i % 2), view.foot + 0.022 + 0.036 * i, half * height, 0.022, colour)


def _stand(canvas: Canvas, view: View, kind: str, height: float, rng: Random) -> None:
    """Ground under the thing, and its shadow on it."""
    if view.place == "sea":
        shore(canvas, view, rng)
    ground = SAND[view.time] if view.place == "sea" else LAND[view.place, view.time][2]
    half = {"house": 0.62, "tent": 0.72, "windmill": 0.34}.get(kind, 0.24) * height
    away = -view.light * half * (0.45 if kind in ("house", "tent") else 0.8)
    canvas.ellipse(view.x + away, view.foot, half * 1.15, 0.030, mix(ground, INK, 0.28))
