"""What a generation gives: its steps, one after another, and what it paints with."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from .backend import mx
from .record.used import Used


@dataclass(frozen=True)
class GenerationStep:
    """What one denoising step reached. The arrays are lazy; the networks in them are not on a Linux CPU."""

    index: int  # 1 .. total
    total: int
    t: float  # the time reached, in training steps
    sigma: float  # the noise level reached: noise to signal, k-diffusion's sigma
    seed: int  # of the first picture; picture i has seed + i, or with a variation the same
    latents: mx.array  # x_t (B, h, w, C), float32, of unit variance at the prior
    denoised: mx.array  # the current estimate of x_0, same shape


class Generation(Iterator[GenerationStep]):
    """A generation under way: its steps, one after another, and what it paints with. Closing it cancels it."""

    def __init__(self, used: Used, steps: Generator[GenerationStep, None, None]):
        self.used = used
        self._steps = steps

    def __next__(self) -> GenerationStep:
        return next(self._steps)

    def close(self) -> None:
        """Cancel what is not done yet."""
        self._steps.close()
