"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray 2016, arXiv:1509.09308), by numpy and BLAS.

F(4x4, 3x3): tiles of 4x4 outputs come from tiles of 6x6 inputs. Input, kernel and output are each transformed along
both axes by a small matrix (for input and output its additions are written out below); in between, the 36 positions of
a tile are independent products over the channels. float32 errors are about 1e-5 of the largest value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backend import mx
from . import eager, lanes

TILE = 4  # outputs per side; an input tile has two more
PLACES = (TILE + 2) ** 2
TILES = 256  # per strip at least: a smaller product spends its time reading the kernels
WEIGHTS = 1 << 16  # kernels transformed at once
MOST_KERNELS = 1 << 24  # elements of the transformed kernels, roughly: each lane has its own

# The paper's B^T, G and A^T for F(4, 3), with interpolation points 0, 1, -1, 2, -2 and infinity.
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


# For both axes at once.
INPUT_2D, KERNEL_2D, OUTPUT_2D = (np.kron(each, each).astype(np.float32) for each in (_INPUT, _KERNEL, _OUTPUT))

Arrays = Sequence[np.ndarray] | np.ndarray


def conv3x3(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Convolve x (B, H, W, C) with weight (O, 3, 3, C), stride 1, padding 1, add bias (O,): (B, H, W, O), float32.

    Where the transformed kernels would be large, the output channels are computed in several groups.
    """
    mx.eval(x, weight, bias)
    outputs, *_, channels = weight.shape
    pixels, weights, biases = map(np.asarray, (x, weight, bias))
    some = -(-outputs // max(1, round(PLACES * channels * outputs / MOST_KERNELS)))

    def fill(out: np.ndarray) -> None:
        for share in [slice(i, i + some) for i in range(0, outputs, some)]:
            _convolve(pixels, weights[share], biases[share], out[..., share])

    return eager.written((*x.shape[:3], outputs), fill)


def _convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    batch, height, width, channels = x.shape
    outputs = len(weight)
    down, across = -(-height // TILE), -(-width // TILE)  # tiles
    kernels = _transformed_kernels(weight)
    rows = -(-TILES // across)

    def strip(place: tuple[int, int]) -> None:
        """Some rows of tiles of one image, cropped at the edges."""
        image, first = place
        count = min(rows, down - first)
        start, stop = TILE * first, min(TILE * (first + count), height)
        padded = np.zeros((TILE * count + 2, TILE * across + 2, channels), np.float32)
        lines = x[image, max(start - 1, 0) : stop + 1]
        above = int(start == 0)
        padded[above : above + len(lines), 1 : width + 1] = lines
        inputs = _transformed_inputs(padded)
        products = np.empty((*inputs.shape[:-1], outputs), np.float32)
        factors = inputs.reshape(PLACES, -1, channels), kernels, products.reshape(PLACES, -1, outputs)
        for a, b, c in zip(*factors, strict=True):
            eager.product(a, b, c, eager.TRANSPOSED)
        pixels = _transformed_outputs(products)
        np.add(pixels[: stop - start, :width], bias, out=out[image, start:stop])

    lanes.each(strip, [(image, row) for image in range(batch) for row in range(0, down, rows)])


def _transformed_kernels(weight: np.ndarray) -> np.ndarray:
    """(O, 3, 3, C) -> (36, O, C)."""
    outputs, _, _, channels = weight.shape
    kernels = np.ascontiguousarray(weight.reshape(outputs, 9, channels).swapaxes(0, 1)).reshape(9, -1)
    result = np.empty((PLACES, kernels.shape[1]), np.float32)
    parts = [slice(i, i + WEIGHTS) for i in range(0, kernels.shape[1], WEIGHTS)]
    lanes.each(lambda at: eager.product(KERNEL_2D, kernels[:, at], result[:, at]), parts)
    return result.reshape(PLACES, outputs, channels)


def _transformed_inputs(x: np.ndarray) -> np.ndarray:
    """(4 rows + 2, 4 across + 2, C) -> (6, 6, rows, across, C)."""
    height, width, channels = x.shape
    rows, across = height // TILE, width // TILE
    lines = np.empty((TILE + 2, rows, width, channels), np.float32)
    _input([x[i::TILE][:rows] for i in range(TILE + 2)], lines)
    result = np.empty((TILE + 2, TILE + 2, rows, across, channels), np.float32)
    _input([lines[:, :, i::TILE][:, :, :across] for i in range(TILE + 2)], result.swapaxes(0, 1))
    return result


def _transformed_outputs(products: np.ndarray) -> np.ndarray:
    """(6, 6, rows, across, O) -> (4 rows, 4 across, O)."""
    _, _, rows, across, outputs = products.shape
    lines = np.empty((TILE, *products.shape[1:]), np.float32)
    _output(products, lines)
    result = np.empty((rows, TILE, across, TILE, outputs), np.float32)
    _output(lines.swapaxes(0, 1), result.transpose(3, 1, 0, 2, 4))
    return result.reshape(TILE * rows, TILE * across, outputs)


@np.errstate(all="ignore")
def _input(x: Arrays, out: np.ndarray) -> None:
    """_INPUT times the six arrays of x."""
    even, odd = x[2] * -4, x[1] * -4
    even += x[4]
    odd += x[3]
    np.add(even, odd, out=out[1])
    np.subtract(even, odd, out=out[2])
    np.subtract(x[4], x[2], out=even)
    np.subtract(x[3], x[1], out=odd)
    np.subtract(x[0], x[2], out=out[0])
    out[0] *= 4
    out[0] += even
    odd *= 2
    np.add(even, odd, out=out[3])
    np.subtract(even, odd, out=out[4])
    odd *= 2
    np.subtract(x[5], x[3], out=out[5])
    out[5] -= odd


@np.errstate(all="ignore")
def _output(x: Arrays, out: np.ndarray) -> None:
    """_OUTPUT times the six arrays of x."""
    near_sum, near, far_sum, far = x[1] + x[2], x[1] - x[2], x[3] + x[4], x[3] - x[4]
    np.add(x[0], near_sum, out=out[0])
    out[0] += far_sum
    far *= 2
    np.add(near, far, out=out[1])
    far_sum *= 4
    np.add(near_sum, far_sum, out=out[2])
    far *= 4
    far += near
    np.add(far, x[5], out=out[3])
