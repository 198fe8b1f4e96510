"""Attention by numpy and the BLAS, where there are so many scores that MLX's exp takes longest (see cpu.py).

numpy's exp of float32 is vectorised: with it an attention of 4096 places takes a quarter of the time that the
polynomial of cpu.py takes. Nothing here is lazy: inputs are computed, and so is what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .. import backend
from ..backend import mx
from . import lanes

BLOCK = 1 << 19  # scores that a block of rows holds: two megabytes
SMALL = 1 << 20  # bytes of an array that is copied sooner than MLX finds memory for it
FEW = 32  # blocks that are not shared out for their own sake
_ROW_MAJOR, _PLAIN, TRANSPOSED = 101, 111, 112


def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Softmax attention of q (B, heads, N, D) to k and v (B or 1, heads, M, D), float32: (B, heads, N, D)."""
    mx.eval(q, k, v)
    batch, heads, length, depth = q.shape
    queries, keys, values = _whole_rows(q), _whole_rows(k), np.ones((*v.shape[:-1], depth + 1), np.float32)
    values[..., :depth] = np.asarray(v)
    rows = max(1, BLOCK // k.shape[2])

    def fill(out: np.ndarray) -> None:
        def attend(part: tuple[int, int, int]) -> None:
            image, head, first = part
            some = slice(first, first + rows)
            theirs = min(image, len(keys) - 1), head
            _attend(queries[image, head, some], keys[theirs], values[theirs], out[image, some, head])

        blocks = [(i, j, row) for i in range(batch) for j in range(heads) for row in range(0, length, rows)]
        if len(blocks) < FEW:
            lanes.each(attend, blocks)
        else:
            lanes.by_blocks(lanes.each, attend, blocks)

    return written((batch, length, heads, depth), fill).transpose(0, 2, 1, 3)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
    """One block of rows. The maximum is taken off each row; ones beside v (M, D + 1) give the sum to divide by."""
    scores = np.empty((len(q), len(k)), np.float32)
    sums = np.empty((len(q), v.shape[1]), np.float32)
    product(q, k, scores, TRANSPOSED, 1 / math.sqrt(q.shape[1]))
    with np.errstate(invalid="ignore"):  # infinity less infinity: NaN, as anywhere else
        scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    product(scores, v, sums)
    np.divide(sums[:, :-1], sums[:, -1:], out=out)


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray, b_order: int = _PLAIN, scale: float = 1.0) -> None:
    """out = scale a b, or a b^T. numpy's own BLAS would have threads of its own, more than there are cores."""
    sgemm = backend.blas().sgemm
    if sgemm is None:
        np.matmul(a * np.float32(scale) if scale != 1 else a, b.T if b_order == TRANSPOSED else b, out=out)
        return
    (m, n), k = out.shape, a.shape[1]
    pointers = [each for array in (a, b, out) for each in (array.ctypes.data, array.strides[0] // 4)]
    sgemm(_ROW_MAJOR, _PLAIN, b_order, m, n, k, scale, *pointers[:4], 0.0, *pointers[4:])


def numbers(x: mx.array) -> np.ndarray:
    """The array, computed, as numpy sees it: without a copy."""
    mx.eval(x)
    return np.asarray(x)


def written(shape: Sequence[int], fill: Callable[[np.ndarray], None]) -> mx.array:
    """A new array of float32, which `fill` writes.

    To have memory of MLX's takes longer than to fill a small array and copy it; a large one is written where it stays.
    """
    if 4 * math.prod(shape) <= SMALL:
        out = np.empty(shape, np.float32)
        fill(out)
        return mx.array(out)
    array = mx.zeros(shape)
    fill(numbers(array))  # which nobody else has seen yet
    return array


def _whole_rows(x: mx.array) -> np.ndarray:
    array = numbers(x)
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)
