"""Each operation's plain form against its definition in float64, and each special form against the plain one."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_diffusion import ops
from stable_diffusion.backend import mx, nn
from stable_diffusion.layers import ResnetBlock
from stable_diffusion.ops import cpu, eager, gpu, learning, plain, winograd

ROOT = Path(__file__).parents[1]
TOLERANCE = 5e-5  # what a special form may differ from the plain one, relative to the largest value


def normal(seed: int, *shape: int, scale: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(scale))


def difference(a: mx.array, b: mx.array) -> float:
    a, b = np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


DEFINITIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)) if x > -400 else 0.0,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x)) if x < 50 else x),
    "relu": lambda x: max(x, 0.0),
}


@pytest.mark.parametrize("form", [ops.ACTIVATIONS.__getitem__, lambda name: getattr(plain, name)])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_activations(name, form):
    values = np.concatenate([np.linspace(-30, 30, 2001), [-1e4, -300, -90, -88, 0.0, 88, 300, 1e4]]).astype(np.float32)
    expected = np.array([DEFINITIONS[name](float(x)) for x in values])
    result = np.array(form(name)(mx.array(values)))
    assert np.isfinite(result).all()
    assert np.abs(result - expected).max() <= 1e-6 * max(np.abs(expected).max() / 1e4, 1) * 4
    assert np.abs(result - expected)[np.abs(values) < 30].max() <= 4e-6


def test_powers_of_two():
    x = np.concatenate([np.linspace(-126, 127.4, 100_001), np.linspace(-1, 1, 10_001)]).astype(np.float32)
    result = np.array(learning._exp2(mx.array(x))).astype(np.float64)
    assert np.abs(result / np.exp2(x.astype(np.float64)) - 1).max() < 1e-6
    assert learning._exp2(mx.array([0.0])).item() == pytest.approx(1, abs=2e-7)
    assert math.isnan(learning._exp2(mx.array([math.nan])).item())


@pytest.mark.parametrize("name", ["silu", "gelu", "quick_gelu"])
def test_activations_of_what_is_no_number(name):
    """NaN stays, infinity too, and numpy gives no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = getattr(cpu, name)(mx.array([math.nan, math.inf, 3e38, -3e38]))
    assert math.isnan(result[0].item()) and result[1].item() == math.inf
    assert result[2].item() == pytest.approx(3e38) and result[3].item() == 0


@pytest.mark.parametrize("name", ["silu", "gelu", "quick_gelu"])
@pytest.mark.parametrize("size", [1, 7, cpu.BLOCK - 1, cpu.BLOCK, 2 * cpu.BLOCK + 3])
def test_activations_in_blocks(name, size):
    x = normal(0, size, scale=3)
    assert difference(getattr(cpu, name)(x), getattr(plain, name)(x)) <= 1e-6


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", ["silu", "gelu", "quick_gelu", "geglu"])
def test_other_types_take_the_plain_form(name, dtype):
    x = normal(0, 3, 8).astype(dtype)
    result = getattr(cpu, name)(x)
    assert result.dtype == dtype and mx.array_equal(result, getattr(plain, name)(x))


def test_geglu_in_blocks(monkeypatch):
    x = normal(1, 2, 60, 48)
    monkeypatch.setattr(cpu, "BLOCK", 1000)
    assert difference(cpu.geglu(x), plain.geglu(x)) <= 1e-6


def test_geglu():
    x = normal(0, 3, 5, 16)
    value, gate = np.split(np.array(x), 2, axis=-1)
    expected = value * np.vectorize(DEFINITIONS["gelu"])(gate)
    for form in (ops.geglu, cpu.geglu, plain.geglu):
        assert np.abs(np.array(form(x)) - expected).max() < 1e-5


def exact_attention(q, k, v, mask=None) -> np.ndarray:
    q, k, v = (np.array(x).astype(np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 5),
    length=st.integers(1, 70),
    keys=st.integers(1, 70),
    size=st.sampled_from([1, 3, 8, 40]),
    block=st.sampled_from([1, 10, 500, 4000, 1 << 17]),
    shared=st.booleans(),
)
def test_attention_in_blocks(batch, heads, length, keys, size, block, shared):
    q, k = normal(1, batch, heads, length, size), normal(2, 1 if shared else batch, heads, keys, size)
    v = normal(3, 1 if shared else batch, heads, keys, size)
    before, eager.BLOCK = eager.BLOCK, block
    try:
        result = cpu.attention(q, k, v)
    finally:
        eager.BLOCK = before
    assert difference(result, mx.array(exact_attention(q, k, v).astype(np.float32))) <= 1e-5


