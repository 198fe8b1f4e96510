"""The background of a postcard: the sky and what is in it, hills, mountains, dunes, the sea."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from random import Random

from .canvas import WHITE, Canvas, Colour, Point, mix

SKIES: dict[str, list[list[Colour]]] = {  # from the top down to the horizon; one of them by the seed
    "day": [
        [(62, 150, 224), (132, 198, 242), (214, 238, 248)],
        [(70, 172, 220), (146, 214, 236), (232, 244, 232)],
        [(84, 142, 222), (150, 192, 244), (236, 236, 250)],
    ],
    "sunset": [
        [(92, 60, 138), (226, 98, 104), (255, 186, 96)],
        [(120, 70, 148), (240, 124, 118), (255, 206, 140)],
        [(150, 62, 96), (240, 112, 72), (255, 196, 92)],
    ],
    "night": [
        [(14, 20, 56), (30, 42, 96), (62, 80, 144)],
        [(22, 16, 60), (44, 38, 104), (88, 76, 148)],
        [(10, 28, 60), (22, 54, 98), (52, 98, 142)],
    ],
}
LAND: dict[tuple[str, str], list[Colour]] = {  # from the far layer to the near one
    ("green hills", "day"): [(150, 202, 168), (116, 186, 112), (82, 160, 78)],
    ("green hills", "sunset"): [(170, 116, 110), (136, 132, 78), (88, 116, 60)],
    ("green hills", "night"): [(48, 84, 112), (38, 82, 88), (30, 70, 68)],
    ("snowy mountains", "day"): [(168, 190, 218), (116, 134, 164), (242, 247, 252)],
    ("snowy mountains", "sunset"): [(198, 134, 158), (140, 96, 140), (250, 218, 208)],
    ("snowy mountains", "night"): [(72, 92, 146), (52, 64, 114), (138, 158, 206)],
    ("desert", "day"): [(216, 150, 108), (244, 212, 144), (232, 186, 112)],
    ("desert", "sunset"): [(150, 72, 92), (222, 138, 88), (196, 108, 76)],
    ("desert", "night"): [(58, 54, 104), (104, 96, 136), (84, 78, 120)],
    ("sea", "day"): [(96, 182, 216), (48, 138, 194), (28, 104, 168)],
    ("sea", "sunset"): [(246, 160, 112), (176, 98, 120), (96, 66, 124)],
    ("sea", "night"): [(56, 88, 146), (32, 60, 112), (20, 38, 84)],
}
SNOW: dict[str, tuple[Colour, Colour]] = {  # the lit side and the side in shade
    "day": ((255, 255, 255), (206, 220, 240)),
    "sunset": ((255, 224, 196), (222, 164, 182)),
    "night": ((190, 206, 240), (128, 146, 198)),
}
SAND: dict[str, Colour] = {"day": (244, 216, 158), "sunset": (220, 150, 112), "night": (104, 106, 144)}
ROCK: dict[str, Colour] = {"day": (128, 124, 132), "sunset": (112, 78, 98), "night": (72, 76, 112)}
GLEAM: dict[str, Colour] = {"day": (255, 250, 226), "sunset": (255, 206, 132), "night": (170, 190, 240)}
INK: Colour = (46, 22, 74)


@dataclass(frozen=True)
class View:
    """One postcard's composition: the light comes from the left (-1) or the right (1)."""

    time: str
    place: str
    sky: str
    light: int
    horizon: float
    base: float  # where things stand
    body: Point  # the centre of the sun or moon
    x: float  # the thing's middle and foot
    foot: float


def paint_sky(canvas: Canvas, view: View, rng: Random) -> None:
    """The sky's colours and what is in it, down to the horizon."""
    stops = SKIES[view.time][int(rng.random() * len(SKIES[view.time]))]
    canvas.gradient(stops, 0.0, view.horizon + 0.16)
    if view.sky in IN_SKY:
        IN_SKY[view.sky](canvas, view, stops, rng)


def _sun(canvas: Canvas, view: View, stops: list[Colour], rng: Random) -> None:
    x, y = view.body
    r = rng.uniform(0.095, 0.115) if view.time == "day" else rng.uniform(0.13, 0.16)
    glow, core = ((255, 244, 190), (255, 216, 60)) if view.time == "day" else ((255, 214, 130), (255, 236, 150))
    canvas.disc(x, y, r * 2.0, glow, 0.30)
    canvas.disc(x, y, r * 1.45, glow, 0.45)
    canvas.disc(x, y, r, core)


