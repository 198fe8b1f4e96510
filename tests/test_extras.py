"""What a U-Net can be given beside latents, time and texts: residuals, taps and deep features."""

from __future__ import annotations

import numpy as np
import pytest

from stable_diffusion.backend import mx
from stable_diffusion.config import UNetConfig
from stable_diffusion.diffusion.network import Conditioning, DeepFeatures, Extras
from stable_diffusion.errors import InputError
from stable_diffusion.layers import ResnetBlock
from stable_diffusion.unet import UNet

from . import drawn, shapes

FAMILIES = ("sd1", "sd2", "sdxl", "lcm", "uneven", "no_middle")


def network(family: str) -> UNet:
    mx.random.seed(0)
    return UNet(UNetConfig.from_dict(shapes.UNETS[family]))


def inputs(unet: UNet, family: str, rows: int = 2, side: int = 8) -> tuple:
    given = shapes.unet_inputs(family, side, side)
    pooled = mx.array(given["pooled"][:1]) if "pooled" in given else None
    texts = [Conditioning(mx.array(given["text"][i : i + 1]), pooled) for i in range(rows)]
    context = unet.prepare(texts, 8 * side, 8 * side, mx.float32, 7.5)
    return mx.array(given["x"][:rows]), mx.array([601.0]), context


def skips(unet: UNet, x: mx.array) -> list[tuple[int, ...]]:
    """The shapes of what the way down keeps, then of the middle."""
    config, side = unet.config, x.shape[1]
    layers, channels = config.per_block("layers_per_block"), config.block_out_channels
    found = [(len(x), side, side, channels[0])]
    for i, width in enumerate(channels):
        found += [(len(x), side, side, width)] * layers[i]
        if i < len(channels) - 1:
            side //= 2
            found.append((len(x), side, side, width))
    return [*found, (len(x), side, side, channels[-1])]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_residuals_are_added_where_they_belong(family):
    unet = network(family)
    x, t, context = inputs(unet, family)
    plain = np.asarray(unet.predict(x, t, context))
    nothing = [mx.zeros(shape) for shape in skips(unet, x)]
    assert np.array_equal(np.asarray(unet.predict(x, t, context, Extras(residuals=nothing))), plain)
    for place, shape in enumerate(skips(unet, x)):
        some = [*nothing[:place], mx.array(drawn.normal(f"residual {place}", *shape)), *nothing[place + 1 :]]
        assert np.abs(np.asarray(unet.predict(x, t, context, Extras(residuals=some))) - plain).max() > 1e-4
    with pytest.raises(ValueError):
        unet.predict(x, t, context, Extras(residuals=nothing[:-1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tap_sees_every_attention_to_the_text(family):
    unet = network(family)
    x, t, context = inputs(unet, family)
    plain, seen = np.asarray(unet.predict(x, t, context)), {}

    def tap(name: str, q: mx.array, k: mx.array, rows: list[int]) -> None:
        assert name not in seen and rows == [0, 1]
        seen[name] = q, k

    assert np.array_equal(np.asarray(unet.predict(x, t, context, Extras(tap=tap))), plain)
    modules = dict(unet.named_modules())
    assert set(seen) == {name for name in modules if name.endswith("attn2")}
    for name, (q, k) in seen.items():
        heads = modules[name].heads
        assert q.shape[:2] == k.shape[:2] == (2, heads) and k.shape[2] == 77 and q.shape[4] == k.shape[3]
        assert not np.array_equal(np.asarray(k)[0], np.asarray(k)[1])
    assert max(q.shape[2] * q.shape[3] for q, _ in seen.values()) == (16 if family == "sdxl" else 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_deep_features_stand_for_what_they_were_computed_from(family, monkeypatch):
    """At each branch; where they were computed, a call with them is the same without the work below."""
    unet = network(family)
    x, t, context = inputs(unet, family)
    plain, shapes_of_skips = np.asarray(unet.predict(x, t, context)), skips(unet, x)[:-1]
    assert unet.branches == len(shapes_of_skips)
    run, count = ResnetBlock.__call__, []
    monkeypatch.setattr(ResnetBlock, "__call__", lambda self, *given: count.append(self) or run(self, *given))
    for branch, shape in enumerate(shapes_of_skips):
        count.clear()
        deep = DeepFeatures(branch)
        assert np.array_equal(np.asarray(unet.predict(x, t, context, Extras(deep=deep))), plain)
        assert deep.features.shape[:3] == shape[:3]
        whole = len(count)
        again = DeepFeatures(branch, deep.features)
        assert np.array_equal(np.asarray(unet.predict(x, t, context, Extras(deep=again))), plain)
        assert again.features is deep.features
        assert len(count) - whole == branch + 1 + resnets_above(unet, branch)
        other = DeepFeatures(branch, deep.features + 1)
        assert not np.allclose(np.asarray(unet.predict(x, t, context, Extras(deep=other))), plain, atol=1e-3)


def resnets_above(unet: UNet, branch: int) -> int:
    """How many resnets compute the skip connections 1 to `branch`; the others come from downsampling."""
    are_resnets: list[bool] = []
    for level in unet.down_blocks:
        are_resnets += [True] * len(level.resnets) + [False] * ("downsample" in level)
    return sum(are_resnets[:branch])


def test_deep_features_with_residuals_and_a_tap():
    unet, seen = network("sd1"), []
    x, t, context = inputs(unet, "sd1")
    some = [mx.array(drawn.normal(f"residual {i}", *shape)) for i, shape in enumerate(skips(unet, x))]
    plain, deep = np.asarray(unet.predict(x, t, context, Extras(residuals=some))), DeepFeatures(1)
    assert np.array_equal(np.asarray(unet.predict(x, t, context, Extras(residuals=some, deep=deep))), plain)
    extras = Extras(residuals=some, deep=DeepFeatures(1, deep.features), tap=lambda name, q, k, rows: seen.append(name))
    assert np.array_equal(np.asarray(unet.predict(x, t, context, extras)), plain)
    assert all(name.startswith(("down_blocks.0", f"up_blocks.{len(unet.up_blocks) - 1}")) for name in seen)


def test_both_at_once_and_none_of_either():
    unet, seen = network("sd1"), []
    x, t, context = inputs(unet, "sd1")
    some = [mx.array(drawn.normal(f"residual {i}", *shape)) for i, shape in enumerate(skips(unet, x))]
    extras = Extras(residuals=some, tap=lambda name, q, k, rows: seen.append(name))
    alone = np.asarray(unet.predict(x, t, context, Extras(residuals=some)))
    assert np.array_equal(np.asarray(unet.predict(x, t, context, extras)), alone) and seen
    assert np.array_equal(np.asarray(unet.predict(x, t, context, Extras())), np.asarray(unet.predict(x, t, context)))


def test_what_it_cannot_take_is_refused_by_name():
    unet = network("sd1")
    x, t, context = inputs(unet, "sd1")
    with pytest.raises(InputError, match="This U-Net takes no keys_values, only residuals, tap, attend and deep"):
        unet.predict(x, t, context, Extras(keys_values={"a": (x, x)}))
