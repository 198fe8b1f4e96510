"""The things on a postcard: each a few flat faces, lit from one side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from random import Random

from .canvas import BLACK, WHITE, Colour, Frame, mix

PAINTS: dict[str, Colour] = {
    "red": (214, 40, 44),
    "blue": (34, 92, 212),
    "yellow": (250, 206, 40),
    "white": (250, 249, 244),
    "purple": (128, 56, 182),
    "orange": (246, 126, 22),
    "pink": (248, 138, 188),
    "black": (46, 45, 52),
    "green": (50, 150, 84),
}
AIR: dict[str, tuple[Colour, float]] = {  # the light of each time of day, and how strongly it tints
    "day": ((255, 255, 255), 0.0),
    "sunset": ((235, 110, 90), 0.08),
    "night": ((24, 34, 100), 0.13),
}
WINDOWS: dict[str, Colour] = {"day": (216, 238, 248), "sunset": (255, 226, 150), "night": (255, 224, 122)}


@dataclass(frozen=True)
class Tones:
    """One colour at one time of day: lit side, body, shaded side, and other colours in the same light."""

    lit: Colour
    body: Colour
    shade: Colour
    window: Colour
    time: str

    @classmethod
    def of(cls, colour: str, time: str) -> Tones:
        body = in_air(PAINTS[colour], time)
        lit, shade = mix(body, in_air((255, 246, 226), time), 0.20), mix(body, in_air((30, 16, 62), time), 0.26)
        if colour == "black":
            lit = mix(body, in_air((176, 186, 224), time), 0.26)
        elif colour == "white":
            lit, shade = mix(body, WHITE, 0.3), mix(body, in_air((96, 112, 168), time), 0.30)
        return cls(lit, body, shade, WINDOWS[time], time)

    def other(self, colour: Colour) -> Colour:
        return in_air(colour, self.time)


def in_air(colour: Colour, time: str) -> Colour:
    return mix(colour, *AIR[time])


def house(frame: Frame, tones: Tones, rng: Random, snowy: bool = False) -> None:
    roof = tones.other((246, 250, 255) if snowy else (112, 90, 92) if tones.time == "day" else (96, 78, 92))
    under = mix(roof, tones.other((58, 66, 120)), 0.30)
    chimney = rng.uniform(0.40, 0.52)
    frame.polygon([(chimney - 0.05, 0.7), (chimney - 0.05, 1.06), (chimney + 0.07, 1.06), (chimney + 0.07, 0.7)], under)
    frame.polygon([(0.0, 0.0), (0.62, 0.0), (0.62, 0.56), (0.0, 0.56)], tones.shade)
    frame.polygon([(-0.56, 0.0), (0.0, 0.0), (0.0, 0.54), (-0.28, 0.94), (-0.56, 0.54)], tones.body)
    frame.polygon([(-0.28, 1.0), (0.44, 1.0), (0.72, 0.5), (0.06, 0.5)], roof)
    frame.polygon([(-0.28, 1.0), (-0.64, 0.5), (-0.56, 0.48), (-0.28, 0.88), (0.0, 0.48), (0.07, 0.5)], under)
    door = tones.other((250, 240, 220) if tones.body[0] + tones.body[1] < 380 else (120, 84, 70))
    frame.polygon([(-0.36, 0.0), (-0.18, 0.0), (-0.18, 0.34), (-0.36, 0.34)], door)
    frame.ellipse(-0.28, 0.62, 0.08, 0.08, tones.window)
    for u in (0.14, 0.38):
        frame.polygon([(u, 0.16), (u + 0.14, 0.16), (u + 0.14, 0.36), (u, 0.36)], tones.window)


def pine(frame: Frame, tones: Tones, rng: Random) -> None:
    trunk = tones.other((122, 82, 60))
    frame.polygon([(-0.045, 0.0), (0.045, 0.0), (0.045, 0.22), (-0.045, 0.22)], trunk)
    wide = rng.uniform(0.28, 0.34)
    for low, high, half in ((0.14, 0.58, wide), (0.38, 0.80, wide * 0.80), (0.60, 1.0, wide * 0.58)):
        frame.polygon([(-half, low), (half, low), (0.0, high)], tones.body)
        frame.polygon([(0.0, low), (half, low), (0.0, high)], tones.shade)
        frame.polygon([(-half, low), (-half * 0.62, low), (0.0, high)], tones.lit)


def round_tree(frame: Frame, tones: Tones, rng: Random) -> None:
    trunk = tones.other((122, 82, 60))
    frame.polygon([(-0.06, 0.0), (0.06, 0.0), (0.035, 0.5), (-0.035, 0.5)], trunk)
    frame.polygon([(0.01, 0.0), (0.06, 0.0), (0.035, 0.5), (0.0, 0.5)], mix(trunk, BLACK, 0.25))
    drop = rng.uniform(-0.03, 0.03)
    crowns = ((0.20, 0.50 + drop, 0.19), (-0.20, 0.52 - drop, 0.20), (0.03, 0.60, 0.24), (0.0, 0.78, 0.20))
    for u, v, r in crowns:
        frame.ellipse(u + 0.02, v - 0.02, r, r, tones.shade)
    for u, v, r in crowns:
        frame.ellipse(u - 0.03, v + 0.02, r * 0.86, r * 0.86, tones.body)
    for u, v, r in crowns[1:]:
        frame.ellipse(u - 0.08, v + 0.06, r * 0.46, r * 0.46, tones.lit)


def tent(frame: Frame, tones: Tones, rng: Random) -> None:
    back = rng.uniform(0.60, 0.72)
    pole = tones.other((120, 92, 78))
    frame.stroke([(-0.28, 0.9), (-0.23, 1.08)], 0.04, pole)
    frame.stroke([(-0.18, 0.9), (-0.23, 1.08)], 0.04, pole)
    frame.polygon([(0.20, 0.0), (0.90, 0.0), (back, 0.92), (-0.23, 1.0)], tones.shade)
    frame.polygon([(-0.23, 1.0), (back, 0.92), (back + 0.07, 0.70), (-0.10, 0.74)], mix(tones.shade, tones.body, 0.55))
    frame.polygon([(-0.78, 0.0), (0.24, 0.0), (-0.23, 1.0)], tones.body)
    inside = {"day": (62, 46, 66), "sunset": (255, 206, 120), "night": (255, 220, 124)}[tones.time]
    red, green, blue = tones.body
    if tones.time == "day" and max(tones.body) < 90:  # black: opens on something lighter
        inside = (206, 186, 160)
    elif min(red, green) > 150 and blue < 140:  # yellow: a lamp would not show
        inside = (104, 60, 58)
    frame.polygon([(-0.42, 0.0), (-0.06, 0.0), (-0.23, 0.74)], inside)
    frame.polygon([(-0.42, 0.0), (-0.28, 0.0), (-0.23, 0.74)], tones.lit)
    frame.stroke([(-0.78, 0.0), (-0.23, 1.0)], 0.03, tones.lit)


def balloon(frame: Frame, tones: Tones, rng: Random) -> None:
    rope, basket = tones.other((96, 72, 62)), tones.other((164, 112, 66))
    for u in (-0.07, 0.07):
        frame.stroke([(u * 1.6, 0.34), (u, 0.14)], 0.014, rope)
    frame.polygon([(-0.09, 0.15), (0.09, 0.15), (0.07, 0.0), (-0.07, 0.0)], basket)
    frame.polygon([(0.02, 0.15), (0.09, 0.15), (0.07, 0.0), (0.02, 0.0)], mix(basket, BLACK, 0.25))
    frame.polygon([(-0.10, 0.165), (0.10, 0.165), (0.10, 0.125), (-0.10, 0.125)], rope)
    dark = mix(tones.body, tones.shade, 0.6)
    for half, colour in ((0.36, tones.shade), (0.355, dark), (0.24, tones.body), (0.10, tones.lit)):
        lean = 0.0 if half == 0.36 else -0.02 if half > 0.3 else -0.05
        frame.polygon([(lean + u * half / 0.36, v) for u, v in _ENVELOPE], colour)
    band = rng.uniform(0.27, 0.31)
    frame.polygon([(-0.13, band), (0.13, band), (0.11, 0.245), (-0.11, 0.245)], tones.shade)


def windmill(frame: Frame, tones: Tones, rng: Random) -> None:
    frame.polygon([(-0.26, 0.0), (0.26, 0.0), (0.16, 0.60), (-0.16, 0.60)], tones.body)
    frame.polygon([(0.04, 0.0), (0.26, 0.0), (0.16, 0.60), (0.04, 0.60)], tones.shade)
    frame.polygon([(-0.26, 0.0), (-0.17, 0.0), (-0.11, 0.60), (-0.16, 0.60)], tones.lit)
    cap = tones.other((120, 92, 88))
    frame.polygon([(0.19 * cos(pi * i / 10), 0.59 + 0.15 * sin(pi * i / 10)) for i in range(11)], cap)
    pale = tones.body[0] > 170 and tones.body[1] > 170 and tones.body[2] > 150
    door = tones.other((120, 84, 70) if pale else (250, 240, 220))
    frame.polygon([(-0.09, 0.0), (0.03, 0.0), (0.03, 0.17), (-0.09, 0.17)], door)
    frame.ellipse(-0.03, 0.34, 0.045, 0.055, tones.window)
    spar, cloth = tones.other((104, 76, 66)), tones.other((252, 244, 226))
    start = rng.uniform(0.15, pi / 2 - 0.15)
    for i in range(4):
        turn = start + i * pi / 2
        c, s = cos(turn), sin(turn)

        def at(along: float, across: float, c: float = c, s: float = s) -> tuple[float, float]:
            return along * c - across * s, 0.64 + along * s + across * c

        frame.polygon([at(0.10, 0.0), at(0.43, 0.0), at(0.43, 0.12), at(0.10, 0.10)], cloth)
        frame.stroke([at(0.0, 0.0), at(0.44, 0.0)], 0.026, spar)
    frame.ellipse(0.0, 0.64, 0.04, 0.04, spar)


def cactus(frame: Frame, tones: Tones, rng: Random) -> None:
    left, right = rng.uniform(0.34, 0.44), rng.uniform(0.26, 0.50)
    parts = [
        ([(-0.03, left), (-0.30, left), (-0.30, left + 0.28)], 0.16),
        ([(0.03, right), (0.30, right), (0.30, right + 0.26)], 0.16),
        ([(0.0, 0.0), (0.0, 0.88)], 0.24),
    ]
    for points, width in parts:
        frame.stroke(points, width, tones.shade)
        for u, v in points[1:]:
            frame.ellipse(u, v, width / 2, width / 2, tones.shade)
    for points, width in parts:
        moved = [(u - width * 0.14, v) for u, v in points]
        frame.stroke(moved, width * 0.70, tones.body)
        for u, v in moved[1:]:
            frame.ellipse(u, v, width * 0.35, width * 0.35, tones.body)
    frame.stroke([(-0.065, 0.06), (-0.065, 0.87)], 0.036, tones.lit)
    frame.stroke([(-0.33, left + 0.02), (-0.33, left + 0.27)], 0.026, tones.lit)
    frame.stroke([(0.27, right + 0.02), (0.27, right + 0.25)], 0.026, tones.lit)


def sailboat(frame: Frame, tones: Tones, rng: Random) -> None:
    mast = tones.other((110, 78, 62))
    belly = rng.uniform(0.0, 0.05)
    frame.stroke([(0.0, 0.14), (0.0, 1.0)], 0.026, mast)
    main = [(0.035, 0.96), (0.035, 0.22), (0.46, 0.22), (0.34 + belly, 0.46), (0.18 + belly, 0.74)]
    frame.polygon(main, tones.body)
    frame.polygon([(0.035, 0.30), (0.035, 0.22), (0.46, 0.22), (0.43, 0.30)], tones.shade)
    frame.polygon([(-0.035, 0.86), (-0.035, 0.24), (-0.36, 0.24), (-0.24, 0.46)], tones.lit)
    frame.polygon([(-0.46, 0.16), (0.52, 0.16), (0.36, 0.0), (-0.32, 0.0)], tones.shade)
    pale = tones.body[0] > 190 and tones.body[1] > 190 and tones.body[2] > 170
    stripe = tones.other((126, 88, 68) if pale else (250, 246, 236))
    frame.polygon([(-0.46, 0.16), (0.52, 0.16), (0.485, 0.125), (-0.435, 0.125)], stripe)


def lighthouse(frame: Frame, tones: Tones, rng: Random) -> None:
    pale = tones.body[0] > 190 and tones.body[1] > 190 and tones.body[2] > 170
    stripe, iron = tones.other((214, 216, 224) if pale else (252, 248, 238)), tones.other((72, 70, 84))
    frame.polygon([(-0.17, 0.0), (0.17, 0.0), (0.105, 0.74), (-0.105, 0.74)], tones.body)
    for low, high in ((0.16, 0.27), (0.46, 0.57)):
        half = [0.17 - 0.065 * v / 0.74 for v in (low, high)]
        frame.polygon([(-half[0], low), (half[0], low), (half[1], high), (-half[1], high)], stripe)
    frame.polygon([(0.06, 0.0), (0.17, 0.0), (0.105, 0.74), (0.04, 0.74)], tones.other((40, 30, 80)), 0.22)
    frame.polygon([(-0.15, 0.74), (0.15, 0.74), (0.15, 0.78), (-0.15, 0.78)], iron)
    glass = (255, 246, 200) if tones.time == "day" else (255, 232, 130)
    frame.polygon([(-0.085, 0.78), (0.085, 0.78), (0.085, 0.89), (-0.085, 0.89)], glass)
    frame.polygon([(-0.12, 0.89), (0.12, 0.89), (0.0, 1.0)], tones.body if not pale else tones.shade)
    frame.polygon([(0.0, 0.89), (0.12, 0.89), (0.0, 1.0)], tones.shade)


def beam(frame: Frame) -> None:
    """A lighthouse's light, at night: drawn before the house itself."""
    frame.polygon([(0.0, 0.83), (2.6, 1.12), (2.6, 0.70)], (255, 238, 160), 0.30)
    frame.polygon([(0.0, 0.83), (-2.6, 1.12), (-2.6, 0.70)], (255, 238, 160), 0.18)


