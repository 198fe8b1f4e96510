"""Random numbers per picture: picture i of seed s has the stream of seed s + i, whatever the batch.

They are drawn on the CPU on every machine. MLX makes normal numbers from uniform ones, which are the same to the bit on
all devices, by an inverse error function that needs a logarithm, and on a GPU its last bits depend on the chip: an M1
draws other ones than an M3 or M5 (github.com/ml-explore/mlx, issue 3568). MLX's code for CPUs (backend/cpu/simd/math.h)
has the same coefficients and true fused multiply-adds everywhere; its logarithm is Apple's on a Mac and the C library's
on Linux. So draws differ between systems in the last bits at most, by less than 1e-6 of the number drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..backend import mx

PARALLEL = 0.9995  # above this cosine a straight line is as good, and avoids a division by almost 0


@dataclass(frozen=True)
class Seeds:
    """The seeds of a batch, as A1111 counts them (its modules/processing.py).

    Picture i has seed `first` + i. With a variation, all have the seed `first`, and picture i turns towards the seed
    `variation` + i by `strength` in (0, 1]: in its first noise, or in `all_draws`, so that it ends as that seed's own.
    """

    first: int
    n_images: int
    variation: int = 0
    strength: float = 0.0
    places: tuple[int, ...] | None = None  # the pictures' i, if they are part of a larger batch
    all_draws: bool = False

    def of_pictures(self) -> list[int]:
        """Each picture's seed."""
        return [self.first + (0 if self.strength else i) for i in self._places]

    def of_variations(self) -> list[int]:
        """Each picture's variation seed."""
        return [self.variation + i for i in self._places]

    def only(self, chosen: Sequence[int]) -> Seeds:
        """The seeds of some of the pictures."""
        return dataclasses.replace(self, n_images=len(chosen), places=tuple(self._places[i] for i in chosen))

    @property
    def _places(self) -> Sequence[int]:
        return range(self.n_images) if self.places is None else self.places


class NoiseStream:
    """A sequence of unit normal draws, each picture's from its own seed.

    Draw n of a seed depends only on the seed, n and the shape.
    """

    def __init__(self, seeds: Sequence[int] | Seeds, shape: Sequence[int]):
        self._seeds = seeds if isinstance(seeds, Seeds) else None
        self._keys = [mx.random.key(seed) for seed in (seeds.of_pictures() if isinstance(seeds, Seeds) else seeds)]
        self._shape = tuple(shape)
        self._drawn = 0
        self._other: NoiseStream | None = None  # of the variation seeds, as far as it was needed

    def __call__(self) -> mx.array:
        """The next draw, (len(seeds), *shape) float32."""
        return self.varied() if self._seeds is not None and self._seeds.all_draws else self._draw()

    def varied(self) -> mx.array:
        """The next draw, turned towards the variation seeds' draw of the same number, if there is a variation."""
        draw = self._draw()
        if self._seeds is None or not self._seeds.strength:
            return draw
        if self._other is None:
            self._other = NoiseStream(self._seeds.of_variations(), self._shape)
        while self._other._drawn < self._drawn:
            end = self._other._draw()
        return slerp(draw, end, self._seeds.strength)

    def _draw(self) -> mx.array:
        draws = []
        for i, key in enumerate(self._keys):
            self._keys[i], now = mx.random.split(key, stream=mx.cpu)
            draws.append(unit_normal(self._shape, now))
        self._drawn += 1
        return mx.stack(draws, stream=mx.cpu)


def unit_normal(shape: Sequence[int], key: mx.array) -> mx.array:
    """Unit normal numbers (*shape) float32 of a key (`mx.random.key`), on every machine the same."""
    return mx.random.normal(shape, key=key, stream=mx.cpu)


def slerp(start: mx.array, end: mx.array, share: float) -> mx.array:
    """Spherical interpolation (Shoemake 1985) of each picture's noise, (B, ...): `start` at 0, `end` at 1.

    An arc keeps unit variance, a straight line would not. The angle is that of the whole vectors; A1111 takes one per
    row of latents.
    """
    with mx.stream(mx.cpu):
        axes = tuple(range(1, start.ndim))
        lengths = mx.sqrt((start**2).sum(axes, keepdims=True) * (end**2).sum(axes, keepdims=True))
        cosine = (start * end).sum(axes, keepdims=True) / lengths
        angle = mx.arccos(mx.clip(cosine, -1, 1))
        parts = mx.sin((1 - share) * angle) / mx.sin(angle), mx.sin(share * angle) / mx.sin(angle)
        arc = parts[0] * start + parts[1] * end
        return mx.where(mx.abs(cosine) > PARALLEL, (1 - share) * start + share * end, arc)
