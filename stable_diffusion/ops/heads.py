"""Attention on a GPU: in one fused kernel where there is one for the head size, else without holding all scores.

MLX has fused kernels for some sizes only; for all others it computes the whole (N, M) matrix of scores first, 8 GiB in
Stable Diffusion 1.x at 1024x1024. `plan` chooses between the kernel, a kernel for a larger head that zeros fill up,
and blocks of queries. It is a pure function, so that the choice for each device is tested without that device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .. import backend
from ..backend import mx
from . import plain

SCORES = 1 << 25  # most scores that one call holds: 64 MiB in half precision
SMALL = 1 << 21  # up to here holding all of them costs less than filling heads up would
HELD = 3  # blocks of scores at once: before and after the softmax, and the next one's
WASTE = 2  # a head is filled up to at most this multiple of its size


@dataclass(frozen=True)
class Kernels:
    """The head sizes that a device's fused kernels are made for, in ascending order."""

    sizes: tuple[int, ...]
    half_only: bool = False

    def fitting(self, size: int, dtype: mx.Dtype) -> int | None:
        """The smallest head that holds one of `size`; None if there is none, or if filling it up wastes too much."""
        if self.half_only and dtype == mx.float32:
            return None
        return next((each for each in self.sizes if size <= each <= WASTE * size), None)


# Metal also has kernels for 192 and 256, but MLX takes its unfused form there, since that is faster (`use_fallback` in
# mlx/backend/metal/scaled_dot_product_attention.cpp); so filling 160 up to 192 would gain nothing.
METAL = (((0, 32, 2), Kernels((64, 72, 80, 96, 128))), ((0, 0, 0), Kernels((64, 80, 128))))  # by MLX's version, from
CUDA = Kernels(tuple(range(8, 129, 8)), half_only=True)  # cuDNN's (`supports_sdpa_cudnn` in MLX's CUDA backend)
NONE = Kernels(())


class Plan(NamedTuple):
    """How one attention is computed."""

    size: int  # of the heads that MLX is given; above the true size: filled up with zeros
    rows: int  # queries in one block; N: all at once
    fused: bool

    def held(self, scores_per_row: int) -> int:
        """How many scores exist at once, for that many in a row of all heads of the batch."""
        return 0 if self.fused else self.rows * scores_per_row


def kernels(device: str | None, version: tuple[int, ...]) -> Kernels:
    """The fused kernels of "metal" or "cuda" in a version of MLX; of anything else, none."""
    if device == "metal":
        return next(found for since, found in METAL if version >= since)
    return CUDA if device == "cuda" else NONE


def plan(heads: int, size: int, n: int, m: int, dtype: mx.Dtype, known: Kernels) -> Plan:
    """How to compute attention of `n` queries to `m` keys in `heads` heads (of the whole batch) of `size` each."""
    fitting = known.fitting(size, dtype)
    if fitting == size:
        return Plan(size, n, fused=True)
    if heads * n * m <= SMALL:
        return Plan(size, n, fused=False)
    if fitting is not None:
        return Plan(fitting, n, fused=True)
    return Plan(size, min(n, max(1, SCORES // (heads * m))), fused=False)


def scores_bytes(rows: int, latents: int, item_size: int) -> int:
    """Bytes of scores at the peak of a network's call on a GPU, for any head size; on a CPU they are a block's."""
    if backend.gpu_kind() is None:
        return 0
    return HELD * min(SCORES, 8 * rows * latents**2) * item_size


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None = None) -> mx.array:
    """`plain.attention` as `plan` has it for this device; with a mask (the short texts) never in blocks."""
    batch, heads, n, size = q.shape
    known = kernels(backend.gpu_kind(), backend.mlx_version())
    chosen = plan(batch * heads, size, n, k.shape[2], q.dtype, known)
    return planned(q, k, v, chosen if mask is None else chosen._replace(rows=n), mask)


def planned(q: mx.array, k: mx.array, v: mx.array, chosen: Plan, mask: mx.array | str | None = None) -> mx.array:
    """Attention as a plan has it. The scale is that of the true head size, so zeros change nothing."""
    n, size = q.shape[2:]
    scale = 1 / math.sqrt(size)
    k, v = plain.for_batch(len(q), k, v)
    if chosen.size > size:
        q, k, v = (mx.pad(x, [(0, 0), (0, 0), (0, 0), (0, chosen.size - size)]) for x in (q, k, v))
    if chosen.rows >= n:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)[..., :size]
    blocks: list[mx.array] = []
    for first in range(0, n, chosen.rows):
        block = q[:, :, first : first + chosen.rows]
        if blocks:  # one after another: MLX would compute the scores of many at once
            block = mx.depends([block], [blocks[-1]])[0]
        blocks.append(mx.fast.scaled_dot_product_attention(block, k, v, scale=scale))
    return mx.concatenate(blocks, axis=2)
