"""Large latents painted in tiles: in every step a network sees one tile after another, and its answers are blended.

MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113, equation 5): what overlaps is averaged at every step, so tiles of
one noise field and one trajectory agree, and no seams are left to hide at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks
from ..backend import mx
from ..errors import InputError
from ..tiles import bands_of_tiles, closed, extended, starts
from .denoiser import NetworkCall

# Called with a message and the fraction done; it may raise to cancel.
Report = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Tiles:
    """Square tiles of `side` that overlap by at least `overlap`, in pixels."""

    side: int
    overlap: int

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a tile of a picture of this size."""
        return min(size[0], self.side), min(size[1], self.side)

    def on(self, downscale: int) -> tuple[int, int]:
        """The same in latents."""
        return self.side // downscale, self.overlap // downscale


def check_tiles(side: Any, overlap: Any, size: tuple[int, int], multiple: int) -> Tiles | None:
    """The tiles for a picture of `size`; None for `side` None, and if one tile holds it all. Raises `InputError`."""
    if side is None:
        return None
    for name, value in (("tile", side), ("tile_overlap", overlap)):
        if checks.whole(name, value, multiple, checks.MAX_SIDE, "pixels") % multiple:
            raise InputError(f"{name} = {value} should be a multiple of {multiple}.")
    if overlap > side // 2:
        raise InputError(f"tile_overlap = {overlap} should be at most half of tile = {side}.")
    return Tiles(side, overlap) if max(size) > side else None


class TiledNetwork:
    """A network on tiles of its latents, of `side` with `overlap` in latents; each is evaluated before the next.

    Tiles start at multiples of `patch`. `report` is called after each tile. Along the axes `around` of (n, h, w, C) the
    opposite edges meet: tiles reach across them.
    """

    def __init__(
        self,
        network: NetworkCall,
        side: int,
        overlap: int,
        patch: int = 1,
        report: Report | None = None,
        around: tuple[int, ...] = (),
    ):
        self._network, self._side, self._overlap, self._patch, self._report = network, side, overlap, patch, report
        self._around = around

    def __call__(self, x: mx.array, t: float, step: int) -> mx.array:
        """Predict for latents x (n, h, w, C) at a step; (n, h, w, D) float32, evaluated."""
        sides = x.shape[1:3]
        x = extended(x, self._around, self._overlap)
        rows, height, width, _ = x.shape
        total = len(self._places(height)) * len(self._places(width))
        done = 0

        def part(down: slice, across: slice) -> np.ndarray:
            nonlocal done
            answer = np.asarray(self._network(x[:, down, across], t, step).astype(mx.float32))
            done += 1
            if self._report is not None:
                self._report(f"Tile {done} of {total}", done / total)
            return folded(answer)

        bands = bands_of_tiles(part, height, width, self._side, self._overlap, multiple=self._patch)
        return closed(mx.array(unfolded(np.concatenate(list(bands)), rows)), self._around, sides)

    def _places(self, length: int) -> list[int]:
        return starts(length, self._side, self._overlap, self._patch)


def folded(rows: np.ndarray) -> np.ndarray:
    """(n, h, w, C) -> (h, w, n C), as tiles are blended."""
    return np.moveaxis(rows, 0, 2).reshape(*rows.shape[1:3], -1)


def unfolded(picture: np.ndarray, rows: int) -> np.ndarray:
    """The inverse of `folded`."""
    return np.moveaxis(picture.reshape(*picture.shape[:2], rows, -1), 2, 0)
