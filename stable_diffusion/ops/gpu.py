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
    return _group_norm(groups, eps, act)(x, weight, bias)


def conv2d(x: mx.array, weight: mx.array, bias: mx.array, stride: int = 1, padding: int = 0) -> mx.array:
    """In strips of rows where one call would read or write `MOST_VALUES` or more.

    MLX's kernels count in 32 bits (github.com/ml-explore/mlx, issue 3248).
    """
    height, width = plain.conv2d_size(x, weight, stride, padding)
    images, outputs = len(x), weight.shape[0]
    values = max(math.prod(x.shape[1:]), height * width * outputs)  # of one picture
    if images * values < MOST_VALUES:
        return plain.conv2d(x, weight, bias, stride, padding)
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


@functools.cache
def _group_norm(groups: int, eps: float, act: plain.Activation | None) -> Callable[..., mx.array]:
    def function(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        return plain.group_norm(x, weight, bias, groups, eps, act)

    return mx.compile(function)
