"""Attention maps as the page shows them: titles of levels and steps, and each word's map as small numbers."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ..attention import MIDDLE, PictureMaps
from ..pictures import arrays, heat
from .jobs import Job, Picture

SIDE = 64  # numbers along the longer side of a map, as a browser gets it
ALL = -1  # in place of a stage's number
EVERY = ""  # in place of a level's name


def stage_title(maps: PictureMaps, stage: int) -> str:
    """The steps of a stage, in words."""
    if stage == ALL:
        return "All steps"
    first, last = maps.stages[stage]
    return f"Step {first}" if first == last else f"Steps {first} to {last}"


def level_title(maps: PictureMaps, level: str) -> str:
    """A level in words, with the size of its attention."""
    if level == EVERY:
        return "All levels"
    height, width = maps.levels[level]
    way = "Down" if level.startswith("down") else "Up" if level.startswith("up") else "Middle"
    return f"{'Middle' if level == MIDDLE else way}, {width} × {height}"


def maps_of_words(maps: PictureMaps, stage: int = ALL, level: str = EVERY) -> list[dict[str, Any]]:
    """Each word: its text, part, map and range.

    `map` is base64 of bytes, row by row, 0 where the word has `low` and 255 where it has `high` shares of attention.
    """
    height, width = shape(maps)
    found = []
    for number, word in enumerate(maps.words):
        stages = None if stage == ALL else [stage]
        weights = maps.heat_map(number, stages, None if level == EVERY else [level], (width, height))
        low, high = max(float(weights.min()), 0.0), max(float(weights.max()), 0.0)
        shown = base64.b64encode(heat.levels(weights).tobytes()).decode("ascii")
        found.append({"text": word.text, "part": word.part, "map": shown, "low": low, "high": high})
    return found


def shape(maps: PictureMaps) -> tuple[int, int]:
    """(height, width) of the maps that a browser gets."""
    height, width = maps.size
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def telling(maps: PictureMaps) -> int:
    """The number of the word whose map is the most concentrated: one to begin with."""
    spread = [float(np.std(found)) for found in map(maps.heat_map, range(len(maps.words)))]
    return int(np.argmax(spread))


def painted(job: Job, picture: Picture) -> Image.Image:
    """What was painted, small; the maps lie over this, not over a picture that it was pasted into."""
    frame = picture.estimate
    assert frame is not None, "maps are recorded in steps"
    jpeg = frame.decoded or frame.draft
    if jpeg is not None:
        return Image.open(io.BytesIO(jpeg)).convert("RGB")
    found = arrays.approximate_rgb(frame.denoised, job.latent_space, 8)
    return arrays.latent_picture(frame.denoised, 8, columns=2) if found is None else found