@pytest.mark.parametrize("form", [cpu.attention, plain.attention])
def test_attention_with_extreme_logits(form):
    """The softmax is exact: rows of +-1e4, of one value, and with one winner."""
    q = normal(1, 1, 2, 30, 16, scale=100)
    k, v = normal(2, 1, 2, 40, 16, scale=100), normal(3, 1, 2, 40, 16)
    scores = np.array(q) @ np.array(k).swapaxes(-1, -2) / 4
    assert np.abs(scores).max() > 1e4
    result = np.array(form(q, k, v))
    assert np.isfinite(result).all()
    # Logits of 1e4 carry a rounding error of 1e-3 themselves, whatever the softmax: compare from the same logits.
    margin = np.sort(scores, -1)[..., -1] - np.sort(scores, -1)[..., -2]
    sure = margin > 1
    expected = exact_attention(q, k, v)
    assert np.abs(result - expected)[sure].max() < 5e-3
    constant = form(mx.zeros_like(q), k, v)
    assert difference(constant, mx.broadcast_to(v.mean(axis=2, keepdims=True), constant.shape)) < TOLERANCE
    for value in (1e4, -1e4):
        same = form(mx.full((1, 1, 3, 1), value), mx.ones((1, 1, 5, 1)), v[:, :1, :5, :1])
        assert difference(same, mx.broadcast_to(v[:, :1, :5, :1].mean(axis=2, keepdims=True), same.shape)) < TOLERANCE


@pytest.mark.parametrize("form", [cpu.attention, plain.attention])
def test_attention_with_masks(form):
    q, k, v = (normal(i, 2, 3, 9, 8) for i in range(3))
    mask = np.where(np.random.default_rng(0).random((9, 9)) < 0.4, -np.inf, 0.0)
    mask[:, 0] = 0.0
    causal = np.where(np.tril(np.ones((9, 9))) > 0, 0.0, -np.inf)
    for given_mask, meaning in ((mx.array(mask.astype(np.float32)), mask), ("causal", causal)):
        expected = exact_attention(q, k, v, meaning)
        assert np.abs(np.array(form(q, k, v, given_mask)) - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_attention_in_other_types(dtype):
    q, k, v = (normal(i, 1, 2, 9, 8).astype(dtype) for i in range(3))
    assert cpu.attention(q, k, v).dtype == dtype
    expected = exact_attention(*(x.astype(mx.float32) for x in (q, k, v)))
    assert np.abs(np.array(cpu.attention(q, k, v).astype(mx.float32)) - expected).max() < 0.03


@pytest.mark.parametrize("shape", [(1, 6, 5, 32), (2, 30, 32), (3, 1, 1, 64)])
def test_group_norm(shape):
    """Also far from zero, where the mean of squares less the square of the mean would cancel."""
    x = normal(0, *shape) + 100
    weight, bias = normal(1, shape[-1]), normal(2, shape[-1])
    groups = np.array(x).astype(np.float64).reshape(shape[0], -1, 8, shape[-1] // 8)
    scaled = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    expected = scaled.reshape(shape) * np.array(weight) + np.array(bias)
    assert np.abs(np.array(ops.group_norm(x, weight, bias, 8, 1e-5)) - expected).max() < 2e-4
    silu = np.vectorize(DEFINITIONS["silu"])(expected)
    assert np.abs(np.array(ops.group_norm(x, weight, bias, 8, 1e-5, plain.silu)) - silu).max() < 2e-4


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 60),
    groups=st.integers(1, 6),
    width=st.integers(1, 5),
    block=st.sampled_from([1, 50, 1000]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    act=st.sampled_from([None, plain.silu]),
)
def test_group_norm_in_blocks(batch, rows, groups, width, block, offset, act):
    channels = groups * width
    x = normal(0, batch, rows, channels) + offset
    weight, bias = normal(1, channels), normal(2, channels)
    before, cpu.BLOCK = cpu.BLOCK, block
    try:
        result = cpu.group_norm(x, weight, bias, groups, 1e-2, act)
    finally:
        cpu.BLOCK = before
    expected = plain.group_norm(x, weight, bias, groups, 1e-2, act)
    assert mx.abs(result - expected).max() <= 1e-5 * (1 + offset)


def test_group_norm_of_a_constant_and_of_large_values():
    """Nothing varies: what is left is the bias. And values of 1e4 do not overflow."""
    weight, bias = mx.ones((64,)), normal(2, 64)
    constant = cpu.group_norm(mx.full((1, 80, 80, 64), 1234.5), weight, bias, 8, 1e-5)
    assert mx.abs(constant - bias).max() < 0.05
    large = normal(0, 1, 80, 80, 64, scale=1e4)
    assert (
        difference(cpu.group_norm(large, weight, bias, 8, 1e-5), plain.group_norm(large, weight, bias, 8, 1e-5))
        <= TOLERANCE
    )


def test_group_norm_computes_the_activation_of_its_table_in_the_same_pass(monkeypatch):
    """`ops.ACTIVATIONS["silu"]` reaches each form as that table's own SiLU."""
    x, weight, bias = normal(0, 1, 6, 5, 32), normal(1, 32), normal(2, 32)
    expected = plain.group_norm(x, weight, bias, 8, 1e-5, plain.silu)
    for table in ("plain", "cpu", "learning"):
        given: list[object] = []
        form = ops.TABLES[table].group_norm
        with ops.use(dataclasses.replace(ops.TABLES[table], group_norm=lambda *a: given.append(a[-1]) or form(*a))):  # noqa: B023
            result = ops.group_norm(x, weight, bias, 8, 1e-5, ops.ACTIVATIONS["silu"])
        assert given == [ops.TABLES[table].silu]
        assert difference(result, expected) < TOLERANCE


def test_upsample_to_any_size():
    x = mx.arange(6).reshape(1, 2, 3, 1)
    assert ops.upsample_nearest(x, 4, 6)[0, :, :, 0].tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [3, 3, 4, 4, 5, 5],
    ]
    assert ops.upsample_nearest(x, 3, 5)[0, :, :, 0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert ops.upsample_nearest(x, 5, 3)[0, :, 0, 0].tolist() == [0, 0, 0, 3, 3]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 45),
    width=st.integers(1, 45),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 40),
    tiles=st.sampled_from([1, 20, 256]),
    kernels=st.sampled_from([1, 5_000, 1 << 24]),
)
def test_winograd(batch, height, width, channels, outputs, tiles, kernels):
    """Any size, also one that tiles do not fill, in strips of any height, of any share of the outputs."""
    x, weight = normal(1, batch, height, width, channels), normal(2, outputs, 3, 3, channels)
    bias = normal(3, outputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "TILES", tiles)
        patch.setattr(winograd, "MOST_KERNELS", kernels)
        result = winograd.conv3x3(x, weight, bias)
    assert difference(result, mx.conv2d(x, weight, padding=1) + bias) <= TOLERANCE


