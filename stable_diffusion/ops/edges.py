"""What convolutions see beyond the edges of a picture: zeros, or the opposite edge, where copies meet without a seam.

A padding of zeros tells a network where the picture ends. On an axis that goes around, the last row or column is
followed by the first, as on a torus, so that what is painted there repeats seamlessly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from ..backend import mx

# Axes of (B, H, W, C). Of a context, so that neither another thread nor a suspended generation is affected.
_around: ContextVar[tuple[int, ...]] = ContextVar("around", default=())


@contextlib.contextmanager
def wrapping(axes: tuple[int, ...]) -> Iterator[None]:
    """Inside the `with` block all padding along these axes of (B, H, W, C) takes the opposite edge: 1 is H, 2 is W.

    It acts where operations are called, so lazy results may be evaluated outside.
    """
    token = _around.set(axes)
    try:
        yield
    finally:
        _around.reset(token)


def around() -> tuple[int, ...]:
    """The axes that go around here; usually none."""
    return _around.get()


def padded(x: mx.array, before: int, after: int) -> mx.array:
    """x (B, H, W, C) with `before` and `after` more rows and columns at its sides, by the current edges."""
    zeros = [(0, 0)] * x.ndim
    for axis in (1, 2):
        if axis in around():
            x = wrapped(x, axis, before, after)
        else:
            zeros[axis] = before, after
    return mx.pad(x, zeros) if any(map(any, zeros)) else x


def wrapped(x: mx.array, axis: int, before: int, after: int) -> mx.array:
    """x with `before` of its last values along an axis put in front, and `after` of its first ones at the end."""
    size = x.shape[axis]
    if max(before, after) > size:
        return mx.take(x, mx.arange(-before, size + after) % size, axis)
    ends = [slice(None)] * axis
    last, first = x[(*ends, slice(size - before, size))], x[(*ends, slice(0, after))]
    return mx.concatenate([last, x, first], axis)
