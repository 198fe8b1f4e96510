"""A network's work on a picture in tiles, where all of it would not fit into memory; they are blended.

For decoders and upscalers alike. Almost the same picture: group norms and attention see a tile in the place of the
whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .backend import mx


def in_tiles(function: Callable[[mx.array], mx.array], array: mx.array, tile: int, overlap: int) -> mx.array:
    """`function` of (1, h, w, C), which makes it (1, H, W, D) of any whole multiple of the size: float32.

    Tiles are `tile` x `tile` of the array's places, and overlap by `overlap` at least. Each is computed before the
    next.
    """
    _, height, width, _ = array.shape
    whole = shares = np.zeros(())
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = np.asarray(function(array[:, top : top + tile, left : left + tile]).astype(mx.float32))[0]
            scale = len(part) // min(tile, height)
            if not whole.shape:
                whole, shares = (np.zeros((height * scale, width * scale, n), np.float32) for n in (part.shape[2], 1))
            ramps = (_ramp(size, overlap * scale) for size in part.shape[:2])
            share = np.multiply.outer(*ramps)[:, :, None]
            here = slice(top * scale, top * scale + len(part)), slice(left * scale, left * scale + part.shape[1])
            whole[here] += part * share
            shares[here] += share
    return mx.array(whole / shares)[None]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with it, and may overlap more."""
    last = max(0, size - tile)
    return [*range(0, last, tile - overlap), last]


def _ramp(size: int, overlap: int) -> np.ndarray:
    """A tile's share along a side: rising over the overlap, one in the middle, falling."""
    places = np.arange(size, dtype=np.float32) + 0.5
    return np.minimum(1.0, np.minimum(places, size - places) / overlap)