def lantern(frame: Frame, tones: Tones, rng: Random) -> None:
    """Not among the things that the embedded model was trained on: for teaching it something new."""
    glow = {"day": (255, 240, 176), "sunset": (255, 226, 130), "night": (255, 222, 112)}[tones.time]
    iron = mix(tones.shade, BLACK, 0.15)
    ring = [(0.09 * cos(pi * i / 8), 0.93 + 0.07 * sin(pi * i / 8)) for i in range(17)]
    frame.stroke(ring, 0.035, iron)
    frame.polygon([(-0.25, 0.10), (0.25, 0.10), (0.19, 0.66), (-0.19, 0.66)], tones.other(glow))
    flame = rng.uniform(0.28, 0.34)
    frame.ellipse(0.0, flame, 0.075, 0.13, tones.other((255, 176, 60)))
    frame.ellipse(0.0, flame - 0.03, 0.04, 0.07, tones.other((255, 250, 224)))
    for low, high, colour in ((-0.25, -0.19, tones.lit), (0.25, 0.19, tones.shade)):
        frame.stroke([(low, 0.10), (high, 0.66)], 0.05, colour)
    frame.polygon([(-0.24, 0.37), (0.24, 0.37), (0.235, 0.41), (-0.235, 0.41)], tones.body)
    frame.polygon([(-0.33, 0.0), (0.33, 0.0), (0.27, 0.12), (-0.27, 0.12)], tones.body)
    frame.polygon([(0.06, 0.0), (0.33, 0.0), (0.27, 0.12), (0.06, 0.12)], tones.shade)
    frame.polygon([(-0.31, 0.64), (0.31, 0.64), (0.09, 0.88), (-0.09, 0.88)], tones.body)
    frame.polygon([(0.06, 0.64), (0.31, 0.64), (0.09, 0.88), (0.03, 0.88)], tones.shade)
    frame.polygon([(-0.31, 0.64), (-0.20, 0.64), (-0.06, 0.88), (-0.09, 0.88)], tones.lit)


