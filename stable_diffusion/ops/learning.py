"""The operations with gradients, for a CPU on which MLX's exp is slow: training uses these instead of cpu.py.

Each has a hand-written vector-Jacobian product, because MLX would differentiate through every block and every bit trick
of a fast form. float32, channels last; plain.py says what each operation means. The optimiser's step, which needs no
gradient, is here too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import mx
from . import plain
from .winograd import INPUT_2D, KERNEL_2D, OUTPUT_2D, TILE

# 2^f for f in [-1/2, 1/2], relative error 8e-8: coefficients of f^0 .. f^5 (least squares at Chebyshev nodes).
_POWERS = (1.00000007103, 0.69314694916, 0.24022121754, 0.05550742616, 0.00967545975, 0.0013266970)
# Adding it rounds a float32 to an integer n and leaves n + 127, the exponent bits of 2^n, in the lowest bits.
_ROUND = 1.5 * 2.0**23 + 127

BLOCK = 1 << 18  # elements per block: 1 MiB
SMALL_BLOCK = 1 << 15  # elements; six blocks of this size fit the cache
# 3x3 convolutions of so few pixels, with so many kernels, are products; of even fewer pixels, never Winograd's.
FEW_PIXELS, WIDE, FEWER_PIXELS = 128, 1 << 18, 64


def _exp2(t: mx.array) -> mx.array:
    """2^t for -126 <= t < 128."""
    rounded = t + _ROUND
    f = t - (rounded - _ROUND)
    power = f * _POWERS[-1] + _POWERS[-2]
    for coefficient in _POWERS[-3::-1]:
        power = power * f + coefficient
    return (rounded.view(mx.int32) << 23).view(mx.float32) * power


def _elementwise(function: Callable[[mx.array], tuple[mx.array, mx.array]]) -> plain.Activation:
    """An activation from a function that returns (value, derivative); the latter is kept for the backward pass."""

    def both(x: mx.array) -> tuple[mx.array, mx.array]:
        if x.dtype != mx.float32:
            value, derivative = both(x.astype(mx.float32))
            return value.astype(x.dtype), derivative.astype(x.dtype)
        if x.size <= BLOCK:
            return function(x)
        flat = x.reshape(-1)
        parts = [function(flat[i : i + BLOCK]) for i in range(0, x.size, BLOCK)]
        values, derivatives = (mx.concatenate(list(each)).reshape(x.shape) for each in zip(*parts, strict=True))
        return values, derivatives

    apply: Any = mx.custom_function(both)

    @apply.vjp
    def pull(x: mx.array, cotangents: Sequence[mx.array], results: Sequence[mx.array]) -> mx.array:
        return cotangents[0] * results[1]

    return lambda x: apply(x)[0]


def _sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + _exp2(mx.clip(x * (-1 / math.log(2)), -126.0, 126.0)))


def _silu(x: mx.array) -> tuple[mx.array, mx.array]:
    s = _sigmoid(x)
    y = x * s
    return y, s + y * (1 - s)


def _quick_gelu(x: mx.array) -> tuple[mx.array, mx.array]:
    s = _sigmoid(1.702 * x)
    y = x * s
    return y, s + 1.702 * y * (1 - s)


def _gelu(x: mx.array) -> tuple[mx.array, mx.array]:
    """x Phi(x) and Phi(x) + x phi(x), with Phi by equation 7.1.26 of Abramowitz and Stegun 1964 (error 1.5e-7)."""
    t = 1 / (1 + (0.3275911 / math.sqrt(2)) * mx.abs(x))
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    bell = _exp2(mx.maximum(x * x * (-0.5 / math.log(2)), -126.0))
    half = 0.5 - 0.5 * series * bell  # Phi(|x|) - 1/2
    phi = 0.5 + half * mx.sign(x)
    return x * phi, phi + x * bell * (1 / math.sqrt(2 * math.pi))


silu, quick_gelu, gelu = map(_elementwise, (_silu, _quick_gelu, _gelu))


def geglu(x: mx.array) -> mx.array:
    value, gate = mx.split(x, 2, axis=-1)
    return value * gelu(gate)


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    """As many whole heads at once as fit a block; the softmax weights are kept for the backward pass."""
    batch, heads, length, depth = q.shape
    if q.dtype != mx.float32 or isinstance(mask, mx.array):
        return plain.attention(q, k, v, mask)
    k = mx.broadcast_to(k, (batch, *k.shape[1:]))
    v = mx.broadcast_to(v, (batch, *v.shape[1:]))
    q, k, v = (each.reshape(batch * heads, *each.shape[2:]) for each in (q * (1 / math.sqrt(depth)), k, v))
    function = _causal_attention if mask == "causal" else _full_attention
    return function(q, k, v)[0].reshape(batch, heads, length, -1)


def _attention(causal: bool) -> Callable:
    """Attention of q (N, L, D), already scaled, to k and v (N, M, D)."""

    def weights(q: mx.array, k: mx.array) -> mx.array:
        scores = (q * (1 / math.log(2))) @ k.swapaxes(-1, -2)
        if causal:
            scores = scores + mx.array(np.triu(np.full(scores.shape[1:], -1e9, np.float32), 1))
        numerators = _exp2(mx.maximum(scores - scores.max(axis=-1, keepdims=True), -126.0))
        return numerators * (1 / numerators.sum(axis=-1, keepdims=True))

    @mx.custom_function
    def apply(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        p = mx.concatenate([weights(q[i], k[i]) for i in _slices(len(q), q.shape[1] * k.shape[1])])
        return p @ v, p

    @apply.vjp
    def pull(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], results: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        q, k, v = primals
        y, p = results
        c = cotangents[0]
        means = (c * y).sum(axis=-1, keepdims=True)
        scores = mx.concatenate([p[i] * (c[i] @ v[i].swapaxes(-1, -2) - means[i]) for i in _slices(len(q), p[0].size)])
        return scores @ k, scores.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ c

    return apply


_full_attention, _causal_attention = _attention(causal=False), _attention(causal=True)


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    """With SiLU in the same function; the intermediate values that the backward pass needs are kept."""
    if act not in (None, silu) or x.dtype != mx.float32:
        return plain.group_norm(x, weight, bias, groups, eps, act)
    function = _group_norm(groups, eps, act is silu)
    return function(x.reshape(x.shape[0], -1, x.shape[-1]), weight, bias)[0].reshape(x.shape)


@functools.cache
def _group_norm(groups: int, eps: float, activated: bool) -> Callable:
    def over_groups(x: mx.array) -> mx.array:
        """Means over the channels of a group, (B, 1, C), for each of its channels."""
        batch, _, channels = x.shape
        means = x.reshape(batch, 1, groups, -1).mean(axis=-1, keepdims=True)
        return mx.broadcast_to(means, (batch, 1, groups, channels // groups)).reshape(x.shape)

    def forward(x: mx.array, weight: mx.array, bias: mx.array) -> tuple[mx.array, ...]:
        """x (B, N, C) -> the result; SiLU's slope; (x - mean) / deviation; 1 / deviation (B, 1, C)."""
        x = x - over_groups(x.mean(axis=1, keepdims=True))
        scale = mx.rsqrt(over_groups(mx.square(x).mean(axis=1, keepdims=True)) + eps)
        x = x * scale
        y = x * weight + bias
        return (*_silu(y), x, scale) if activated else (y, mx.ones((1,)), x, scale)

    def backward(c: mx.array, weight: mx.array, slope: mx.array, x: mx.array, scale: mx.array) -> tuple[mx.array, ...]:
        c = c * slope if activated else c
        bias_part, weight_part = c.mean(axis=1, keepdims=True), (c * x).mean(axis=1, keepdims=True)
        c = c * weight - over_groups(bias_part * weight) - x * over_groups(weight_part * weight)
        count = x.shape[1]
        return c * scale, weight_part.sum(axis=(0, 1)) * count, bias_part.sum(axis=(0, 1)) * count

    @mx.custom_function
    def apply(x: mx.array, weight: mx.array, bias: mx.array) -> tuple[mx.array, ...]:
        parts = [forward(x[i], weight, bias) for i in _slices(len(x), x[0].size)]
        return tuple(mx.concatenate(list(each)) for each in zip(*parts, strict=True))

    @apply.vjp
    def pull(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], results: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        _, slope, x, scale = results
        parts = [
            backward(cotangents[0][i], primals[1], slope[i] if activated else slope, x[i], scale[i])
            for i in _slices(len(x), x[0].size)
        ]
        inputs, weights, biases = zip(*parts, strict=True)
        return mx.concatenate(list(inputs)), sum(weights[1:], weights[0]), sum(biases[1:], biases[0])

    return apply


def conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    stride: int = 1,
    padding: int = 0,
    plus: mx.array | None = None,
) -> mx.array:
    """3x3 kernels by Winograd's method, as one product or, at stride 2, with a faster backward pass; others as in MLX.

    Winograd's method transforms the kernel, at the cost of its own convolution with 36 pixels: too much for few.
    """
    if plus is not None:
        return conv2d(x, weight, bias, stride, padding) + plus
    _, height, width, channels = x.shape
    if weight.shape[1:3] == (3, 3) and x.dtype == mx.float32 and channels >= 8:
        pixels = len(x) * height * width
        if (stride, padding) == (1, 1) and pixels <= FEW_PIXELS and len(weight) * channels >= WIDE:
            return _product(x, weight) + bias
        if (stride, padding) == (1, 1) and height % TILE == 0 == width % TILE and pixels > FEWER_PIXELS:
            return _winograd(x, weight)[0] + bias
        if stride == 2:
            x = mx.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)]) if padding else x
            return _halving(x, weight) + bias
    return plain.conv2d(x, weight, bias, stride, padding)


@functools.cache
def _transforms() -> tuple[mx.array, mx.array, mx.array]:
    """Winograd's transforms of input (36, 36), kernel (36, 9) and output (16, 36)."""
    return mx.array(INPUT_2D), mx.array(KERNEL_2D), mx.array(OUTPUT_2D)


