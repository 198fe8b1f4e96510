"""The plain form of each operation: its meaning, in MLX that runs on every device. Layouts are channels last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import mx, nn

Activation = Callable[[mx.array], mx.array]


def silu(x: mx.array) -> mx.array:
    """x sigmoid(x) (Elfwing et al. 2018)."""
    return x * mx.sigmoid(x)


def gelu(x: mx.array) -> mx.array:
    """x Phi(x), exact (Hendrycks and Gimpel 2016)."""
    return x * (1 + mx.erf(x * (1 / math.sqrt(2)))) * 0.5


def quick_gelu(x: mx.array) -> mx.array:
    """x sigmoid(1.702 x), CLIP's approximation."""
    return x * mx.sigmoid(1.702 * x)


def mish(x: mx.array) -> mx.array:
    """x tanh(log(1 + e^x)) (Misra 2019)."""
    return x * mx.tanh(mx.logaddexp(x, mx.zeros_like(x)))


def relu(x: mx.array) -> mx.array:
    """max(x, 0)."""
    return mx.maximum(x, 0)


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    """Softmax attention (Vaswani et al. 2017, equation 1), with the softmax in float32.

    q (B, heads, N, D), k and v (B or 1, heads, M, D); `mask` is None, "causal" or additive (N, M). Returns
    (B, heads, N, D).
    """
    k, v = for_batch(len(q), k, v)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]), mask=mask)


def for_batch(batch: int, *arrays: mx.array) -> list[mx.array]:
    """Arrays of one row or `batch` rows, all with `batch`: MLX's attention takes no others."""
    return [x if len(x) == batch else mx.broadcast_to(x, (batch, *x.shape[1:])) for x in arrays]


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: Activation | None = None
) -> mx.array:
    """Group normalisation (Wu and He 2018) over space and each group of channels, then `act`.

    x (B, ..., C), its spatial axes flattened or not; statistics are computed in float32.
    """
    batch, channels = x.shape[0], x.shape[-1]
    y = x.reshape(batch, -1, groups, channels // groups).astype(mx.float32)
    mean = y.mean(axis=(1, 3), keepdims=True)
    y = y - mean
    scale = mx.rsqrt(mx.square(y).mean(axis=(1, 3), keepdims=True) + eps)
    y = (y * scale).reshape(x.shape).astype(x.dtype) * weight + bias
    return act(y) if act else y


def geglu(x: mx.array) -> mx.array:
    """Gated linear unit with exact GELU (Shazeer 2020): a gelu(b) of x = [a, b] (..., 2 F). Returns (..., F)."""
    value, gate = mx.split(x, 2, axis=-1)
    return value * gelu(gate)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """x W^T with W (O, I) as `mx.quantize` packs it, unpacked first; x (..., I). Returns (..., O).

    On a CPU the BLAS then takes a 35th of the time that MLX's own kernel takes for an attention layer.
    """
    return x @ mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits).T


def conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    stride: int = 1,
    padding: int = 0,
    plus: mx.array | None = None,
) -> mx.array:
    """2-D convolution: x (B, H, W, C), weight (O, kH, kW, C), bias (O,). Returns (B, H', W', O).

    `plus` is added to it, and broadcast where it is smaller.
    """
    y = mx.conv2d(x, weight, stride=stride, padding=padding) + bias
    return y if plus is None else y + plus


def conv2d_size(x: mx.array, weight: mx.array, stride: int, padding: int) -> tuple[int, int]:
    """(H', W') of `conv2d`."""
    kernel = weight.shape[1:3]
    height, width = ((side + 2 * padding - k) // stride + 1 for side, k in zip(x.shape[1:3], kernel, strict=True))
    return height, width


def conv2d_rows(
    x: mx.array, weight: mx.array, bias: mx.array, stride: int, padding: int, first: int, last: int
) -> mx.array:
    """The rows from `first` up to `last`, exclusive, of what `conv2d` returns; `last` may lie beyond the end."""
    height, _ = conv2d_size(x, weight, stride, padding)
    start, stop = first * stride - padding, (min(last, height) - 1) * stride - padding + weight.shape[1]
    lines = x[:, max(start, 0) : stop]
    lines = mx.pad(lines, [(0, 0), (max(-start, 0), max(stop - x.shape[1], 0)), (padding, padding), (0, 0)])
    return conv2d(lines, weight, bias, stride)


def by_batch(function: Callable[..., Any], batch: int, network: nn.Module, *inputs: Any) -> Any:
    """`function(*inputs)`; a form may split arrays `batch` long. The function also reads the network's weights.

    It returns one array, or a tuple of them.
    """
    return function(*inputs)


def by_blocks(function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`; a form may run parts of the operations inside it in parallel."""
    return function(*inputs)


def upsample_nearest(x: mx.array, height: int, width: int) -> mx.array:
    """Resize x (B, h, w, C) to (height, width), usually twice its size: row i is row floor(i h / height) of x.

    Other sizes occur where a skip connection has an odd side: 2 h - 1, say.
    """
    batch, h, w, channels = x.shape
    if (height, width) == (2 * h, 2 * w):
        x = mx.broadcast_to(x[:, :, None, :, None, :], (batch, h, 2, w, 2, channels))
        return x.reshape(batch, height, width, channels)
    rows = mx.array([i * h // height for i in range(height)])
    columns = mx.array([i * w // width for i in range(width)])
    return x[:, rows][:, :, columns]


class AdamW(NamedTuple):
    """The numbers of one optimiser step."""

    beta_1: float
    beta_2: float
    rate: float
    decay: float
    decaying: int  # how many of the first parameters decay
    step: int  # from 1
    keep: float  # weight of the old average; the new parameters get the rest

    @property
    def corrections(self) -> tuple[float, float]:
        """1 / (1 - beta^step): the bias correction of moments that start at zero."""
        return 1 / (1 - self.beta_1**self.step), 1 / (1 - self.beta_2**self.step)


ADAM_EPS = 1e-8


def adamw(
    p: mx.array, average: mx.array, m: mx.array, v: mx.array, g: mx.array, scale: mx.array, numbers: AdamW
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """One step on vectors (N,): parameters, their average, first and second moments, and gradients times `scale`.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  p <- p - rate (m' / (sqrt(v') + eps) + decay p), where '
    is the bias correction (Loshchilov and Hutter 2019, algorithm 2). `average`, `m` and `v` must not be used again:
    they may be overwritten.
    """
    b1, b2, rate = numbers.beta_1, numbers.beta_2, numbers.rate
    first, second = numbers.corrections
    # Scalars are multiplied with each other first, because every pass over an array costs the same.
    m = b1 * m + ((1 - b1) * scale) * g
    v = b2 * v + ((1 - b2) * mx.square(scale)) * mx.square(g)
    decays = mx.arange(p.size) < numbers.decaying
    p = mx.where(decays, 1 - rate * numbers.decay, 1.0) * p - (rate * first) * m / (mx.sqrt(second * v) + ADAM_EPS)
    return p, p + numbers.keep * (average - p), m, v
