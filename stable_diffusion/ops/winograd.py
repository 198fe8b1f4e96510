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


def conv3x3(x: mx.array, weight: mx.array) -> mx.array:
    """Convolve x (B, H, W, C) with weight (O, 3, 3, C), stride 1, padding 1: (B, H, W, O), float32."""
    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    down, across = -(-height // TILE), -(-width // TILE)  # tiles
    kernels = _KERNEL_2D @ weight.transpose(1, 2, 3, 0).reshape(9, -1)
    kernels = kernels.reshape(-1, channels, outputs)
    padding = [(0, 0), (1, TILE * down - height + 1), (1, TILE * across - width + 1), (0, 0)]
    x = mx.contiguous(mx.pad(x, padding))
    elements = min(max(ELEMENTS, kernels.size // 4), MOST_ELEMENTS)
    rows = max(1, min(down, elements // (36 * across * max(channels, outputs))))
    places = [(image, row) for image in range(batch) for row in range(0, down, rows)]
    strips = lanes.each(lambda place: _strip(x, *place, min(rows, down - place[1]), kernels), places, (x, kernels))
    return mx.concatenate(strips).reshape(batch, TILE * down, TILE * across, outputs)[:, :height, :width]


def _strip(x: mx.array, image: int, row: int, rows: int, kernels: mx.array) -> mx.array:
    """The outputs of some rows of tiles of one image, (4 rows, 4 tiles across, O); x is padded and contiguous."""
    _, height, width, channels = x.shape
    across = (width - 2) // TILE
    line = width * channels
    tiles = mx.as_strided(
        x,
        (TILE + 2, TILE + 2, rows, across, channels),
        (line, channels, TILE * line, TILE * channels, 1),
        offset=(image * height + TILE * row) * line,
    )
    transformed = (_INPUT_2D @ tiles.reshape(36, -1)).reshape(36, rows * across, channels)
    products = (transformed @ kernels).reshape(36, -1)
    result = (_OUTPUT_2D @ products).reshape(TILE, TILE, rows, across, -1)
    return result.transpose(2, 0, 3, 1, 4).reshape(TILE * rows, TILE * across, -1)
