"""Random numbers that belong to one picture each: picture i of seed s has the stream of seed s + i, in any batch."""

from __future__ import annotations

from collections.abc import Sequence

from .backend import mx


class NoiseStream:
    """Unit normal draws, one after another, each picture's from its own seed.

    Draw n of a seed depends on nothing but the seed, n and the shape.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]):
        self._keys = [mx.random.key(seed) for seed in seeds]
        self._shape = tuple(shape)

    def __call__(self) -> mx.array:
        """The next draw, (len(seeds), *shape) float32."""
        draws = []
        for i, key in enumerate(self._keys):
            self._keys[i], now = mx.random.split(key)
            draws.append(mx.random.normal(self._shape, key=now))
        return mx.stack(draws)
