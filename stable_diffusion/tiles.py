"""Run a network on overlapping tiles of a picture that would not fit into memory whole, and blend the results.

For decoders and upscalers. The result differs slightly, since group norms and attention see one tile at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .backend import mx


def in_tiles(
    function: Callable[[mx.array], mx.array],
    array: mx.array,
    tile: int,
    overlap: int,
    around: tuple[int, ...] = (),
) -> mx.array:
    """Apply `function`, (1, h, w, C) -> (1, k h, k w, D) for an integer k, in tiles; float32.

    Tiles are `tile` x `tile` of the input, and overlap by at least `overlap`. Each is evaluated before the next. Along
    the axes `around` the opposite edges meet: tiles reach across them.
    """
    sides = array.shape[1:3]
    array = extended(array, around, overlap)

    def part(rows: slice, columns: slice) -> np.ndarray:
        return np.asarray(function(array[:, rows, columns]).astype(mx.float32))[0]

    _, height, width, _ = array.shape
    whole = mx.array(np.concatenate(list(bands_of_tiles(part, height, width, tile, overlap))))[None]
    scale = whole.shape[1] // height
    return closed(whole, around, (sides[0] * scale, sides[1] * scale))


def bands_of_tiles(
    function: Callable[[slice, slice], np.ndarray],
    height: int,
    width: int,
    tile: int,
    overlap: int,
    margin: int = 0,
    multiple: int = 1,
) -> Iterator[np.ndarray]:
    """The rows of a result from top to bottom, (n, k width, D) each: in memory is one row of tiles at a time.

    `function(rows, columns)` returns a tile's part of the result, (k h, k w, D) float32. Tiles start at multiples of
    `multiple`. Nothing within `margin` of a tile's edge inside of the picture is used, if the network lacks there what
    is beyond the edge; `margin` is less than half of `overlap`.
    """
    tops = starts(height, tile, overlap, multiple)
    above: tuple[np.ndarray, np.ndarray] | None = None  # what reaches into the next row of tiles, and its weights
    for top, below in zip(tops, [*tops[1:], height], strict=True):
        rows = slice(top, min(top + tile, height))
        band: np.ndarray = np.zeros(())
        shares: np.ndarray = np.zeros(())
        for left in starts(width, tile, overlap, multiple):
            columns = slice(left, min(left + tile, width))
            part = function(rows, columns)
            scale = len(part) // (rows.stop - top)
            if not band.shape:
                band, shares = (np.zeros((len(part), width * scale, n), np.float32) for n in (part.shape[2], 1))
            ramps = (_ramp(*of, overlap, margin, scale) for of in ((rows, height), (columns, width)))
            share = np.multiply.outer(*ramps)[:, :, None]
            here = slice(left * scale, left * scale + part.shape[1])
            band[:, here] += part * share
            shares[:, here] += share
        if above is not None:
            band[: len(above[0])] += above[0]
            shares[: len(above[1])] += above[1]
        done = (below - top) * scale
        above = band[done:].copy(), shares[done:].copy()
        yield band[:done] / shares[:done]


def extended(array: mx.array, axes: tuple[int, ...], length: int) -> mx.array:
    """(B, h, w, C), along the axes that go around with its first `length` values, or all, once more at the end.

    What `closed` makes of a result in tiles then has no seam where the opposite edges meet.
    """
    for axis in axes:
        array = mx.concatenate([array, mx.split(array, [min(length, array.shape[axis])], axis)[0]], axis)
    return array


def closed(array: mx.array, axes: tuple[int, ...], sides: tuple[int, ...]) -> mx.array:
    """The first `sides` (h, w) of an `extended` array: what lies beyond them is blended into the beginning."""
    for axis in axes:
        side = sides[axis - 1]
        first, rest, again = mx.split(array, [array.shape[axis] - side, side], axis)
        length = first.shape[axis]
        share = ((mx.arange(length) + 0.5) / length).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        array = mx.concatenate([share * first + (1 - share) * again, rest], axis)
    return array


def starts(size: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles start along a side; the last one ends with the side, and may overlap more."""
    last = -(-max(0, size - tile) // multiple) * multiple
    return [*range(0, last, (tile - overlap) // multiple * multiple), last]


def _ramp(part: slice, side: int, overlap: int, margin: int, scale: int) -> np.ndarray:
    """A tile's weight along a side: rising over the overlap but for its margins, 1 in the middle, falling.

    It stays 1 where the tile ends with the picture.
    """
    places = np.arange((part.stop - part.start) * scale, dtype=np.float32) + 0.5
    before = np.inf if part.start == 0 else places
    after = np.inf if part.stop == side else len(places) - places
    from_edge = np.minimum(before, after) / scale - margin
    return np.clip(from_edge / (overlap - 2 * margin), 0, 1) + np.zeros_like(places)
