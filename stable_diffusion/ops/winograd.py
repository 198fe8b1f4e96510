"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray 2016, arXiv:1509.09308), written as products.

F(4x4, 3x3): tiles of 4x4 outputs come from tiles of 6x6 inputs. Input, kernel and output are each transformed by a
small matrix along both axes, here one product with the matrix's Kronecker square; in between, the 36 places of a tile
are independent products over the channels. float32 errors are about 1e-5 of the largest value.
"""

from __future__ import annotations

import numpy as np

from ..backend import mx
from . import lanes

TILE = 4  # outputs along a side; an input tile has two more
ELEMENTS = 1 << 19  # of a strip's transformed input or output, so that it stays in the cache,
MOST_ELEMENTS = 1 << 21  # unless the kernels are larger still, and are to be read seldom
MOST_KERNELS = 1 << 24  # elements of the transformed kernels, about: each lane has its own

# The paper's B^T, G and A^T for F(4, 3), interpolating at 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _both_axes(matrix: tuple[tuple[float, ...], ...]) -> mx.array:
    return mx.array(np.kron(matrix, matrix).astype(np.float32))


_INPUT_2D, _KERNEL_2D, _OUTPUT_2D = map(_both_axes, (_INPUT, _KERNEL, _OUTPUT))


def conv3x3(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Convolve x (B, H, W, C) with weight (O, 3, 3, C), stride 1, padding 1, add bias (O,): (B, H, W, O), float32.

    Where the transformed kernels are large, for some of the outputs after others.
    """
    outputs, *_, channels = weight.shape
    some = -(-outputs // max(1, round(36 * channels * outputs / MOST_KERNELS)))
    shares = [slice(i, i + some) for i in range(0, outputs, some)]
    parts = [_convolved(x, weight[share], bias[share]) for share in shares]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def _convolved(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    kernels = _KERNEL_2D @ weight.transpose(1, 2, 3, 0).reshape(9, -1)
    kernels = kernels.reshape(-1, channels, outputs)
    down, across = -(-height // TILE), -(-width // TILE)  # tiles
    elements = min(max(ELEMENTS, kernels.size // 4), MOST_ELEMENTS)
    rows = TILE * max(1, min(down, elements // (36 * across * max(channels, outputs))))
    places = [(image, slice(row, row + rows)) for image in range(batch) for row in range(0, height, rows)]
    shape = (batch, height, width, outputs)
    return lanes.filled(shape, places, lambda place: _strip(x, place[0], place[1], kernels) + bias, (x, kernels, bias))


def _strip(x: mx.array, image: int, rows: slice, kernels: mx.array) -> mx.array:
    """Some rows of one image's outputs, (rows, W, O), in whole tiles of which the rest is cut off."""
    _, height, width, channels = x.shape
    stop = min(rows.stop, height)
    down, across = -(-(stop - rows.start) // TILE), -(-width // TILE)
    above, below = rows.start == 0, max(0, rows.start + TILE * down + 1 - height)
    strip = x[image, max(0, rows.start - 1) : rows.start + TILE * down + 1]
    strip = mx.pad(strip, [(int(above), below), (1, TILE * across - width + 1), (0, 0)])
    line = strip.shape[1] * channels
    tiles = mx.as_strided(
        mx.contiguous(strip),
        (TILE + 2, TILE + 2, down, across, channels),
        (line, channels, TILE * line, TILE * channels, 1),
    )
    transformed = (_INPUT_2D @ tiles.reshape(36, -1)).reshape(36, down * across, channels)
    products = (transformed @ kernels).reshape(36, -1)
    result = (_OUTPUT_2D @ products).reshape(TILE, TILE, down, across, -1)
    result = result.transpose(2, 0, 3, 1, 4).reshape(TILE * down, TILE * across, -1)
    return result[: stop - rows.start, :width]
