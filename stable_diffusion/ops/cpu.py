"""Forms for a CPU on which MLX adds and multiplies quickly, but takes exp, erf and tanh one element at a time.

exp is a polynomial here, of additions and multiplications, as exact as MLX's own (1e-6 relative); the others come from
it. Everything goes through in blocks that stay in the cache, because a dozen passes over memory would cost what the
polynomial saves. float32 only: other types take the plain forms. (`quantized_matmul` has reasons of its own.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..backend import mx
from . import eager, lanes, plain
from .winograd import conv3x3

BLOCK = 1 << 17  # elements that a block holds: half a megabyte

WINOGRAD_PIXELS = 32 * 32  # below it the kernels' transform costs what the products save
WINOGRAD_CHANNELS = 32
UNFOLDED = 1 << 21  # elements that a strip's unfolded input holds, in other convolutions

# 2^f for f in [-1/2, 1/2], to 8e-8 relative: coefficients of f^0 .. f^5 (least squares at Chebyshev's points).
_POWERS = (1.00000007103, 0.69314694916, 0.24022121754, 0.05550742616, 0.00967545975, 0.0013266970)
# Adding it rounds a float32 to a whole number n, and leaves n + 127 in the lowest bits: the exponent of 2^n.
_ROUND = 1.5 * 2.0**23 + 127


def exp(x: mx.array) -> mx.array:
    """e^x of float32, to about 1e-6 relative; below -87 it is 0 to within 2e-38, above 88 it is 3e38 or nearly so."""
    return _exp2(mx.clip(x * (1 / math.log(2)), -126.0, 127.999))


def _exp2(t: mx.array) -> mx.array:
    """2^t for -126 <= t < 128."""
    rounded = t + _ROUND
    f = t - (rounded - _ROUND)
    power = f * _POWERS[-1] + _POWERS[-2]
    for coefficient in _POWERS[-3::-1]:
        power = power * f + coefficient
    return (rounded.view(mx.int32) << 23).view(mx.float32) * power


def silu(x: mx.array) -> mx.array:
    return _blocked(lambda y: y / (1 + exp(-y)), x, plain.silu)


def quick_gelu(x: mx.array) -> mx.array:
    return _blocked(lambda y: y / (1 + exp(-1.702 * y)), x, plain.quick_gelu)


def gelu(x: mx.array) -> mx.array:
    return _blocked(_gelu, x, plain.gelu)


def geglu(x: mx.array) -> mx.array:
    if x.dtype != mx.float32 or x.size <= BLOCK:
        return lanes.settled(plain.geglu(x))
    rows, channels = x.reshape(-1, x.shape[-1]), x.shape[-1] // 2
    step = max(1, BLOCK // channels)
    places = [slice(i, i + step) for i in range(0, rows.shape[0], step)]
    result = lanes.filled(
        (rows.shape[0], channels),
        places,
        lambda place: rows[place, :channels] * _gelu(rows[place, channels:]),
        rows,
    )
    return result.reshape(*x.shape[:-1], channels)


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    return plain.attention(q, k, v, mask) if q.dtype != mx.float32 or mask is not None else eager.attention(q, k, v)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """Unpack W, then multiply by BLAS: MLX's own form takes a CPU 35 times as long as that for an attention layer."""
    return x @ mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits).T


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    """Sums over space as products with ones, everything else in blocks of rows, where there is more than one block.

    The squares are summed of what is left without a shift, the mean of every eighth row: too near the mean of all for
    digits to be lost.
    """
    if x.dtype != mx.float32 or x.size <= BLOCK:
        return lanes.settled(plain.group_norm(x, weight, bias, groups, eps, act))
    batch, channels = x.shape[0], x.shape[-1]
    rows = x.reshape(batch, -1, channels)
    step = max(1, BLOCK // channels)
    blocks = [(image, slice(i, i + step)) for image in range(batch) for i in range(0, rows.shape[1], step)]

    def over_groups(sums: mx.array, count: int) -> mx.array:
        """Sums of a batch's channels (B, 1, C) -> for each channel the mean of its group."""
        means = sums.reshape(batch, groups, -1).mean(axis=-1) / count
        return mx.repeat(means, channels // groups, axis=1)[:, None]

    sample = rows[:, ::8]
    shift = over_groups(_sum(sample), sample.shape[1])

    def sums(at: tuple[int, slice]) -> mx.array:
        y = rows[at] - shift[at[0]]
        return mx.concatenate([_sum(y), _sum(mx.square(y))])

    total = mx.stack(lanes.each(sums, blocks, (rows, shift))).reshape(batch, -1, 2, channels).sum(axis=1)
    rest, square = (over_groups(part, rows.shape[1]) for part in (total[:, :1], total[:, 1:]))
    scale = weight * mx.rsqrt(square - mx.square(rest) + eps)
    shift = shift + rest

    def normalised(at: tuple[int, slice]) -> mx.array:
        y = (rows[at] - shift[at[0]]) * scale[at[0]] + bias
        return act(y) if act else y

    return lanes.filled(rows.shape, blocks, normalised, (rows, shift, scale, bias)).reshape(x.shape)


def _sum(x: mx.array) -> mx.array:
    """Over the rows of x (..., N, C), as a product: (..., 1, C)."""
    return mx.ones((1, x.shape[-2])) @ x


def conv2d(x: mx.array, weight: mx.array, bias: mx.array, stride: int = 1, padding: int = 0) -> mx.array:
    """A 3x3 convolution of a large picture by Winograd's method; others in strips of rows where they would be large.

    MLX unfolds the whole input of the plain form, nine times its size for a 3x3 kernel.
    """
    outputs, *kernel, channels = weight.shape
    if (
        kernel == [3, 3]
        and (stride, padding) == (1, 1)
        and x.dtype == weight.dtype == mx.float32
        and x.shape[1] * x.shape[2] >= WINOGRAD_PIXELS
        and min(channels, outputs) >= WINOGRAD_CHANNELS
    ):
        return conv3x3(x, weight, bias)
    height, width = ((side + 2 * padding - size) // stride + 1 for side, size in zip(x.shape[1:3], kernel, strict=True))
    rows = max(1, UNFOLDED // (width * math.prod(kernel) * channels))
    if not x.dtype == weight.dtype == mx.float32 or rows >= height:
        return lanes.settled(plain.conv2d(x, weight, bias, stride, padding))

    def strip(place: tuple[int, slice]) -> mx.array:
        image, out = place
        start, stop = out.start * stride - padding, (min(out.stop, height) - 1) * stride - padding + kernel[0]
        lines = x[image : image + 1, max(start, 0) : stop]
        lines = mx.pad(lines, [(0, 0), (max(-start, 0), max(stop - x.shape[1], 0)), (padding, padding), (0, 0)])
        return plain.conv2d(lines, weight, bias, stride)[0]

    places = [(image, slice(row, row + rows)) for image in range(len(x)) for row in range(0, height, rows)]
    return lanes.filled((len(x), height, width, outputs), places, strip, (x, weight, bias))


def _gelu(x: mx.array) -> mx.array:
    """x Phi(x) with erf by equation 7.1.26 of Abramowitz and Stegun 1964, whose error is 1.5e-7."""
    a = mx.abs(x) * (1 / math.sqrt(2))
    t = 1 / (1 + 0.3275911 * a)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * mx.abs(x) * series * exp(-a * a)  # |x| Phi(-|x|)
    return mx.maximum(x, 0) - tail


def _blocked(
    function: Callable[[mx.array], mx.array], x: mx.array, otherwise: Callable[[mx.array], mx.array]
) -> mx.array:
    if x.dtype != mx.float32:
        return otherwise(x)
    if x.size <= BLOCK:
        return function(x)
    flat = x.reshape(-1)
    blocks = [slice(i, i + BLOCK) for i in range(0, x.size, BLOCK)]
    return lanes.filled(flat.shape, blocks, lambda block: function(flat[block]), flat).reshape(x.shape)
