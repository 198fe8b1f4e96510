"""The upscalers that a hires fix may use: those of latents, and those of pictures. Needs no MLX."""

from __future__ import annotations

import difflib

from .errors import CheckpointNotFoundError
from .hires import LATENT_MODES
from .upscaling import upscalers


def upscaler_names() -> list[str]:
    """Every upscaler to choose from: the latent modes, then those of pictures."""
    return [*LATENT_MODES, *(each.name for each in upscalers.all())]


def upscaler_named(name: str) -> str:
    """The name of an upscaler of latents or pictures, in its own case.

    Raises `CheckpointNotFoundError`, with the nearest names.
    """
    latent = {mode.casefold(): mode for mode in LATENT_MODES}
    if (found := latent.get(name.strip().casefold())) is not None:
        return found
    try:
        return upscalers.find(name).name
    except CheckpointNotFoundError:
        folded = {each.casefold(): each for each in upscaler_names()}
        near = [folded[each] for each in difflib.get_close_matches(name.strip().casefold(), folded, 3)]
        if not set(near) & set(LATENT_MODES):
            raise
        raise CheckpointNotFoundError(f"There is no upscaler {name!r}. Near it: {', '.join(near)}.") from None
