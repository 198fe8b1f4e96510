"""Forms for a GPU: `mx.compile` fuses each chain of element-wise operations into one kernel instead of a dozen.

Group norms account for half of a U-Net's operations (benchmarks/operations.py counts them).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from ..backend import mx
from . import plain

MOST_VALUES = 1 << 31

silu, gelu, quick_gelu, mish = (
    mx.compile(function, shapeless=True) for function in (plain.silu, plain.gelu, plain.quick_gelu, plain.mish)
)
geglu = mx.compile(plain.geglu)


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    """Three launches: a copy that puts groups together, a layer norm of each, and all the rest compiled.

    MLX's kernel for layer norms computes means and variances in float32, one after the other, for rows of any length.
    """
    batch, channels = x.shape[0], x.shape[-1]
    grouped = x.reshape(batch, -1, groups, channels // groups).transpose(0, 2, 1, 3)
    y = mx.fast.layer_norm(grouped.reshape(batch, groups, -1), None, None, eps)
    y = y.reshape(grouped.shape).transpose(0, 2, 1, 3)
    shape = groups, channels // groups
    return _scaled(act)(y, weight.reshape(shape), bias.reshape(shape)).reshape(x.shape)


def conv2d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    stride: int = 1,
    padding: int = 0,
    plus: mx.array | None = None,
) -> mx.array:
    """Bias and `plus` are added in one launch.

    In strips of rows where one call would read or write `MOST_VALUES` or more.

    MLX's kernels count in 32 bits (github.com/ml-explore/mlx, issue 3248).
    """
    height, width = plain.conv2d_size(x, weight, stride, padding)
    images, outputs = len(x), weight.shape[0]
    values = max(math.prod(x.shape[1:]), height * width * outputs)  # of one picture
    if images * values < MOST_VALUES:
        if plus is None:
            return plain.conv2d(x, weight, bias, stride, padding)
        return _sum(mx.conv2d(x, weight, stride=stride, padding=padding), bias, plus)
    if plus is not None:
        return conv2d(x, weight, bias, stride, padding) + plus
    if images > 1:
        return mx.concatenate([conv2d(one, weight, bias, stride, padding) for one in mx.split(x, images)])
    rows = -(-height // (values // MOST_VALUES + 2))  # the parts overlap by a kernel's rows
    strips = [plain.conv2d_rows(x, weight, bias, stride, padding, row, row + rows) for row in range(0, height, rows)]
    return mx.concatenate(strips, axis=1)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array:
    """MLX's own kernel, which never unpacks W."""
    return mx.quantized_matmul(x, weight, scales, biases, group_size=group_size, bits=bits)


@mx.compile
def _sum(y: mx.array, bias: mx.array, plus: mx.array) -> mx.array:
    return y + bias + plus


@functools.cache
def _scaled(act: plain.Activation | None) -> Callable[..., mx.array]:
    def function(y: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        y = y * weight + bias
        return act(y) if act else y

    return mx.compile(function)