def _convolved(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """winograd.py's convolution of a whole batch, sides divisible by 4; and the transformed input (36, tiles, C)."""
    batch, height, width, channels = x.shape
    outputs, down, across = weight.shape[0], height // TILE, width // TILE
    of_input, of_kernel, of_output = _transforms()
    kernels = (of_kernel @ weight.transpose(1, 2, 3, 0).reshape(9, -1)).reshape(36, channels, outputs)
    x = mx.contiguous(mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]))
    line = (width + 2) * channels
    strides = (line, channels, (height + 2) * line, TILE * line, TILE * channels, 1)
    tiles = mx.as_strided(x, (TILE + 2, TILE + 2, batch, down, across, channels), strides)
    inputs = (of_input @ tiles.reshape(36, -1)).reshape(36, -1, channels)
    y = (of_output @ (inputs @ kernels).reshape(36, -1)).reshape(TILE, TILE, batch, down, across, outputs)
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height, width, outputs), inputs


_winograd: Any = mx.custom_function(_convolved)


@_winograd.vjp
def _winograd_vjp(
    primals: Sequence[mx.array], cotangents: Sequence[mx.array], results: Sequence[mx.array]
) -> tuple[mx.array, mx.array]:
    """The input's by the rotated kernel; the kernel's by the transposes of the kernel's and the output's transforms."""
    weight, cotangent, inputs = primals[1], cotangents[0], results[1]
    _, of_kernel, of_output = _transforms()
    batch, height, width, outputs = cotangent.shape
    x_part, _ = _convolved(cotangent, weight[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    tiles = cotangent.reshape(batch, height // TILE, TILE, width // TILE, TILE, outputs).transpose(2, 4, 0, 1, 3, 5)
    products = (of_output.T @ tiles.reshape(TILE * TILE, -1)).reshape(36, -1, outputs)
    kernels = inputs.swapaxes(1, 2) @ products
    w_part = (of_kernel.T @ kernels.reshape(36, -1)).reshape(3, 3, -1, outputs).transpose(3, 0, 1, 2)
    return x_part, w_part


def _patches(x: mx.array) -> mx.array:
    """The 3x3 surroundings of each pixel of (B, H, W, C): (B H W, 9 C)."""
    batch, height, width, channels = x.shape
    x = mx.contiguous(mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]))
    line = (width + 2) * channels
    strides = ((height + 2) * line, line, channels, line, channels, 1)
    return mx.as_strided(x, (batch, height, width, 3, 3, channels), strides).reshape(-1, 9 * channels)


def _as_product(x: mx.array, weight: mx.array) -> mx.array:
    """A 3x3 convolution, stride 1, padding 1: the kernel is read as it lies in memory, once."""
    return (_patches(x) @ weight.reshape(len(weight), -1).T).reshape(*x.shape[:3], -1)


_product: Any = mx.custom_function(_as_product)


@_product.vjp
def _product_vjp(primals: Sequence[mx.array], cotangent: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
    """MLX would rotate and copy the kernel, which is larger than all else."""
    x, weight = primals
    batch, height, width, channels = x.shape
    flat = cotangent.reshape(-1, len(weight))
    parts = (flat @ weight.reshape(len(weight), -1)).reshape(batch, height, width, 3, 3, channels)
    x_part = mx.zeros((batch, height + 2, width + 2, channels))
    for i in range(3):
        for j in range(3):
            x_part = x_part.at[:, i : i + height, j : j + width].add(parts[:, :, :, i, j])
    return x_part[:, 1:-1, 1:-1], (flat.T @ _patches(x)).reshape(weight.shape)


def _halved(x: mx.array, weight: mx.array) -> mx.array:
    """A 3x3 convolution, stride 2, no padding."""
    return mx.conv2d(x, weight, stride=2)


_halving: Any = mx.custom_function(_halved)


@_halving.vjp
def _halving_vjp(primals: Sequence[mx.array], cotangent: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
    """The input's as a convolution of stride 1 whose output channels are the 2x2 cells of the input.

    MLX would dilate the cotangent with zeros: four times the work, and slow on a CPU anyway.
    """
    x, weight = primals
    batch, height, width, channels = x.shape
    outputs, rows, columns = weight.shape[0], y.shape[1] + 1, y.shape[2] + 1
    # The 3x3 kernel with a row and a column of zeros appended, as 2x2 cells of 2x2.
    cells = mx.pad(weight, [(0, 0), (0, 1), (0, 1), (0, 0)]).reshape(outputs, 2, 2, 2, 2, channels)
    kernel = cells.transpose(2, 4, 5, 1, 3, 0).reshape(4 * channels, 2, 2, outputs)[:, ::-1, ::-1]
    x_part = mx.conv2d(cotangent, kernel, padding=1).reshape(batch, rows, columns, 2, 2, channels)
    x_part = x_part.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * rows, 2 * columns, channels)
    over = [(0, 0), (0, max(0, height - 2 * rows)), (0, max(0, width - 2 * columns)), (0, 0)]
    (w_part,) = mx.vjp(lambda w: mx.conv2d(x, w, stride=2), [weight], [cotangent])[1]
    return mx.pad(x_part, over)[:, :height, :width], w_part


def adamw(
    p: mx.array, average: mx.array, m: mx.array, v: mx.array, g: mx.array, scale: mx.array, numbers: plain.AdamW
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """In place by numpy, in blocks that fit the cache: a quarter of the time. Nothing is lazy."""
    b1, b2, rate, decay, decaying, _, keep = numbers
    first, second = numbers.corrections
    mx.eval(p, average, m, v, g, scale)
    factor = float(scale)
    before, after = np.asarray(p), np.empty(p.shape, np.float32)  # the model's weights are views of p
    means, firsts, seconds, gradients = map(np.asarray, (average, m, v, g))
    spare = np.empty(SMALL_BLOCK, np.float32)
    for i in range(0, p.size, SMALL_BLOCK):
        some = slice(i, min(i + SMALL_BLOCK, p.size))
        x, a, m_, v_, g_ = after[some], means[some], firsts[some], seconds[some], gradients[some]
        s = spare[: len(x)]
        np.multiply(g_, (1 - b1) * factor, out=s)
        m_ *= b1
        m_ += s
        np.square(g_, out=s)
        s *= (1 - b2) * factor**2
        v_ *= b2
        v_ += s
        np.multiply(v_, second, out=s)
        np.sqrt(s, out=s)
        s += plain.ADAM_EPS
        np.divide(m_, s, out=s)
        s *= rate * first
        x[:] = before[some]
        x[: max(0, decaying - i)] *= 1 - rate * decay
        x -= s
        np.subtract(a, x, out=s)
        s *= keep
        np.add(x, s, out=a)
    return mx.array(after), average, m, v


def _slices(count: int, size: int) -> list[slice]:
    """Slices of an axis of `count` items, as many per slice as fit a block; each item has `size` elements."""
    together = max(1, BLOCK // size)
    return [slice(i, i + together) for i in range(0, count, together)]
