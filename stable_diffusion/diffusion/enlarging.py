"""Latents enlarged as torch.nn.functional.interpolate enlarges them, with `align_corners` False and a given size.

Along each side the result is a matrix times the input, so that each mode is one table of weights (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..backend import mx

SHARP, SMOOTH = -0.75, -0.5  # Keys' a (1981), of torch's bicubic without and with antialiasing


def enlarged(
    latents: mx.array, height: int, width: int, mode: str, antialias: bool = False, around: tuple[int, ...] = ()
) -> mx.array:
    """Latents (B, h, w, C) at another height and width, float32; modes are torch's, `bilinear`, `nearest` and so on.

    Along the axes `around` the opposite edges are neighbours.
    """
    down, across = (
        mx.array((weights_around if axis in around else weights)(latents.shape[axis], after, mode, antialias))
        for axis, after in ((1, height), (2, width))
    )
    wide = mx.einsum("oj,bijc->bioc", across, latents.astype(mx.float32))
    return mx.einsum("oi,bijc->bojc", down, wide)


def weights(before: int, after: int, mode: str, antialias: bool = False) -> np.ndarray:
    """The matrix (after, before), float32, that resamples a side of `before` values to one of `after`."""
    if mode in ("nearest", "nearest-exact"):
        return _nearest(before, after, 0.5 if mode == "nearest-exact" else 0.0)
    if antialias:
        support, kernel = (1, _hat) if mode == "bilinear" else (2, _keys(SMOOTH))
        return _antialiased(before, after, support, kernel)
    centres = (np.arange(after) + 0.5) * (before / after) - 0.5
    support, kernel = (1, _hat) if mode == "bilinear" else (2, _keys(SHARP))
    table = np.zeros((after, before))
    first = np.floor(centres).astype(int) - support + 1
    for tap in range(2 * support):  # beyond an edge its value goes on
        np.add.at(table, (np.arange(after), np.clip(first + tap, 0, before - 1)), kernel(np.abs(first + tap - centres)))
    return table.astype(np.float32)


def weights_around(before: int, after: int, mode: str, antialias: bool = False) -> np.ndarray:
    """`weights` of a side whose ends meet: those of the middle one of three copies in a row."""
    table = weights(3 * before, 3 * after, mode, antialias)[after : 2 * after]
    return table.reshape(after, 3, before).sum(axis=1)


def margin(before: int, after: int, least: int = 32) -> tuple[int, int]:
    """How much of a side of `before` pixels to repeat beyond its ends, and how much that is when it has `after`.

    At least `least`, or all of it, and a whole number of pixels in both.
    """
    step = before // math.gcd(before, after)
    repeated = -(-min(least, before) // step) * step
    return repeated, repeated * after // before


def _nearest(before: int, after: int, offset: float) -> np.ndarray:
    scale = np.float32(before) / np.float32(after)  # torch's arithmetic, which decides between neighbours
    places = np.floor((np.arange(after, dtype=np.float32) + np.float32(offset)) * scale).astype(int)
    return np.eye(before, dtype=np.float32)[np.minimum(places, before - 1)]


def _antialiased(before: int, after: int, support: int, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Weights of what lies within the kernel, stretched where the side shrinks, summing to one (as in Pillow)."""
    scale = before / after
    stretch = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    inside = np.arange(before) + 0.5
    table = kernel(np.abs(inside[None] - centres[:, None]) / stretch)
    low = np.maximum(np.floor(centres - support * stretch + 0.5), 0)[:, None]
    high = np.minimum(np.floor(centres + support * stretch + 0.5), before)[:, None]
    table = np.where((np.arange(before) >= low) & (np.arange(before) < high), table, 0.0)
    return (table / table.sum(axis=1, keepdims=True)).astype(np.float32)


def _hat(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - distance)


def _keys(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Keys' cubic convolution, of support 2 (Keys 1981, equations 4 and 15)."""

    def kernel(d: np.ndarray) -> np.ndarray:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return kernel