def _envelope() -> list[tuple[float, float]]:
    """A balloon's outline: a round head that runs down into a narrow mouth."""
    head = [(0.36 * cos(a), 0.66 + 0.34 * sin(a)) for a in [pi * i / 24 for i in range(-2, 27)]]
    return [*head, (-0.29, 0.45), (-0.20, 0.34), (-0.10, 0.25), (0.10, 0.25), (0.20, 0.34), (0.29, 0.45)]


_ENVELOPE = _envelope()
DRAW: dict[str, Callable[..., None]] = {
    "house": house,
    "tree": round_tree,
    "pine tree": pine,
    "tent": tent,
    "hot-air balloon": balloon,
    "windmill": windmill,
    "cactus": cactus,
    "sailboat": sailboat,
    "lighthouse": lighthouse,
    "lantern": lantern,
}
HEIGHTS: dict[str, tuple[float, float]] = {  # of the picture's side
    "house": (0.34, 0.41),
    "tree": (0.44, 0.52),
    "pine tree": (0.44, 0.52),
    "tent": (0.27, 0.33),
    "hot-air balloon": (0.48, 0.56),
    "windmill": (0.52, 0.58),
    "cactus": (0.40, 0.47),
    "sailboat": (0.42, 0.50),
    "lighthouse": (0.54, 0.62),
    "lantern": (0.46, 0.54),
}
