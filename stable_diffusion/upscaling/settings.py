"""What an upscaling is asked for, the same for command line, page and API; what a picture says of it afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .. import checks
from ..errors import InputError
from ..record.parameters import Parameters
from . import upscalers
from .upscalers import NONE, Upscaler

DEFAULT = "realesr-animevideov3"  # comes along
MAX_FACTOR = 16.0
MAX_PIXELS = 1 << 28  # of a result: 16384 x 16384
Size = tuple[int, int]

# As A1111 records them; the last one is ours.
BY, TO, CROP = "Postprocess upscale by", "Postprocess upscale to", "Postprocess crop to"
UPSCALER, SECOND, VISIBILITY = "Postprocess upscaler", "Postprocess upscaler 2", "Postprocess upscaler 2 visibility"
KEYS = (BY, TO, CROP, UPSCALER, SECOND, VISIBILITY)


@dataclass(frozen=True)
class Upscaling:
    """By which upscaler and how far: `by` a factor, or `to` a size (width, height) that is covered.

    The picture keeps its proportions; `crop` cuts what is beyond the size, the same on both sides. `second` is another
    upscaler, mixed in by `visibility`, from 0 to 1. Upscalers are names, which `found` looks up. Raises `InputError`.
    """

    upscaler: str = DEFAULT
    by: float | None = None
    to: Size | None = None
    crop: bool = False
    second: str = NONE
    visibility: float = 0.0

    def __post_init__(self) -> None:
        enlarged_size((1, 1), self.by, self.to)
        checks.number("visibility", self.visibility, 0, 1)
        if self.visibility and self.second.casefold() == NONE.casefold():
            raise InputError("visibility needs a second upscaler to mix in (--second NAME).")

    def found(self) -> tuple[Upscaler, Upscaler | None]:
        """The upscaler, and the second one if it shows. Raises `CheckpointNotFoundError`."""
        return upscalers.find(self.upscaler), upscalers.find(self.second) if self.visibility else None

    def size_of(self, size: Size) -> Size:
        """What a picture of this size becomes, before it is cropped. Raises `InputError` if that is too large."""
        wanted = enlarged_size(size, self.by, self.to)
        return wanted if self.to is None else enlarged_size(size, to=covering(size, self.to))

    def result_size(self, size: Size) -> Size:
        """What a picture of this size becomes."""
        return self.to if self.crop and self.to else self.size_of(size)

    def record(self) -> dict[str, str]:
        """What a picture says of it, by A1111's keys; nothing for "None", which leaves it as it is."""
        first, second = self.found()
        if first.name == NONE:
            return {}
        said = {BY: f"{self.by:g}"} if self.to is None else {TO: _text(self.to)}
        if self.to is not None and self.crop:
            said[CROP] = _text(self.to)
        said[UPSCALER] = first.name
        return said | ({SECOND: second.name, VISIBILITY: f"{self.visibility:g}"} if second else {})

    def recorded(self, before: Parameters | None) -> Parameters:
        """The record of a picture that had `before`; what it said of an earlier upscaling is replaced."""
        before, said = before or Parameters(), self.record()
        if not said:
            return before
        extra = {key: value for key, value in before.extra.items() if key not in KEYS}
        return dataclasses.replace(before, extra=extra | said)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def enlarged_size(size: Size, by: float | None = None, to: Size | None = None) -> Size:
    """(width, height) of a picture of `size` enlarged `by` a factor or `to` a size; exactly one of them is given.

    Raises `InputError` if the factor is out of range, or the result too large.
    """
    if (by is None) == (to is None):
        raise InputError(f"Give either a factor (by) or a size (to), not by = {by!r} and to = {to!r}.")
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


def covering(size: Size, box: Size) -> Size:
    """The smallest size in the proportions of `size` that covers `box`, (width, height) each."""
    factor = max(box[0] / size[0], box[1] / size[1])
    width, height = (max(round(side * factor), least) for side, least in zip(size, box, strict=True))
    return width, height


def read_size(text: str) -> Size:
    """A size as people write it, WxH. Raises `InputError`."""
    width, times, height = text.lower().replace("×", "x").partition("x")
    if not times or not all(side.strip().isdecimal() and side.isascii() and len(side) < 9 for side in (width, height)):
        raise InputError(f"{text!r} should be a size in pixels, such as 1024x768")
    return enlarged_size((1, 1), to=(int(width), int(height)))
