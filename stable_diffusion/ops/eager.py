"""Attention by numpy and the BLAS, because MLX's exp of the scores dominates its own form on such a CPU (see cpu.py).

numpy's float32 exp is vectorised: attention over 4096 positions takes a quarter of the time that it took with a
polynomial for exp. Nothing here is lazy: inputs are evaluated first, and results are ready when a function returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .. import backend
from ..backend import mx
from . import lanes

BLOCK = 1 << 19  # scores per block of rows: 2 MiB
SMALL = 1 << 20  # bytes; copying a smaller array is faster than allocating it through MLX
TOGETHER = 1 << 18  # up to so many scores, those of all heads are one block
FEW = 32  # fewer blocks than this are not worth starting the lanes for
_ROW_MAJOR, _PLAIN, TRANSPOSED = 101, 111, 112


def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Softmax attention of q (B, heads, N, D) to k and v (B or 1, heads, M, D), float32: (B, heads, N, D)."""
    mx.eval(q, k, v)
    batch, heads, length, depth = q.shape
    queries, keys, values = _whole_rows(q), _whole_rows(k), np.ones((*v.shape[:-1], depth + 1), np.float32)
    values[..., :depth] = np.asarray(v)
    if batch * heads * length * k.shape[2] <= TOGETHER:
        return written((batch, length, heads, depth), partial(_attend_all, queries, keys, values)).transpose(0, 2, 1, 3)
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
    """One block of rows. Each row's maximum is subtracted; the last column of v (M, D + 1), ones, gives the divisor."""
    scores = np.empty((len(q), len(k)), np.float32)
    sums = np.empty((len(q), v.shape[1]), np.float32)
    product(q, k, scores, TRANSPOSED, 1 / math.sqrt(q.shape[1]))
    with np.errstate(invalid="ignore"):  # infinity - infinity is NaN, as in any other form
        scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    product(scores, v, sums)
    np.divide(sums[:, :-1], sums[:, -1:], out=out)


def _attend_all(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
    """`_attend` for all heads at once, with the same bits: for few scores, numpy's calls cost more than their work."""
    scores = np.empty((*q.shape[:3], k.shape[2]), np.float32)
    sums = np.empty((*q.shape[:3], v.shape[3]), np.float32)
    products(q, k, scores, TRANSPOSED, 1 / math.sqrt(q.shape[3]))
    with np.errstate(invalid="ignore"):
        scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    products(scores, v, sums)
    np.divide(sums[..., :-1], sums[..., -1:], out=out.transpose(0, 2, 1, 3))


def products(a: np.ndarray, b: np.ndarray, out: np.ndarray, b_order: int = _PLAIN, scale: float = 1.0) -> None:
    """`product` for each head of each image: a and out (B, heads, ...), b (B or 1, heads, ...)."""
    sgemm = backend.blas().sgemm
    if sgemm is None:
        b = b.swapaxes(-1, -2) if b_order == TRANSPOSED else b
        np.matmul(a * np.float32(scale) if scale != 1 else a, b, out=out)
        return
    batch, heads, m, n = out.shape
    shape = m, n, a.shape[3], scale
    places = [(x.ctypes.data, x.strides[0] if len(x) > 1 else 0, *x.strides[1:3]) for x in (a, b, out)]
    for i in range(batch):
        for j in range(heads):
            pointers = (
                each
                for first, of_image, of_head, of_row in places
                for each in (first + i * of_image + j * of_head, of_row // 4)
            )
            a_at, a_row, b_at, b_row, c_at, c_row = pointers
            sgemm(_ROW_MAJOR, _PLAIN, b_order, *shape, a_at, a_row, b_at, b_row, 0.0, c_at, c_row)


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray, b_order: int = _PLAIN, scale: float = 1.0) -> None:
    """out = scale a b, or a b^T. numpy's own BLAS would start its own threads, on top of the lanes."""
    sgemm = backend.blas().sgemm
    if sgemm is None:
        np.matmul(a * np.float32(scale) if scale != 1 else a, b.T if b_order == TRANSPOSED else b, out=out)
        return
    (m, n), k = out.shape, a.shape[1]
    pointers = [each for array in (a, b, out) for each in (array.ctypes.data, array.strides[0] // 4)]
    sgemm(_ROW_MAJOR, _PLAIN, b_order, m, n, k, scale, *pointers[:4], 0.0, *pointers[4:])


def numbers(x: mx.array) -> np.ndarray:
    """The evaluated array as a numpy view, without a copy."""
    mx.eval(x)
    return np.asarray(x)


def written(shape: Sequence[int], fill: Callable[[np.ndarray], None]) -> mx.array:
    """A new float32 array that `fill` writes.

    Large ones are written in place; for small ones, filling a numpy array and copying it beats MLX's allocation.
    """
    if 4 * math.prod(shape) <= SMALL:
        out = np.empty(shape, np.float32)
        fill(out)
        return mx.array(out)
    array = mx.zeros(shape)
    fill(numbers(array))  # there is no other reference yet
    return array


def _whole_rows(x: mx.array) -> np.ndarray:
    array = numbers(x)
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)
