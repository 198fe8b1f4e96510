"""Blends: pictures between two prompts, between two seeds, or both at once.

    for frame in blend.frames("a house by day", "a boat at night", 8, seed=7):
        for step in sd.generate_latents(**frame.arguments, num_steps=20):
            ...

Prompts are blended linearly by their embeddings, seeds by their noise along an arc (`noise.slerp`), which keeps unit
variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import checks
from .prompt import Blend

MAX_FRAMES = 10_000


@dataclass(frozen=True)
class Frame:
    """One picture of a blend, `share` of the way from its start (0) to its end (1)."""

    index: int  # 0 .. total - 1
    total: int
    share: float
    start: str
    end: str
    seed: int
    to_seed: int | None

    @property
    def text(self) -> str | Blend:
        """The text to paint; the first and the last frame have the prompts themselves."""
        if self.start == self.end or self.share == 0:
            return self.start
        return self.end if self.share == 1 else Blend(self.start, self.end, self.share)

    @property
    def first_text(self) -> str:
        """The text, or the first text of a blend."""
        return self.text.start if isinstance(self.text, Blend) else self.text

    @property
    def arguments(self) -> dict[str, Any]:
        """The frame's own arguments of `StableDiffusion.generate_latents`."""
        arguments: dict[str, Any] = {"text": self.text, "seed": self.seed}
        if self.to_seed is not None and self.share:
            arguments |= {"variation_seed": self.to_seed, "variation_strength": self.share}
        return arguments


def frames(start: str, end: str, n_frames: int, seed: int, to_seed: int | None = None) -> Iterator[Frame]:
    """The frames of a blend at even shares, both ends included; the arguments are checked at once.

    Only the first noise turns towards `to_seed`, as in a variation. What samplers such as Euler a draw later stays the
    first seed's, or else frames would not be continuous. Raises `InputError`.
    """
    checks.text("start", start)
    checks.text("end", end)
    n_frames = checks.whole("n_frames", n_frames, 2, MAX_FRAMES)
    seed = checks.whole("seed", seed, 0, checks.MAX_SEED)
    if to_seed is not None:
        to_seed = checks.whole("to_seed", to_seed, 0, checks.MAX_SEED)
    return (Frame(i, n_frames, i / (n_frames - 1), start, end, seed, to_seed) for i in range(n_frames))