def _moon(canvas: Canvas, view: View, stops: list[Colour], rng: Random) -> None:
    x, y = view.body
    r = rng.uniform(0.10, 0.12)
    canvas.disc(x, y, r * 1.9, (150, 170, 230), 0.16)
    canvas.disc(x, y, r * 1.4, (180, 196, 240), 0.24)
    canvas.disc(x, y, r, (252, 244, 214))
    turn = rng.uniform(0.0, 2 * pi)
    for angle, away, size in ((0.0, 0.45, 0.24), (2.2, 0.40, 0.17), (4.1, 0.55, 0.20)):
        canvas.disc(x + r * away * cos(turn + angle), y + r * away * sin(turn + angle), r * size, (228, 216, 186))


def _stars(canvas: Canvas, view: View, stops: list[Colour], rng: Random) -> None:
    """On a loose grid, so that they never crowd; every third one sparkles."""
    for i in range(20):
        x = (i % 5 + rng.uniform(0.2, 0.8)) / 5
        y = (i // 5 + rng.uniform(0.15, 0.85)) / 4 * (view.horizon - 0.12) + 0.02
        if i % 3:
            canvas.disc(x, y, rng.uniform(0.008, 0.012), (255, 250, 226))
        else:
            long, short = rng.uniform(0.028, 0.036), 0.008
            edge = [
                (x + (short if k % 2 else long) * cos(pi * k / 4), y + (short if k % 2 else long) * sin(pi * k / 4))
                for k in range(8)
            ]
            canvas.polygon(edge, (255, 246, 204))


def _clouds(canvas: Canvas, view: View, stops: list[Colour], rng: Random) -> None:
    lit = {"day": (255, 255, 255), "sunset": (255, 204, 176), "night": (128, 140, 192)}[view.time]
    shade = {"day": (206, 224, 242), "sunset": (206, 122, 142), "night": (88, 98, 156)}[view.time]
    side = 1 if rng.random() < 0.5 else -1
    for i in range(3):
        x = 0.5 + side * (0.30, -0.28, 0.12)[i] + rng.uniform(-0.07, 0.07)
        y = (0.14, 0.24, 0.40)[i] * view.horizon / 0.6 + rng.uniform(-0.03, 0.03)
        wide = (0.21, 0.18, 0.13)[i] * rng.uniform(0.9, 1.15)
        _cloud(canvas, x, y, wide, lit, shade, -view.light)


def _cloud(canvas: Canvas, x: float, y: float, wide: float, lit: Colour, shade: Colour, away: int) -> None:
    puffs = ((-0.45, 0.10, 0.34), (0.0, 0.26, 0.46), (0.46, 0.08, 0.32))
    for colour, grow, down in ((shade, 1.0, 0.0), (lit, 0.88, 0.05)):
        for u, v, r in puffs:
            canvas.disc(x + (u * away - (down * away)) * wide, y - (v + down) * wide, r * wide * grow, colour)
        canvas.pill(x - down * away * wide, y + (0.04 - down * 2) * wide, wide * grow, 0.36 * wide, colour)


def _rainbow(canvas: Canvas, view: View, stops: list[Colour], rng: Random) -> None:
    x, y, r = 0.5 + rng.uniform(-0.10, 0.10), view.horizon + 0.10, rng.uniform(0.52, 0.58)
    thick = 0.023
    for i, colour in enumerate(RAINBOW):
        canvas.ring(x, y, r - i * thick, r - (i + 1) * thick - 0.002, mix(colour, WHITE, 0.10))


def _birds(canvas: Canvas, view: View, stops: list[Colour], rng: Random) -> None:
    ink = {"day": (52, 66, 104), "sunset": (74, 30, 74), "night": (10, 12, 40)}[view.time]
    side = -1 if view.x > 0.5 else 1  # the flock is where the thing is not
    for i in range(3):  # few and large: one latent pixel is 1/16 of a 128-pixel picture
        x = 0.5 + side * (0.20, 0.37, -0.30)[i] + rng.uniform(-0.03, 0.03)
        y = (0.16, 0.36, 0.24)[i] * view.horizon / 0.6 + rng.uniform(-0.03, 0.03)
        wing = (0.115, 0.085, 0.085)[i] * rng.uniform(0.92, 1.08)
        lift = wing * rng.uniform(0.52, 0.62)
        for turn in (-1, 1):
            arm = [(x, y), (x + turn * wing * 0.45, y - lift), (x + turn * wing, y - lift * 0.55)]
            canvas.polygon([arm[0], arm[1], arm[2], (x + turn * wing * 0.5, y - lift * 0.42), (x, y + 0.016)], ink)


def paint_land(canvas: Canvas, view: View, rng: Random) -> None:
    far, middle, near = LAND[view.place, view.time]
    GROUND[view.place](canvas, view, far, middle, near, rng)


def _hills(canvas: Canvas, view: View, far: Colour, middle: Colour, near: Colour, rng: Random) -> None:
    gleam, h = GLEAM[view.time], view.horizon
    _ridge(canvas, h - 0.02, 0.050, rng, far, gleam)
    _ridge(canvas, h + 0.07, 0.050, rng, middle, gleam)
    _ridge(canvas, min(h + 0.17, view.base - 0.06), 0.026, rng, near, gleam)
    _ridge(canvas, view.base + 0.08, 0.024, rng, mix(near, INK, 0.14), None)


def _ridge(canvas: Canvas, y: float, rise: float, rng: Random, colour: Colour, gleam: Colour | None) -> None:
    """A rolling line and all below it, with a strip of light along its crest."""
    a, b, p, q = rng.uniform(3.6, 5.6), rng.uniform(7.5, 10.0), rng.uniform(0, 2 * pi), rng.uniform(0, 2 * pi)
    crest = [(i / 24, y - rise * (0.75 * sin(a * i / 24 + p) + 0.25 * sin(b * i / 24 + q))) for i in range(25)]
    canvas.polygon([*crest, (1.0, 1.0), (0.0, 1.0)], mix(colour, gleam, 0.22) if gleam else colour)
    if gleam:
        canvas.polygon([*((x, v + 0.022) for x, v in crest), (1.0, 1.0), (0.0, 1.0)], colour)


def _mountains(canvas: Canvas, view: View, far: Colour, middle: Colour, near: Colour, rng: Random) -> None:
    lit, shade = SNOW[view.time]
    h = view.horizon
    shift = rng.uniform(-0.12, 0.12)
    for i in range(4):
        _peak(
            canvas,
            i / 3 + shift + rng.uniform(-0.05, 0.05),
            h + 0.06,
            rng.uniform(0.17, 0.26),
            0.24,
            view.light,
            far,
            mix(far, lit, 0.75),
            mix(far, shade, 0.55),
            rng,
        )
    canvas.polygon([(0.0, h + 0.04), (1.0, h + 0.04), (1.0, 1.0), (0.0, 1.0)], mix(far, near, 0.25))
    places = [0.16, 0.86] if rng.random() < 0.5 else [0.04, 0.52, 0.98]
    for x in places:
        tall = rng.uniform(0.27, 0.38)
        _peak(canvas, x + rng.uniform(-0.06, 0.06), h + 0.10, tall, tall * 0.92, view.light, middle, lit, shade, rng)
    _ridge(canvas, h + 0.09, 0.022, rng, mix(near, shade, 0.45), None)
    _ridge(canvas, h + 0.16, 0.024, rng, near, None)
    _ridge(canvas, view.base + 0.07, 0.028, rng, mix(near, shade, 0.35), None)


def _peak(
    canvas: Canvas, x: float, foot: float, tall: float, half: float, light: int,
    rock: Colour, lit: Colour, shade: Colour, rng: Random,
) -> None:  # fmt: skip
    top = (x, foot - tall)

    def on(u: float, v: float) -> Point:  # u from -1 in the light to 1 in the shade, v down from the top
        return x - light * u * half * v, foot - tall * (1 - v)

    bend = rng.uniform(-0.15, 0.05)
    canvas.polygon([top, on(-1, 1), on(bend, 1), on(bend * 0.4 - 0.1, 0.6), on(0.12, 0.3)], rock)
    canvas.polygon([top, on(1, 1), on(bend, 1), on(bend * 0.4 - 0.1, 0.6), on(0.12, 0.3)], mix(rock, INK, 0.24))
    low = rng.uniform(0.40, 0.50)
    zigzag = [on(-1, low), on(-0.66, low * 0.80), on(-0.36, low * 1.15), on(0.06, low * 0.72)]
    canvas.polygon([top, *zigzag], lit)
    canvas.polygon(
        [top, on(0.12, 0.3), on(0.06, low * 0.72), on(0.40, low * 1.08), on(0.70, low * 0.78), on(1, low)], shade
    )


def _desert(canvas: Canvas, view: View, far: Colour, middle: Colour, near: Colour, rng: Random) -> None:
    h, gleam = view.horizon, GLEAM[view.time]
    side = 1 if rng.random() < 0.5 else -1
    for x, wide, tall in ((0.5 + side * 0.34, 0.17, 0.13), (0.5 - side * 0.30, 0.10, 0.08)):
        x += rng.uniform(-0.07, 0.07)
        canvas.polygon(
            [(x - wide, h + 0.05), (x - wide * 0.72, h - tall), (x + wide * 0.72, h - tall), (x + wide, h + 0.05)], far
        )
        away = -view.light
        canvas.polygon(
            [(x + away * wide * 0.25, h + 0.05), (x + away * wide * 0.2, h - tall), (x + away * wide * 0.72, h - tall),
             (x + away * wide, h + 0.05)], mix(far, INK, 0.20))  # fmt: skip
    _ridge(canvas, h + 0.03, 0.018, rng, middle, gleam)
    for y, colour, tall in ((h + 0.13, mix(middle, near, 0.5), 0.09), (view.base - 0.02, near, 0.07)):
        _dune(canvas, rng.uniform(0.15, 0.85), y, tall, colour, gleam, view.light)


def _dune(canvas: Canvas, x: float, y: float, tall: float, colour: Colour, gleam: Colour, light: int) -> None:
    """A crest with a lit slope and a slope in shade, and the sand below it."""

    def slope(side: int) -> list[Point]:
        return [(x + side * 1.3 * i / 10, y - tall * 0.5 * (1 + cos(pi * min(i / 7, 1.0)))) for i in range(11)]

    left, right = slope(-1), slope(1)
    canvas.polygon([*reversed(left), *right, (1.6, 1.0), (-0.6, 1.0)], colour)
    dark, away = mix(colour, INK, 0.13), right if light < 0 else left
    sweep = [(x + (0.02 if light < 0 else -0.02), y + tall * 0.3), (x - (0.10 if light < 0 else -0.10), y + 0.10),
             (x + (0.10 if light < 0 else -0.10), y + 0.2), (x + (0.2 if light < 0 else -0.2), 1.0)]  # fmt: skip
    canvas.polygon([*away, (away[-1][0], 1.0), *reversed(sweep)], dark)


def _sea(canvas: Canvas, view: View, far: Colour, middle: Colour, near: Colour, rng: Random) -> None:
    gleam, h = GLEAM[view.time], view.horizon
    canvas.gradient([far, middle, near], h, 1.0)
    if view.sky in ("sun", "moon"):
        x = view.body[0]
        for i in range(6):
            y = h + 0.025 + 0.052 * i
            half = (0.11 - 0.010 * i) * rng.uniform(0.8, 1.2)
            canvas.pill(x + rng.uniform(-0.02, 0.02), y, half, 0.020, mix(middle, (255, 240, 190), 0.72))
    for i in range(8):
        y = h + 0.035 + (0.98 - h) * i / 8 + rng.uniform(0.0, 0.02)
        half = 0.05 + 0.05 * i / 8
        canvas.pill(rng.uniform(0.02, 0.98), y, half, 0.014, mix(mix(far, near, i / 8), gleam, 0.30))


def shore(canvas: Canvas, view: View, rng: Random) -> None:
    """A beach to stand on, with foam along it."""
    sand, y = SAND[view.time], view.foot - 0.05
    p = rng.uniform(0, 2 * pi)
    edge = [(i / 16, y + 0.022 * sin(4.5 * i / 16 + p)) for i in range(17)]
    for down, colour in (
        (-0.028, mix(LAND["sea", view.time][1], WHITE, 0.30)),
        (-0.012, mix(WHITE, sand, 0.25)),
        (0.0, sand),
    ):
        canvas.polygon([*((x, v + down) for x, v in edge), (1.0, 1.0), (0.0, 1.0)], colour)


def rock(canvas: Canvas, view: View, half: float) -> None:
    """A rock in the sea for a lighthouse, with foam at its foot."""
    stone, x, y, a = ROCK[view.time], view.x, view.foot, view.light
    foam = mix(LAND["sea", view.time][1], WHITE, 0.55)
    canvas.ellipse(x, y + 0.075, half * 1.45, 0.030, foam)
    canvas.polygon(
        [
            (x - half * 1.25, y + 0.08),
            (x - half * 0.85, y + 0.01),
            (x - half * 0.4, y - 0.012),
            (x + half * 0.5, y - 0.012),
            (x + half * 0.95, y + 0.02),
            (x + half * 1.25, y + 0.08),
        ],
        stone,
    )
    canvas.polygon(
        [
            (x, y + 0.08),
            (x - a * half * 0.1, y + 0.03),
            (x - a * half * 0.4, y - 0.010),
            (x - a * half * 0.9, y + 0.015),
            (x - a * half * 1.25, y + 0.08),
        ],
        mix(stone, INK, 0.30),
    )


RAINBOW: list[Colour] = [(226, 52, 60), (246, 142, 50), (250, 216, 74), (92, 184, 96), (66, 138, 220), (136, 84, 186)]
IN_SKY: dict[str, Callable[[Canvas, View, list[Colour], Random], None]] = {
    "sun": _sun,
    "moon": _moon,
    "stars": _stars,
    "clouds": _clouds,
    "rainbow": _rainbow,
    "birds": _birds,
}
GROUND: dict[str, Callable[[Canvas, View, Colour, Colour, Colour, Random], None]] = {
    "green hills": _hills,
    "snowy mountains": _mountains,
    "desert": _desert,
    "sea": _sea,
}