def test_winograds_additions_are_its_matrices():
    x = np.random.default_rng(0).standard_normal((6, 5, 7)).astype(np.float32)
    for function, matrix in ((winograd._input, winograd._INPUT), (winograd._output, winograd._OUTPUT)):
        out = np.empty((len(matrix), 5, 7), np.float32)
        function(x, out)
        np.testing.assert_allclose(out, np.einsum("ij,jkl->ikl", matrix, x), atol=1e-5)


@pytest.mark.parametrize("scale, offset", [(1e4, 0), (1, 1e4), (1e-4, 0)])
def test_winograd_with_large_and_small_values(scale, offset):
    x, weight = normal(1, 1, 40, 40, 64) * scale + offset, normal(2, 64, 3, 3, 64)
    convolved = winograd.conv3x3(x, weight, mx.zeros((64,)))
    assert difference(convolved, mx.conv2d(x, weight, padding=1)) <= TOLERANCE


def test_which_convolutions_take_winograds_form(monkeypatch):
    """Large ones of stride 1 only; whatever is taken, the result is the plain form's."""
    taken = []
    monkeypatch.setattr(cpu, "conv3x3", lambda x, *rest: taken.append(x.shape) or winograd.conv3x3(x, *rest))
    large, small, bias = normal(1, 1, 40, 40, 32), normal(1, 1, 8, 8, 32), normal(3, 32)
    kernel, point = normal(2, 32, 3, 3, 32), normal(2, 32, 1, 1, 32)
    cases = [
        (large, kernel, 1, 1),
        (small, kernel, 1, 1),
        (large, kernel, 2, 1),
        (large, kernel, 1, 0),
        (large, point, 1, 0),
        (large.astype(mx.float16), kernel.astype(mx.float16), 1, 1),
    ]
    for x, weight, stride, padding in cases:
        result = cpu.conv2d(x, weight, bias.astype(x.dtype), stride, padding)
        assert difference(result, plain.conv2d(x, weight, bias.astype(x.dtype), stride, padding)) <= TOLERANCE
    assert taken == [large.shape] * 2


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    height=st.integers(3, 20),
    width=st.integers(3, 20),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    elements=st.sampled_from([1, 500, 2000]),
)
def test_other_convolutions_in_strips(batch, height, width, kernel, stride, padding, elements):
    """A strip's rows are those of the whole, whatever the stride, at the edges too."""
    x, weight, bias = normal(1, batch, height, width, 5), normal(2, 7, kernel, kernel, 5), normal(3, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "UNFOLDED", elements)
        result = cpu.conv2d(x, weight, bias, stride, padding)
    assert difference(result, plain.conv2d(x, weight, bias, stride, padding)) <= 1e-6


