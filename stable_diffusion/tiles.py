"""Decoding in tiles, for pictures whose decoding would not fit into memory: each is a part, and they are blended.

Almost the same picture: the autoencoder's group norms and its attention see a tile in the place of the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .backend import mx


def decode_in_tiles(decode: Callable[[mx.array], mx.array], latents: mx.array, tile: int, overlap: int) -> mx.array:
    """Decode latents (1, h, w, C) in tiles of tile x tile latents, blended where they overlap: (1, H, W, 3), float32.

    Each tile is computed before the next.
    """
    _, height, width, _ = latents.shape
    picture = shares = np.zeros(())
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = np.asarray(decode(latents[:, top : top + tile, left : left + tile]).astype(mx.float32))[0]
            scale = len(part) // min(tile, height)
            if not picture.shape:
                picture, shares = (np.zeros((height * scale, width * scale, n), np.float32) for n in (part.shape[2], 1))
            ramps = (_ramp(size, overlap * scale) for size in part.shape[:2])
            share = np.multiply.outer(*ramps)[:, :, None]
            here = slice(top * scale, top * scale + len(part)), slice(left * scale, left * scale + part.shape[1])
            picture[here] += part * share
            shares[here] += share
    return mx.array(picture / shares)[None]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with it, and may overlap more."""
    last = max(0, size - tile)
    return [*range(0, last, tile - overlap), last]


def _ramp(size: int, overlap: int) -> np.ndarray:
    """A tile's share along a side: rising over the overlap, one in the middle, falling."""
    places = np.arange(size, dtype=np.float32) + 0.5
    return np.minimum(1.0, np.minimum(places, size - places) / overlap)
