"""A canvas for flat colours in coordinates from 0 to 1, with antialiased edges."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLE = 3  # everything is drawn at three times the size, then averaged
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A blend of a and b, with `share` of b."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


class Canvas:
    """A square sheet; x runs right and y down, both from 0 to 1, and shapes may extend beyond its edges."""

    def __init__(self, size: int):
        self.scale = size * SUPERSAMPLE
        self.image = Image.new("RGB", (self.scale, self.scale))
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def picture(self) -> Image.Image:
        return self.image.reduce(SUPERSAMPLE)

    def gradient(self, stops: Sequence[Colour], top: float, bottom: float) -> None:
        """The whole width from `top` to `bottom`, blended through the stops."""
        first, last = max(round(top * self.scale), 0), min(round(bottom * self.scale), self.scale)
        if last <= first:
            return
        places = np.linspace(0, len(stops) - 1, last - first)
        rows = np.stack([np.interp(places, range(len(stops)), channel) for channel in zip(*stops, strict=True)], axis=1)
        strip = Image.fromarray(np.rint(rows).astype(np.uint8)[:, None])
        self.image.paste(strip.resize((self.scale, last - first), Image.Resampling.NEAREST), (0, first))

    def polygon(self, points: Sequence[Point], colour: Colour, alpha: float = 1.0) -> None:
        self._draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=_with(colour, alpha))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float = 1.0) -> None:
        s = self.scale
        self._draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=_with(colour, alpha))

    def disc(self, x: float, y: float, r: float, colour: Colour, alpha: float = 1.0) -> None:
        self.ellipse(x, y, r, r, colour, alpha)

    def pill(self, x: float, y: float, half: float, thick: float, colour: Colour, alpha: float = 1.0) -> None:
        """A horizontal stroke with round ends, centred at (x, y)."""
        r, half = thick / 2, max(half, thick / 2)
        right = [(x + half - r + r * cos(a), y + r * sin(a)) for a in _HALF_TURN]
        left = [(x - half + r - r * cos(a), y - r * sin(a)) for a in _HALF_TURN]
        self.polygon([*right, *left], colour, alpha)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour, alpha: float = 1.0) -> None:
        """A line through the points with round joints and ends."""
        s = self.scale
        thick = max(round(width * s), 1)
        self._draw.line([(x * s, y * s) for x, y in points], fill=_with(colour, alpha), width=thick, joint="curve")
        if alpha == 1.0:
            for x, y in (points[0], points[-1]):
                self.disc(x, y, width / 2, colour)

    def ring(self, x: float, y: float, outer: float, inner: float, colour: Colour, alpha: float = 1.0) -> None:
        """The upper half of a ring."""
        turns = [pi * i / 28 for i in range(29)]
        edge = [(x + outer * cos(a), y - outer * sin(a)) for a in turns]
        edge += [(x + inner * cos(a), y - inner * sin(a)) for a in reversed(turns)]
        self.polygon(edge, colour, alpha)


class Silhouette(Canvas):
    """A sheet on which everything is drawn in solid white: only where there is something matters."""

    def polygon(self, points: Sequence[Point], colour: Colour, alpha: float = 1.0) -> None:
        super().polygon(points, WHITE)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float = 1.0) -> None:
        super().ellipse(x, y, rx, ry, WHITE)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour, alpha: float = 1.0) -> None:
        super().stroke(points, width, WHITE)


class Frame:
    """Where a thing stands: u runs away from the light and v up, both in heights of the thing, (0, 0) at its foot."""

    def __init__(self, canvas: Canvas, x: float, y: float, height: float, light: int):
        self.canvas, self.x, self.y, self.height, self.light = canvas, x, y, height, light

    def at(self, u: float, v: float) -> Point:
        return self.x - self.light * u * self.height, self.y - v * self.height

    def polygon(self, points: Sequence[Point], colour: Colour, alpha: float = 1.0) -> None:
        self.canvas.polygon([self.at(u, v) for u, v in points], colour, alpha)

    def ellipse(self, u: float, v: float, ru: float, rv: float, colour: Colour, alpha: float = 1.0) -> None:
        self.canvas.ellipse(*self.at(u, v), ru * self.height, rv * self.height, colour, alpha)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        self.canvas.stroke([self.at(u, v) for u, v in points], width * self.height, colour)


_HALF_TURN = [pi * i / 6 - pi / 2 for i in range(7)]


def _with(colour: Colour, alpha: float) -> tuple[int, ...]:
    return colour if alpha >= 1.0 else (*colour, round(255 * alpha))
