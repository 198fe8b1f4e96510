"""Handwritten-looking digits, drawn here: data for a first diffusion model, in the size of MNIST's (LeCun et al. 1998).

A digit is one or two strokes through a few points, smoothed, slanted, shaken and drawn with a round pen.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

Stroke = tuple[tuple[float, float], ...]

SUPERSAMPLE = 4  # drawn at four times the size, then averaged
SHAKE = 0.02  # deviation of each point, as a fraction of the digit's height
FINENESS = 12  # points of the curve between two points of a stroke


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float, points: int = 9) -> Stroke:
    """An arc of an ellipse, from one angle to another in turns; 0 is right, 0.25 is down."""
    angles = np.linspace(start, end, points) * 2 * pi
    return tuple((x + rx * cos(a), y + ry * sin(a)) for a in angles)


# Ways to write each digit, in a box of width 0.6 and height 1 around (0, 0); x runs right and y down.
GLYPHS: tuple[tuple[tuple[Stroke, ...], ...], ...] = (
    ((_arc(0, 0, 0.3, 0.48, -0.2, 0.85, 12),),),
    (
        (((0.02, -0.48), (0.0, 0.0), (-0.02, 0.48)),),
        (((-0.16, -0.3), (0.06, -0.48), (0.05, 0.0), (0.04, 0.48)),),
    ),
    (
        ((*_arc(0, -0.22, 0.26, 0.26, -0.45, 0.08, 7), (0.02, 0.2), (-0.28, 0.47), (0.0, 0.45), (0.3, 0.46)),),
        ((*_arc(-0.02, -0.24, 0.26, 0.24, -0.4, 0.15, 7), (-0.1, 0.3), (-0.25, 0.44), (-0.12, 0.32), (0.3, 0.45)),),
    ),
    ((_arc(-0.02, -0.24, 0.24, 0.24, -0.42, 0.2, 8) + _arc(-0.02, 0.22, 0.28, 0.26, -0.2, 0.42, 9),),),
    (
        (((-0.08, -0.48), (-0.24, 0.08), (0.3, 0.1)), ((0.14, -0.2), (0.12, 0.16), (0.1, 0.48))),
        (((0.12, -0.48), (-0.1, -0.16), (-0.28, 0.16), (0.3, 0.15)), ((0.12, -0.48), (0.12, 0.0), (0.12, 0.48))),
    ),
    (
        (
            ((-0.16, -0.46), (-0.2, -0.08), *_arc(-0.02, 0.18, 0.26, 0.28, -0.3, 0.4, 8)),
            ((-0.16, -0.46), (0.05, -0.47), (0.26, -0.46)),
        ),
    ),
    ((((0.16, -0.47), (-0.1, -0.25), *_arc(0, 0.2, 0.26, 0.27, 0.5, 1.55, 12)),),),
    (
        (((-0.27, -0.44), (0.0, -0.46), (0.27, -0.45)), ((0.27, -0.45), (0.06, 0.0), (-0.06, 0.48))),
        (
            ((-0.27, -0.44), (0.0, -0.46), (0.27, -0.45)),
            ((0.27, -0.45), (0.06, 0.0), (-0.06, 0.48)),
            ((-0.1, 0.03), (0.22, 0.03)),
        ),
    ),
    ((_arc(0, -0.24, 0.2, 0.23, 0.3, -0.75, 12) + _arc(0, 0.22, 0.26, 0.26, -0.25, 0.8, 12),),),
    (
        (_arc(0.0, -0.2, 0.24, 0.26, 0.05, -0.95, 12), ((0.24, -0.2), (0.22, 0.1), (0.1, 0.48))),
        (_arc(0.0, -0.2, 0.24, 0.26, 0.05, -0.95, 12), ((0.24, -0.2), (0.22, 0.2), (0.06, 0.47), (-0.2, 0.4))),
    ),
)


class Digits:
    """Endless digits; each depends only on (size, seed, index)."""

    labels = tuple("0123456789")
    channels = 1

    def __init__(self, size: int = 28, seed: int = 0):
        self.size, self.seed = size, seed

    def example(self, index: int) -> tuple[np.ndarray, int]:
        """(size, size, 1) uint8, white on black, and which digit it is."""
        rng = np.random.default_rng((self.seed, index))
        label = int(rng.integers(10))
        return draw(label, self.size, rng), label

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """(B, size, size, 1) uint8 and labels (B,)."""
        pictures, labels = zip(*(self.example(index) for index in indices), strict=True)
        return np.stack(pictures), np.array(labels)


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A digit in a hand of its own: (size, size, 1) uint8, white on black."""
    ways = GLYPHS[label]
    strokes = ways[rng.integers(len(ways))]
    side = size * SUPERSAMPLE
    slant, turn = rng.normal(0.15, 0.15), rng.normal(0, 0.1)
    wide, tall = rng.normal(0.72, 0.07), rng.normal(0.72, 0.04)
    matrix = np.array([[wide * cos(turn), -tall * sin(turn) - slant * tall], [wide * sin(turn), tall * cos(turn)]])
    place = 0.5 + rng.normal(0, 0.025, 2)
    pen = side * rng.uniform(0.07, 0.115)
    picture = Image.new("L", (side, side))
    canvas = ImageDraw.Draw(picture)
    shaken: dict[tuple[float, float], np.ndarray] = {}  # strokes that meet still meet
    for stroke in strokes:
        points = np.stack([shaken.setdefault(each, rng.normal(each, SHAKE)) for each in stroke])
        line = [tuple(point) for point in (smooth(points) @ matrix.T + place) * side]
        canvas.line(line, fill=255, width=round(pen), joint="curve")
        for x, y in (line[0], line[-1]):
            canvas.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return np.asarray(picture.reduce(SUPERSAMPLE))[:, :, None]


def smooth(points: np.ndarray) -> np.ndarray:
    """A curve through points (N, 2), N at least 2 (Catmull and Rom 1974): (M, 2)."""
    if len(points) == 2:
        return points
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    before, a, b, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, FINENESS, endpoint=False)[None, :, None]
    curve = a + t / 2 * (b - before + t * (2 * before - 5 * a + 4 * b - after + t * (3 * (a - b) + after - before)))
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])
