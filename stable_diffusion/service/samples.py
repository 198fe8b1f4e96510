"""Pictures to begin from where none is at hand: postcards of the embedded model's own painter, made when asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from ..record.inputs import InputFile
from ..training.postcards import painter
from ..training.postcards.painter import Postcard

THUMBNAIL_SIDE = 160  # pixels


@dataclass(frozen=True)
class Sample:
    """One postcard, by a name and what is on it in words."""

    name: str
    title: str
    card: Postcard


SAMPLES = (
    Sample("house", "A house", Postcard("sunset", "green hills", "house", "red", "clouds", 3)),
    Sample("sailboat", "A sailboat", Postcard("day", "sea", "sailboat", "blue", "birds", 5)),
    Sample("tent", "A tent", Postcard("night", "snowy mountains", "tent", "yellow", "stars", 1)),
    Sample("cactus", "A cactus", Postcard("day", "desert", "cactus", "green", "sun", 2)),
)


def file_of(sample: Sample, side: int) -> InputFile:
    """The postcard as a PNG file, square, with sides of `side` pixels."""
    buffer = io.BytesIO()
    _painted(sample.card, side).save(buffer, "PNG")
    return InputFile(f"postcard-{sample.name}.png", buffer.getvalue())


def small(sample: Sample) -> Image.Image:
    """The postcard as a small picture."""
    return _painted(sample.card, THUMBNAIL_SIDE)


@lru_cache(maxsize=16)
def _painted(card: Postcard, side: int) -> Image.Image:
    return painter.paint(card, side)
