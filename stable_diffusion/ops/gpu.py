"""Forms for a GPU: `mx.compile` fuses each chain of element-wise operations into one kernel instead of a dozen.

Group norms account for half of a U-Net's operations (benchmarks/operations.py counts them).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..backend import mx
from . import plain

silu, gelu, quick_gelu, mish = (
    mx.compile(function, shapeless=True) for function in (plain.silu, plain.gelu, plain.quick_gelu, plain.mish)
)
geglu = mx.compile(plain.geglu)


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    return _group_norm(groups, eps, act)(x, weight, bias)


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
