"""Attention on a GPU, whose kernels are for some head sizes only: which form is chosen, and that all forms agree."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from stable_diffusion import backend, memory, ops
from stable_diffusion.backend import mx
from stable_diffusion.config import AutoencoderConfig, UNetConfig
from stable_diffusion.ops import gpu, heads, plain
from stable_diffusion.ops.heads import CUDA, METAL, SCORES, SMALL, Plan, kernels, plan
from stable_diffusion.selftest import published
from stable_diffusion.unet import UNet
from stable_diffusion.vae import Autoencoder

UNETS = dict(zip(("sd1", "sd2", "sdxl"), published.UNETS.values(), strict=True))
NOW = METAL[0][1]
HALF = mx.float16


def normal(seed: int, *shape: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize(
    ("heads_", "size", "n", "m", "dtype", "known", "expected"),
    [
        (16, 64, 4096, 4096, HALF, NOW, Plan(64, 4096, True)),
        (16, 64, 4096, 4096, mx.float32, NOW, Plan(64, 4096, True)),
        (16, 40, 4096, 4096, HALF, NOW, Plan(64, 4096, True)),  # Stable Diffusion 1.x, the largest at 512x512
        (16, 40, 4096, 4096, HALF, METAL[1][1], Plan(64, 4096, True)),
        (16, 72, 4096, 4096, HALF, METAL[1][1], Plan(80, 4096, True)),  # no kernel of its own in an old MLX
        (16, 160, 1024, 1024, HALF, NOW, Plan(160, 1024, False)),  # 2^24 scores: not too many
        (16, 160, 64, 64, HALF, NOW, Plan(160, 64, False)),
        (16, 160, 4096, 4096, HALF, NOW, Plan(160, 512, False)),
        (1, 512, 4096, 4096, HALF, NOW, Plan(512, 4096, False)),
        (1, 512, 16384, 16384, HALF, NOW, Plan(512, 2048, False)),  # the autoencoder's, at 1024x1024
        (4, 8, 64, 64, HALF, NOW, Plan(8, 64, False)),  # a small model: filling up would cost more than it spares
        (16, 8, 4096, 4096, HALF, NOW, Plan(8, 512, False)),  # eight times its size is too much
        (1, 8, 2**27, 2**27, HALF, NOW, Plan(8, 1, False)),
        (16, 40, 4096, 4096, HALF, CUDA, Plan(40, 4096, True)),
        (16, 40, 4096, 4096, mx.bfloat16, CUDA, Plan(40, 4096, True)),
        (16, 40, 4096, 4096, mx.float32, CUDA, Plan(40, 512, False)),  # cuDNN's is for half precision
        (16, 36, 4096, 4096, HALF, CUDA, Plan(40, 4096, True)),
        (16, 160, 4096, 4096, HALF, CUDA, Plan(160, 512, False)),
        (16, 64, 4096, 4096, HALF, heads.NONE, Plan(64, 512, False)),
    ],
)
def test_the_choice(heads_, size, n, m, dtype, known, expected):
    assert plan(heads_, size, n, m, dtype, known) == expected


def test_kernels_by_device_and_version():
    assert kernels("metal", (0, 32, 4)).sizes == kernels("metal", (0, 33, 0)).sizes == (64, 72, 80, 96, 128)
    assert kernels("metal", (0, 31, 2)).sizes == (64, 80, 128)
    assert kernels("cuda", (0, 32, 4)).sizes == tuple(range(8, 129, 8))
    assert kernels(None, (0, 32, 4)).sizes == ()


def recorded(call) -> set[tuple[int, int, int, int]]:
    """(heads of the batch, D, N, M) of each attention in a call, whose graph is built and not evaluated."""
    found = set()

    def attention(q, k, v, mask=None):
        found.add((q.shape[0] * q.shape[1], q.shape[3], q.shape[2], k.shape[2]))
        assert mask is None
        return q  # of the result's shape

    mx.synchronize()
    before = mx.get_active_memory()
    with ops.use(dataclasses.replace(ops.TABLES["gpu"], attention=attention)):
        call()
    assert mx.get_active_memory() - before < 1 << 20, "something was computed"
    return found


@pytest.fixture(scope="module")
def attentions() -> dict[tuple[str, int], set[tuple[int, int, int, int]]]:
    """Of each family's U-Net with guidance, and of the autoencoder, by the side of the picture in pixels."""
    found = {}
    for name, config in UNETS.items():
        unet = UNet(UNetConfig.from_dict(config))
        context = unet.project_text(mx.zeros((2, 77, config["cross_attention_dim"])))
        pooled = (mx.zeros((2, 1280)), mx.zeros((2, 6))) if name == "sdxl" else ()
        for size in (512, 768, 1024):
            x = mx.zeros((2, size // 8, size // 8, 4))
            found[name, size] = recorded(lambda x=x: unet(x, mx.array([500.0]), context, *pooled))  # noqa: B023
    vae = Autoencoder(AutoencoderConfig.from_dict(published.VAE))
    for size in (512, 768, 1024):
        latents, picture = mx.zeros((1, size // 8, size // 8, 4)), mx.zeros((1, size, size, 3))
        found["vae", size] = recorded(lambda z=latents: vae.decode(z)) | recorded(lambda x=picture: vae.moments(x))
    return found


def test_what_the_networks_ask_for(attentions):
    assert {size for _, size, _, _ in attentions["sd1", 512]} == {40, 80, 160}
    assert {size for _, size, _, _ in attentions["sd2", 512]} == {64} == {s for _, s, _, _ in attentions["sdxl", 512]}
    assert attentions["vae", 1024] == {(1, 512, 16384, 16384)}
    assert (16, 40, 16384, 16384) in attentions["sd1", 1024] and (16, 40, 16384, 77) in attentions["sd1", 1024]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("known", [NOW, METAL[1][1], CUDA, heads.NONE])
def test_each_attention_is_fused_or_bounded(attentions, known, dtype):
    for asked in set().union(*attentions.values()):
        chosen = plan(*asked, dtype, known)
        if chosen.fused:
            assert chosen.size in known.sizes and chosen.size >= asked[1] and chosen.rows == asked[2]
        else:
            assert chosen.held(asked[0] * asked[3]) <= SCORES


def test_the_large_ones_of_a_mac_are_fused(attentions):
    """All but head sizes 160 and 512, and those whose scores are few."""
    for batch_heads, size, n, m in set().union(*attentions.values()):
        fused = plan(batch_heads, size, n, m, mx.float16, NOW).fused
        assert fused == (size not in (160, 512) and (size == 64 or size == 80 or batch_heads * n * m > SMALL))


def test_the_estimate_has_room_for_the_scores(attentions, monkeypatch):
    monkeypatch.setattr(backend, "gpu_kind", lambda: "metal")
    for (name, size), asked in attentions.items():
        rows = 1 if name == "vae" else 2
        held = max(plan(*each, mx.float16, NOW).held(each[0] * each[3]) for each in asked)
        assert 2 * held <= heads.scores_bytes(rows, (size // 8) ** 2, 2) <= 2 * heads.HELD * SCORES
    small = memory.Needs(100, AutoencoderConfig(block_out_channels=(8,) * 4), 0, 2, 2)
    assert small.network_bytes(2, 64, 64) == 2 * 64 * 100 * 2 + 3 * 8 * 2 * 64**2 * 2
    assert small.decoder_bytes(64, 64) == 64**2 * memory.DECODER_VALUES * 8 * 2 + 3 * 8 * 64**2 * 2
    monkeypatch.setattr(backend, "gpu_kind", lambda: None)
    assert small.network_bytes(2, 64, 64) == 2 * 64 * 100 * 2


def difference(a: mx.array, b: mx.array) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return (mx.abs(a - b).max() / mx.abs(b).max()).item()


@pytest.mark.parametrize(("size", "filled"), [(40, 64), (72, 80), (160, 192), (1, 8)])
@pytest.mark.parametrize("mask", [None, "causal"])
def test_heads_filled_up_are_exact(size, filled, mask):
    q, k, v = normal(1, 2, 3, 65, size), normal(2, 1, 3, 70, size), normal(3, 1, 3, 70, size)
    k, v = (mx.broadcast_to(x, (2, *x.shape[1:])) for x in (k, v))
    result = heads.planned(q, k, v, Plan(filled, 65, True), mask)
    assert difference(result, plain.attention(q, k, v, mask)) <= 1e-6


@pytest.mark.parametrize("rows", [1, 7, 64, 65])
def test_blocks_of_queries_are_exact(rows):
    q, k, v = normal(1, 2, 3, 65, 24), normal(2, 2, 3, 70, 24), normal(3, 2, 3, 70, 24)
    assert difference(heads.planned(q, k, v, Plan(24, rows, False)), plain.attention(q, k, v)) <= 1e-6


def test_keys_and_values_of_one_row_serve_the_whole_batch():
    """As those of a prompt do; MLX's own attention takes no such batch."""
    q, k, v = normal(1, 3, 2, 65, 24), normal(2, 1, 2, 70, 24), normal(3, 1, 2, 70, 24)
    expected = mx.concatenate([plain.attention(one, k, v) for one in mx.split(q, 3)])
    for chosen in (Plan(24, 65, False), Plan(24, 16, False), Plan(64, 65, True)):
        assert difference(heads.planned(q, k, v, chosen), expected) <= 1e-6
    assert difference(plain.attention(q, k, v), expected) <= 1e-6


def test_the_form_on_any_machine(monkeypatch):
    """As a Mac would compute it, with each choice met; masks are never cut."""
    monkeypatch.setattr(backend, "gpu_kind", lambda: "metal")
    monkeypatch.setattr(heads, "SMALL", 1000)
    monkeypatch.setattr(heads, "SCORES", 3000)
    for size, mask in itertools.product((40, 64, 160), (None, "causal")):
        q, k, v = normal(1, 1, 2, 90, size), normal(2, 1, 2, 90, size), normal(3, 1, 2, 90, size)
        assert difference(heads.attention(q, k, v, mask), plain.attention(q, k, v, mask)) <= 1e-6


def test_gradients_pass():
    q, k, v = normal(1, 1, 2, 40, 24), normal(2, 1, 2, 40, 24), normal(3, 1, 2, 40, 24)
    expected = mx.grad(lambda q: mx.square(plain.attention(q, k, v)).sum())(q)
    for chosen in (Plan(64, 40, True), Plan(24, 16, False)):
        found = mx.grad(lambda q: mx.square(heads.planned(q, k, v, chosen)).sum())(q)  # noqa: B023
        assert difference(found, expected) <= 1e-5


def test_blocks_do_not_hold_all_scores():
    """Each waits for the one before; without that MLX would compute the scores of many at once."""
    q, k, v = (normal(i, 1, 2, 2048, 24) for i in range(3))

    def peak(chosen: Plan) -> int:
        mx.eval(q, k, v)
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(heads.planned(q, k, v, chosen))
        return mx.get_peak_memory() - before

    whole = peak(Plan(24, 2048, False))
    assert whole >= 2 * 2048 * 2048 * 4
    assert peak(Plan(24, 32, False)) < whole / 2


@pytest.mark.parametrize("most", [100, 500, 1100, 5000])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0)])
def test_convolutions_stay_below_what_a_kernel_can_count(monkeypatch, most, kernel, stride, padding):
    x, weight, bias = normal(1, 2, 25, 11, 4), normal(2, 6, kernel, kernel, 4), normal(3, 6)
    expected = plain.conv2d(x, weight, bias, stride, padding)
    asked = []

    def conv2d(x, *rest):
        result = plain_conv2d(x, *rest)
        asked.append(max(x.size, result.size))
        return result

    plain_conv2d = plain.conv2d
    monkeypatch.setattr(plain, "conv2d", conv2d)
    monkeypatch.setattr(gpu, "MOST_VALUES", most)
    assert difference(gpu.conv2d(x, weight, bias, stride, padding), expected) <= 1e-6
    assert len(asked) == 1 if most == 5000 else len(asked) > 1
    assert max(asked) < most or most == 100  # a few rows have more than that


def test_the_largest_pictures_convolutions():
    """4096x4096 in the autoencoder, where 128 channels are 2^31 values; nothing is computed."""
    x, weight = mx.zeros((1, 4096, 4096, 128)), mx.zeros((128, 3, 3, 128))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        original = plain.conv2d
        patch.setattr(plain, "conv2d", lambda x, *rest: asked.append(x.size) or original(x, *rest))
        assert gpu.conv2d(x, weight, mx.zeros((128,)), 1, 1).shape == x.shape
    assert len(asked) == 3 and max(asked) < 1 << 31
