"""Attention by numpy and the BLAS against the plain form, at any shape and at the ends of float32."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_diffusion import backend
from stable_diffusion.backend import mx
from stable_diffusion.ops import eager, plain


def normal(seed: int, *shape: int, scale: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(scale))


def differ(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a - b).max() / mx.abs(b).max())


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(1, 24),
    st.booleans(), st.booleans(), st.sampled_from([1, 7, 64, 1 << 18]),
)  # fmt: skip
def test_shapes(batch, heads, length, keys, depth, shared, split, block):
    def rows(seed: int, batch: int, length: int) -> mx.array:
        if split:  # as a projection's heads lie: the rows of one head are apart
            return normal(seed, batch, length, heads, depth).transpose(0, 2, 1, 3)
        return normal(seed, batch, heads, length, depth)

    others = 1 if shared else batch
    q, k, v = rows(0, batch, length), rows(1, others, keys), rows(2, others, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "BLOCK", block)
        result = eager.attention(q, k, v)
    broadcast = [mx.broadcast_to(x, (batch, *x.shape[1:])) for x in (k, v)]
    assert result.shape == q.shape
    assert differ(result, plain.attention(q, *broadcast)) < 1e-5


def test_columns_that_are_apart_are_gathered():
    q, k, v = (normal(i, 1, 2, 5, 8).swapaxes(-1, -2) for i in range(3))
    assert differ(eager.attention(q, k, v), plain.attention(q, k, v)) < 1e-5


def test_logits_of_ten_thousand():
    q, k = normal(0, 1, 2, 50, 16, scale=80.0), normal(1, 1, 2, 60, 16, scale=80.0)
    v = normal(2, 1, 2, 60, 16)
    assert float(mx.abs(q @ k.swapaxes(-1, -2)).max()) / 4 > 1e4
    assert differ(eager.attention(q, k, v), plain.attention(q, k, v)) < 5e-5


def test_constant_rows_are_means():
    v = normal(0, 1, 1, 30, 8)
    result = eager.attention(mx.full((1, 1, 4, 8), 1e4), mx.ones((1, 1, 30, 8)), v)
    assert differ(result, mx.broadcast_to(v.mean(axis=2, keepdims=True), result.shape)) < 1e-5


def test_not_a_number_stays_in_its_row_and_warns_of_nothing():
    q = np.array(normal(0, 1, 1, 4, 8))
    q[0, 0, 1, 3], q[0, 0, 2] = np.nan, np.inf
    result = np.array(eager.attention(mx.array(q), normal(1, 1, 1, 9, 8), normal(2, 1, 1, 9, 8)))
    assert np.isfinite(result[0, 0, [0, 3]]).all()
    assert np.isnan(result[0, 0, [1, 2]]).all()


def test_without_the_blas_of_ours_numpy_multiplies(monkeypatch):
    q, k, v = (normal(i, 2, 3, 20, 8) for i in range(3))
    monkeypatch.setattr(backend, "_blas", dataclasses.replace(backend.blas(), sgemm=None))
    assert differ(eager.attention(q, k, v), plain.attention(q, k, v)) < 1e-5
