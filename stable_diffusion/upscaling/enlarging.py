"""A picture made larger by an upscaler, to a factor or to a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from .. import checks
from ..errors import InputError
from ..pictures.reading import as_picture
from . import upscalers
from .upscalers import Upscaler

MAX_FACTOR = 16.0
MAX_PIXELS = 1 << 28  # of a result: 16384 x 16384

# Parts that are done, and how many there are. It may raise, which ends the work.
Progress = Callable[[int, int], None]


def enlarge(
    picture: Any,
    upscaler: str | Upscaler = "Lanczos",
    by: float | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """Enlarge a picture by a factor, or to a size (width, height) whatever its shape.

    `picture` is a PIL image or a uint8 array (H, W, 3) or (H, W, 4); the result is RGB, or RGBA if it has transparency.
    `progress(done, total)` is called from the first part on to the last, and may raise. Raises `InputError`, and
    `CheckpointError` for an upscaler that is unknown or whose file cannot be used.
    """
    if isinstance(upscaler, str):
        upscaler = upscalers.find(upscaler)
    picture = as_picture(picture, alpha=True)
    width, height = enlarged_size(picture.size, by, size)
    report = progress or (lambda done, total: None)
    report(0, 1)
    result = picture.resize((width, height), Image.Resampling[upscaler.filter])
    report(1, 1)
    return result


def enlarged_size(size: tuple[int, int], by: float | None = None, to: tuple[int, int] | None = None) -> tuple[int, int]:
    """(width, height) of a picture of `size` enlarged `by` a factor or `to` a size; exactly one of them is given.

    Raises `InputError` if the factor is out of range, or the result too large.
    """
    if (by is None) == (to is None):
        raise InputError(f"Give either a factor (by) or a size, not by = {by!r} and size = {to!r}.")
    if by is not None:
        factor = checks.number("by", by, 0, MAX_FACTOR)
        if not factor:
            raise InputError(f"by = {by!r} should be a factor above 0, up to {MAX_FACTOR:g}: 2 doubles both sides.")
        width, height = (max(1, round(side * factor)) for side in size)
    else:
        width, height = (checks.whole("a side", side, 1, MAX_PIXELS, "pixels") for side in to or ())
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{width} x {height} pixels are {width * height / 1e6:.0f} million, more than {MAX_PIXELS / 1e6:.0f} "
            f"million: choose a smaller factor or size."
        )
    return width, height


def covering(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The smallest size in the proportions of `size` that covers `box`, (width, height) each."""
    factor = max(box[0] / size[0], box[1] / size[1])
    width, height = (max(round(side * factor), least) for side, least in zip(size, box, strict=True))
    return width, height
