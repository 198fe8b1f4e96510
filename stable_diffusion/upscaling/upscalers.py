"""Upscalers by name, for page, command line and API alike. Needs no MLX."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..errors import CheckpointNotFoundError

NONE = "None"  # A1111's name for no upscaler: other programs expect it first in the list
RESAMPLING = "resampling"


@dataclass(frozen=True)
class Upscaler:
    """One entry of the table.

    `kind` is "resampling", which makes any size at once with Pillow's filter `filter`.
    """

    name: str
    kind: str
    filter: str = "LANCZOS"  # as Pillow names it

    @property
    def takes_time(self) -> bool:
        """Whether a network is computed."""
        return self.kind != RESAMPLING


# "None" leaves the network out, so only the last step of every upscaler is left: Lanczos to the wanted size.
BUILT_IN = (
    Upscaler(NONE, RESAMPLING),
    Upscaler("Lanczos", RESAMPLING, "LANCZOS"),
    Upscaler("Bicubic", RESAMPLING, "BICUBIC"),
    Upscaler("Nearest", RESAMPLING, "NEAREST"),
)


def all() -> list[Upscaler]:
    """Every upscaler to choose from, "None" first."""
    return [*BUILT_IN]


def find(name: str) -> Upscaler:
    """The upscaler that a name means, in any case.

    Raises `CheckpointNotFoundError`, with the nearest names.
    """
    listed = all()
    wanted = name.strip().casefold()
    for upscaler in listed:
        if upscaler.name.casefold() == wanted:
            return upscaler
    folded = {upscaler.name.casefold(): upscaler.name for upscaler in listed}
    near = [folded[each] for each in difflib.get_close_matches(wanted, folded, 3)]
    hint = f"Near it: {', '.join(near)}." if near else f"There are {', '.join(folded.values())}."
    raise CheckpointNotFoundError(f"There is no upscaler {name!r}. {hint}")
