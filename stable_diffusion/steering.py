"""What steers a generation besides its prompt, as it is asked for; guides/steering.py makes a gradient of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import checks

CLASSIFIER, CLIP = "classifier", "clip"
STEERED_BY = (CLASSIFIER, CLIP)
USUAL_SCALES = {CLASSIFIER: 4.0, CLIP: 10.0}


@dataclass(frozen=True)
class Steering:
    """Steer postcards by the gradient of a small network that comes along.

    `by` is "classifier" (of noisy latents; Dhariwal and Nichol 2021) or "clip" (how well the picture that is being made
    fits a text; Radford et al. 2021, Nichol et al. 2021). `scale` is s of the guidance, None the usual one. `text` says
    towards what; None is each picture's own prompt. Raises `InputError` for other values.
    """

    by: str
    scale: float | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        checks.Choice(STEERED_BY)("by", self.by)
        if self.scale is not None:
            checks.number("scale", self.scale, 0.0, math.inf)
        if self.text is not None:
            checks.text("text", self.text)

    @property
    def strength(self) -> float:
        """The scale, or the usual one."""
        return USUAL_SCALES[self.by] if self.scale is None else self.scale
