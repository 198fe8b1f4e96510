"""Run a network on overlapping tiles of a picture that would not fit into memory whole, and blend the results.

For decoders and upscalers. The result differs slightly, since group norms and attention see one tile at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .backend import mx


def in_tiles(function: Callable[[mx.array], mx.array], array: mx.array, tile: int, overlap: int) -> mx.array:
    """Apply `function`, (1, h, w, C) -> (1, k h, k w, D) for an integer k, in tiles; float32.

    Tiles are `tile` x `tile` of the input, and overlap by at least `overlap`. Each is evaluated before the next.
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
    """Where tiles start along a side; the last one ends with the side, and may overlap more."""
    last = max(0, size - tile)
    return [*range(0, last, tile - overlap), last]


def _ramp(size: int, overlap: int) -> np.ndarray:
    """A tile's weight along a side: rising over the overlap, 1 in the middle, falling."""
    places = np.arange(size, dtype=np.float32) + 0.5
    return np.minimum(1.0, np.minimum(places, size - places) / overlap)
