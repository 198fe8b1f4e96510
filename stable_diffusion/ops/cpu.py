"""Forms for a CPU on which MLX adds and multiplies quickly, but takes exp, erf and tanh one element at a time.

exp is a polynomial here, of additions and multiplications, as exact as MLX's own (1e-6 relative); the others come from
it. Everything goes through in blocks that stay in the cache, because a dozen passes over memory would cost what the
polynomial saves. float32 only: other types take the plain forms. (`quantized_matmul` has reasons of its own.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..backend import mx
from . import plain
from .winograd import conv3x3

BLOCK = 1 << 17  # elements that a block holds: half a megabyte

WINOGRAD_PIXELS = 32 * 32  # below it the kernels' transform costs what the products save
WINOGRAD_CHANNELS = 32

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
    value, gate = mx.split(x, 2, axis=-1)
    return value * gelu(gate)


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    """The softmax's numerator in blocks of scores, each row less its maximum; the denominator divides the outcome."""
    batch, heads, length, _ = q.shape
    if q.dtype != mx.float32 or mask is not None:
        return plain.attention(q, k, v, mask)
    shape = (batch * heads, *k.shape[2:])
    k = mx.broadcast_to(k, (batch, *k.shape[1:])).reshape(shape).swapaxes(-1, -2)
    v = mx.broadcast_to(v, (batch, *v.shape[1:])).reshape(*shape[:2], -1)
    q = (q * (1 / (math.log(2) * math.sqrt(q.shape[-1])))).reshape(batch * heads, length, -1)
    rows = max(1, BLOCK // shape[1])
    together = max(1, rows // length)  # heads, where several fit into a block
    blocks = []
    for i in range(0, batch * heads, together):
        some = slice(i, i + together)
        parts = [_attend(q[some, j : j + rows], k[some], v[some]) for j in range(0, length, rows)]
        blocks.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1))
    return mx.concatenate(blocks).reshape(batch, heads, length, -1)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """Unpack W, then multiply by BLAS: MLX's own form takes a CPU 35 times as long as that for an attention layer."""
    return x @ mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits).T


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    """Sums over space as products with ones, everything else in blocks of rows, where there is more than one block."""
    if x.dtype != mx.float32 or x.size <= BLOCK:
        return plain.group_norm(x, weight, bias, groups, eps, act)
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    images = [_normalised(image, weight, bias, groups, eps, act) for image in rows]
    return mx.concatenate(images).reshape(x.shape)


def _normalised(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None
) -> mx.array:
    """One image (N, C). The mean is taken twice: what the first leaves of it is too small to lose digits by."""
    count, channels = x.shape
    step = max(1, BLOCK // channels)
    blocks = [x[i : i + step] for i in range(0, count, step)]
    ones = mx.ones((1, min(step, count)))

    def mean(parts: list[mx.array]) -> mx.array:
        """Of each channel's group, (1, C)."""
        sums = mx.concatenate([ones[:, : part.shape[0]] @ part for part in parts]).sum(axis=0) / count
        return mx.repeat(sums.reshape(groups, -1).mean(axis=1), channels // groups)[None]

    shift = mean(blocks)
    rest = mean([block - shift for block in blocks])
    square = mean([mx.square(block - shift) for block in blocks])
    scale = weight * mx.rsqrt(square - mx.square(rest) + eps)
    shift = shift + rest
    scaled = [(block - shift) * scale + bias for block in blocks]
    return mx.concatenate([act(block) for block in scaled] if act else scaled)


def conv2d(x: mx.array, weight: mx.array, bias: mx.array, stride: int = 1, padding: int = 0) -> mx.array:
    """A 3x3 convolution of a large picture by Winograd's method."""
    outputs, *kernel, channels = weight.shape
    if (
        kernel == [3, 3]
        and (stride, padding) == (1, 1)
        and x.dtype == weight.dtype == mx.float32
        and x.shape[1] * x.shape[2] >= WINOGRAD_PIXELS
        and min(channels, outputs) >= WINOGRAD_CHANNELS
    ):
        return conv3x3(x, weight) + bias
    return plain.conv2d(x, weight, bias, stride, padding)


def _attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """q is scaled by log2(e), so that the scores are logarithms to the base 2."""
    scores = q @ k
    weights = _exp2(mx.maximum(scores - scores.max(axis=-1, keepdims=True), -126.0))
    return (weights @ v) / weights.sum(axis=-1, keepdims=True)


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
    return mx.concatenate([function(flat[i : i + BLOCK]) for i in range(0, x.size, BLOCK)]).reshape(x.shape)