def test_tables_have_every_form_and_plain_means_plain():
    for name in ("attention", "conv2d", "geglu", "group_norm", "quantized_matmul", "adamw", "by_batch", *DEFINITIONS):
        assert getattr(ops.TABLES["plain"], name) is getattr(plain, name)


def test_a_table_is_current_in_every_thread_and_the_last_one_is_back_afterwards():
    usual = ops.forms()
    with ThreadPoolExecutor(1) as pool, ops.use("plain"):
        assert pool.submit(ops.forms).result() is ops.TABLES["plain"]
        with pytest.raises(ZeroDivisionError), ops.use("cpu"):
            assert pool.submit(ops.forms).result() is ops.TABLES["cpu"]
            raise ZeroDivisionError
        assert ops.forms() is ops.TABLES["plain"]
    assert ops.forms() is usual


def test_an_unknown_table_is_refused():
    with pytest.raises(KeyError, match="fast"), ops.use("fast"):
        pass


@pytest.mark.parametrize(("usual", "expected"), [("cpu", "learning"), ("gpu", "gpu"), ("plain", "plain")])
def test_learning_replaces_only_forms_without_gradients(monkeypatch, usual, expected):
    monkeypatch.setenv(ops.OPS_VARIABLE, usual)
    with ops.use("learning"):
        assert ops.forms() is ops.TABLES[expected]


def test_a_network_looks_its_forms_up_when_it_is_called():
    """Built with forms that have no gradients, it has gradients where it learns; its activations too."""
    with ops.use("cpu"):
        layer = ResnetBlock(16, 16, 4, 1e-5, "silu")
        x = normal(0, 1, 8, 8, 16)
        expected = layer(x)
    with ops.use(ops.TABLES["learning"]):
        value, slopes = nn.value_and_grad(layer, lambda x: mx.square(layer(x)).sum())(x)
        mx.eval(value, slopes)
        assert difference(layer(x), expected) < TOLERANCE
    assert slopes["norm1"]["weight"].shape == (16,)
    seen = []
    with ops.use(dataclasses.replace(ops.TABLES["plain"], silu=lambda x: seen.append(x.shape) or plain.silu(x))):
        ops.ACTIVATIONS["swish"](x)
        layer(x)
    assert seen == [x.shape] * 3


def test_the_variable_takes_the_plain_forms():
    code = (
        "import os, sys\nfrom stable_diffusion import ops\n"
        "os.environ[ops.OPS_VARIABLE] = sys.argv[1]\n"  # after the import, which decides nothing
        "print(next(name for name in ops.TABLES if ops.forms() is ops.TABLES[name]))"
    )
    usual = next(name for name in ops.TABLES if ops.forms() is ops.TABLES[name])
    for value, expected in (("plain", "plain"), ("auto", usual)):
        done = subprocess.run([sys.executable, "-c", code, value], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, with which MLX compiles for a CPU")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("act", [None, plain.silu])
def test_the_compiled_forms_of_a_gpu_are_the_plain_ones(dtype, act):
    tolerance = 1e-6 if dtype == mx.float32 else 2e-3
    for shape in ((2, 6, 5, 16), (1, 7, 32), (2, 6, 5, 16)):
        x, weight, bias = (normal(i, *size).astype(dtype) for i, size in enumerate((shape, shape[-1:], shape[-1:])))
        result = gpu.group_norm(x, weight, bias, 8, 1e-5, act)
        assert result.dtype == dtype
        assert difference(result, plain.group_norm(x, weight, bias, 8, 1e-5, act)) <= (
            1e-6 if dtype == mx.float32 else 2e-3
        )
        assert difference(gpu.geglu(x), plain.geglu(x)) <= tolerance
    x, weight, bias = (normal(i, *size).astype(dtype) for i, size in enumerate(((2, 6, 5, 8), (16, 3, 3, 8), (16,))))
    for plus in (normal(3, 2, 6, 5, 16), normal(4, 1, 1, 1, 16)):
        given = x, weight, bias, 1, 1, plus.astype(dtype)
        assert difference(gpu.conv2d(*given), plain.conv2d(*given)) <= tolerance


@pytest.mark.parametrize("table", ["plain", "cpu", "learning"])
def test_what_is_added_to_a_convolution(table):
    """The same bits as an addition after it, for pictures that are convolved by different methods."""
    for side, stride in ((6, 1), (8, 1), (40, 1), (8, 2)):
        x, weight, bias = normal(1, 2, side, side, 32), normal(2, 32, 3, 3, 32), normal(3, 32)
        with ops.use(table):
            alone = ops.conv2d(x, weight, bias, stride, 1)
            for plus in (normal(4, *alone.shape), normal(5, 1, 1, 1, 32)):
                assert mx.array_equal(ops.conv2d(x, weight, bias, stride, 1, plus), alone + plus)
