"""Forms for a CPU on which MLX computes exp, erf and tanh one element at a time. float32; other dtypes use plain.py's.

numpy's tanh and exp are vectorised, 20 to 40 times as fast as MLX's. Arrays are processed in blocks that fit the cache.
Nothing is lazy: inputs are evaluated first, and results are ready when a function returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..backend import mx
from . import eager, lanes, plain
from .winograd import conv3x3

BLOCK = 1 << 16  # elements per block: 256 KiB
WIDE = 1024  # row length from which numpy adds rows at full speed

WINOGRAD_PIXELS = 32 * 32  # below this, transforming the kernels costs as much as the products save
WINOGRAD_CHANNELS = 32
UNFOLDED = 1 << 21  # elements in a strip's unfolded input, for other convolutions

# atanh(erf(x / sqrt 2)) / x for |x| < 5.6 in powers of x^2, for gelu, which is then within 5e-7 of exact.
_ERF_BY_TANH = (
    0.7978842684501863,
    0.036334148989191524,
    -3.3026605076991406e-05,
    -5.5273415410606695e-05,
    3.974074662290723e-06,
    -1.3378343909458158e-07,
    1.8139326313287036e-09,
)
_ERF_ENDS = 5.6**2

# Reads a block and writes another of the same size, which may be the same block.
Blockwise = Callable[[np.ndarray, np.ndarray], None]


@np.errstate(all="ignore")
def _silu(x: np.ndarray, out: np.ndarray) -> None:
    """x sigmoid(x) = h + h tanh(h) with h = x / 2."""
    half = x * 0.5
    np.tanh(half, out=out)
    out *= half
    out += half


@np.errstate(all="ignore")
def _quick_gelu(x: np.ndarray, out: np.ndarray) -> None:
    half = x * 0.5
    np.multiply(half, 1.702, out=out)
    np.tanh(out, out=out)
    out *= half
    out += half


@np.errstate(all="ignore")
def _gelu(x: np.ndarray, out: np.ndarray) -> None:
    """x Phi(x) = h + h erf(x / sqrt 2), with erf as the tanh of a polynomial."""
    square = x * x
    np.minimum(square, _ERF_ENDS, out=square)
    angle = square * _ERF_BY_TANH[-1]
    for coefficient in _ERF_BY_TANH[-2:0:-1]:
        angle += coefficient
        angle *= square
    angle += _ERF_BY_TANH[0]
    angle *= x
    np.tanh(angle, out=angle)
    half = np.multiply(x, 0.5, out=square)
    np.multiply(angle, half, out=out)
    out += half


def _blocked(function: Blockwise, otherwise: plain.Activation) -> plain.Activation:
    def apply(x: mx.array) -> mx.array:
        if x.dtype != mx.float32:
            return otherwise(x)
        flat = eager.numbers(x).reshape(-1)
        blocks = [slice(i, i + BLOCK) for i in range(0, len(flat), BLOCK)]

        def fill(out: np.ndarray) -> None:
            lanes.each(lambda at: function(flat[at], out[at]), blocks)

        return eager.written(flat.shape, fill).reshape(x.shape)

    return apply


silu, quick_gelu, gelu = map(_blocked, (_silu, _quick_gelu, _gelu), (plain.silu, plain.quick_gelu, plain.gelu))


def geglu(x: mx.array) -> mx.array:
    if x.dtype != mx.float32:
        return plain.geglu(x)
    value, gate = np.split(eager.numbers(x).reshape(-1, x.shape[-1]), 2, axis=1)

    def fill(out: np.ndarray) -> None:
        def gated(at: slice) -> None:
            _gelu(gate[at], out[at])
            out[at] *= value[at]

        lanes.each(gated, _rows(out))

    return eager.written(value.shape, fill).reshape(*x.shape[:-1], -1)


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    if x.dtype != mx.float32:
        return plain.group_norm(x, weight, bias, groups, eps, act)
    mx.eval(x, weight, bias)
    channels = x.shape[-1]
    fold = _fold(x.size // len(x) // channels, channels)
    rows = np.asarray(x).reshape(len(x), -1, fold * channels)
    whole = slice(None)
    blocks = [(slice(i, i + 1), at) for i in range(len(rows)) for at in _rows(rows[0])]
    if rows.size <= BLOCK:  # all images at once: numpy's calls would cost more than their work
        blocks = [(whole, whole)]

    def means(sums: list[np.ndarray]) -> np.ndarray:
        """Column sums of each block -> for each image and column, the mean of its group."""
        total = np.concatenate(sums).reshape(len(rows), -1, groups, channels // groups).sum((1, 3), np.float64)
        of_channels = np.repeat(total / (rows[0].size // groups), channels // groups, axis=1)
        return np.tile(of_channels.astype(np.float32), fold)

    def squares(at: tuple[slice, slice]) -> np.ndarray:
        y = rows[at] - mean[at[0], None]
        return np.square(y, out=y).sum(1)

    def fill(out: np.ndarray) -> None:
        def normalised(at: tuple[slice, slice]) -> None:
            y = np.subtract(rows[at], mean[at[0], None], out=out[at])
            y *= scale[at[0], None]
            y += offset
            if act is silu:
                _silu(y, y)

        lanes.each(normalised, blocks)

    with np.errstate(all="ignore"):
        mean = means(lanes.each(lambda at: rows[at].sum(1), blocks))
        deviation = np.sqrt(means(lanes.each(squares, blocks)) + np.float32(eps))
        scale, offset = np.tile(weight, fold) / deviation, np.tile(bias, fold)
        result = eager.written(rows.shape, fill).reshape(x.shape)
    return act(result) if act and act is not silu else result


def _fold(places: int, channels: int) -> int:
    """How many positions of a feature map to join into one row."""
    return math.gcd(places, 1 << max(0, (WIDE // channels).bit_length() - 1))


def _rows(x: np.ndarray) -> list[slice]:
    """The rows of x (N, C) in blocks."""
    step = max(1, BLOCK // x.shape[-1])
    return [slice(i, i + step) for i in range(0, len(x), step)]


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    return plain.attention(q, k, v, mask) if q.dtype != mx.float32 or mask is not None else eager.attention(q, k, v)


def conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    stride: int = 1,
    padding: int = 0,
    plus: mx.array | None = None,
) -> mx.array:
    """Winograd's method for 3x3 convolutions of large pictures; strips of rows for others that would need much memory.

    MLX's own form unfolds the whole input: nine times its size for a 3x3 kernel.
    """
    if plus is not None:
        return conv2d(x, weight, bias, stride, padding) + plus
    outputs, *kernel, channels = weight.shape
    if x.dtype == mx.float32:  # weights stored in half precision are still computed in float32
        weight, bias = weight.astype(mx.float32), bias.astype(mx.float32)
    if (
        kernel == [3, 3]
        and stride == 1
        and padding in (0, 1)
        and x.dtype == weight.dtype == mx.float32
        and x.shape[1] * x.shape[2] >= WINOGRAD_PIXELS
        and min(channels, outputs) >= WINOGRAD_CHANNELS
    ):
        y = conv3x3(x, weight, bias)
        return y if padding else y[:, 1:-1, 1:-1]
    height, width = plain.conv2d_size(x, weight, stride, padding)
    rows = max(1, UNFOLDED // (width * math.prod(kernel) * channels))
    if not x.dtype == weight.dtype == mx.float32 or rows >= height:
        return plain.conv2d(x, weight, bias, stride, padding)

    def strip(place: tuple[int, slice]) -> mx.array:
        image, out = place
        return plain.conv2d_rows(x[image : image + 1], weight, bias, stride, padding, out.start, out.stop)[0]

    places = [(image, slice(row, row + rows)) for image in range(len(x)) for row in range(0, height, rows)]
    return lanes.filled((len(x), height, width, outputs), places, strip, (x, weight, bias))
