"""Forms for a GPU: chains of element-wise operations as one kernel each, by `mx.compile`, in place of a dozen.

Half of a U-Net's operations belong to its group norms (benchmarks/operations.py counts them).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..backend import mx
from . import plain


def group_norm(
    x: mx.array, weight: mx.array, bias: mx.array, groups: int, eps: float, act: plain.Activation | None = None
) -> mx.array:
    return _group_norm(groups, eps, act)(x, weight, bias)


geglu = mx.compile(plain.geglu)


@functools.cache
def _group_norm(groups: int, eps: float, act: plain.Activation | None) -> Callable[..., mx.array]:
    def function(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        return plain.group_norm(x, weight, bias, groups, eps, act)

    return mx.compile(function)
