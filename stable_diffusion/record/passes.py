"""What a record says of the second pass of a hires fix, where one key is not one setting. Names are A1111's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..hires import Hires

RESIZE, SAMPLER, SCHEDULE = "Hires resize", "Hires sampler", "Hires schedule type"
KEYS = (RESIZE, SAMPLER, SCHEDULE)
_AUTOMATIC = "Automatic"


@dataclass(frozen=True)
class SecondPass:
    """The target in pixels and the sampler of a second pass; None: by factor, or the first pass's own."""

    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    schedule: str | None = None


def written(hires: Hires, sampler: tuple[str, str | None] | None) -> dict[str, str]:
    """The entries for a second pass; `sampler` is A1111's pair, if it has one of its own."""
    extra = {}
    if hires.width is not None or hires.height is not None:
        extra[RESIZE] = f"{hires.width or 0}x{hires.height or 0}"
    if sampler is not None:
        extra |= {SAMPLER: sampler[0], SCHEDULE: sampler[1] or _AUTOMATIC}
    return extra


def read(extra: Mapping[str, str]) -> SecondPass | None:
    """What `written` writes, or A1111; None where no second pass is recorded."""
    if not any(key.startswith("Hires ") for key in extra):
        return None
    sides = re.fullmatch(r" *(\d{1,6}) *x *(\d{1,6}) *", extra.get(RESIZE, ""))
    width, height = (int(side) or None for side in sides.groups()) if sides else (None, None)
    sampler = extra.get(SAMPLER)
    return SecondPass(width, height, None if sampler == "Use same sampler" else sampler, extra.get(SCHEDULE))
