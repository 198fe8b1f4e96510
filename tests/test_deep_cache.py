"""DeepCache in a generation: which calls compute everything, and that all ways to run the network agree."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from stable_diffusion import InputError, StableDiffusion, backend, ops
from stable_diffusion.diffusion.deep_cache import DeepCache
from stable_diffusion.diffusion.network import DeepFeatures
from stable_diffusion.ops import lanes
from stable_diffusion.unet import UNet

from .test_toy_network import toy

PROMPT = "a red house on green hills at sunset"
FEW = {"negative_text": "clouds", "num_steps": 6, "seed": 3, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def painted(sd: StableDiffusion, prompt: str = PROMPT, **options) -> np.ndarray:
    """The final latents."""
    for step in sd.generate_latents(prompt, **FEW | options):
        mx.eval(step.latents)
    return np.array(step.latents)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What the network was asked for, call by call: all, or the part above the deep features; and its rows."""
    found: list[str] = []
    predict = UNet.predict

    def noted(self, x, t, context, extras):
        deep = extras.deep
        found.append(f"{'all' if deep is None or deep.features is None else 'part'} {len(x)}")
        return predict(self, x, t, context, extras)

    monkeypatch.setattr(UNet, "predict", noted)
    return found


def test_every_so_many_steps_compute_everything(sd, calls):
    plain = painted(sd)
    calls.clear()
    found = painted(sd, deepcache_interval=4)
    assert calls == ["all 2", "part 2", "part 2", "part 2", "all 2", "part 2"]
    assert np.abs(found - plain).max() > 1e-3
    calls.clear()
    assert np.array_equal(painted(sd, deepcache_interval=1, deepcache_branch=3), plain)
    assert calls == ["all 2"] * 6
    assert np.array_equal(painted(sd), plain), "nothing stays in the network"


def test_a_higher_branch_is_closer(sd):
    plain = painted(sd)
    errors = [np.abs(painted(sd, deepcache_interval=2, deepcache_branch=i) - plain).mean() for i in (0, 3, 5)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde"])
def test_all_calls_of_a_step_do_the_same(sd, calls, sampler):
    painted(sd, deepcache_interval=2, sampler=sampler)
    assert calls == (["all 2"] * 2 + ["part 2"] * 2) * 2 + ["all 2"] * 2 + ["part 2"]


def test_image_to_image_begins_with_everything(sd, calls):
    picture = Image.new("RGB", (64, 64), "red")
    painted(sd, deepcache_interval=2, input_image=picture, denoising_strength=0.5, num_steps=10)
    assert calls == ["all 2", "part 2"] * 2 + ["all 2"]


def test_inpainting_reuses_them_too(sd, calls):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    found = painted(sd, deepcache_interval=3, input_image=Image.new("RGB", (64, 64), "red"), mask_image=mask)
    assert calls[:2] == ["all 2", "part 2"] and np.isfinite(found).all()


def test_without_guidance_the_texts_features_are_reused(sd, calls):
    """Where guidance begins between two steps that compute everything, the negative's are missing: all is computed."""
    painted(sd, deepcache_interval=4, guidance_end=0.3)
    assert calls == ["all 2", "part 2", "part 1", "part 1", "all 1", "part 1"]
    calls.clear()
    painted(sd, deepcache_interval=4, guidance_start=0.3)
    assert calls == ["all 1", "part 1", "all 2", "part 2", "all 2", "part 2"]


def test_another_text_computes_everything(sd, calls):
    painted(sd, "a [red:blue:0.5] house", deepcache_interval=6)
    assert calls == ["all 2", "part 2", "part 2", "all 2", "part 2", "part 2"]
    calls.clear()
    painted(sd, "a red house AND green hills", deepcache_interval=3, n_images=2)
    assert calls == ["all 6", "part 6", "part 6"] * 2


@pytest.mark.parametrize("ops_table", ["cpu", "plain"])
def test_every_way_to_run_the_network_agrees(sd, ops_table, monkeypatch):
    options = {"deepcache_interval": 3, "deepcache_branch": 1, "guidance_end": 0.9}
    with ops.use(ops_table):
        together = painted(sd, **options)
        monkeypatch.setattr(sd, "low_memory", True)
        monkeypatch.setattr(sd._unloader, "drop", lambda *networks: None)
        in_turn = painted(sd, **options)
    assert np.abs(in_turn - together).max() < 2e-4 * np.abs(together).max()


def test_in_lanes(sd, monkeypatch):
    options = {"deepcache_interval": 3, "deepcache_branch": 1, "guidance_end": 0.9}
    together = painted(sd, **options)
    shares, each = [], lanes.each
    two = dataclasses.replace(backend.blas(), threads=2, fixed=False, set_threads=lambda threads: None)
    monkeypatch.setattr(backend, "_blas", two)
    monkeypatch.setattr(backend, "product_threads", lambda: 2)
    monkeypatch.setattr(
        lanes, "each", lambda function, parts, *rest: shares.append(len(parts)) or each(function, parts, *rest)
    )
    with ops.use("cpu"):
        assert np.abs(painted(sd, **options) - together).max() < 2e-4 * np.abs(together).max()
    assert shares


def test_a_batch_is_as_each_alone(sd):
    batch = painted(sd, deepcache_interval=2, n_images=2)
    for i in range(2):
        alone = painted(sd, deepcache_interval=2, seed=3 + i)
        assert np.abs(batch[i : i + 1] - alone).max() < 2e-4 * np.abs(alone).max()


def test_two_generations_at_once_do_not_meet(sd):
    options = FEW | {"deepcache_interval": 3}
    alone = [painted(sd, seed=seed, deepcache_interval=3) for seed in (1, 2)]
    both = [sd.generate_latents(PROMPT, **options | {"seed": seed}) for seed in (1, 2)]
    for steps in zip(*both, strict=True):
        mx.eval([step.latents for step in steps])
    assert all(np.array_equal(np.array(step.latents), each) for step, each in zip(steps, alone, strict=True))


def test_a_network_without_deep_features_says_so():
    with pytest.raises(InputError, match="'toy' has no deep features to reuse: deepcache_interval = 2 should be 1"):
        toy().generate_latents("a", deepcache_interval=2)


def test_the_rule_alone():
    cache, features = DeepCache(3, branch=5), mx.arange(4).reshape(2, 1, 1, 2)
    assert cache.features_for(2, (0, 1)) == DeepFeatures(5, None), "nothing is kept yet"
    cache.keep(DeepFeatures(5, features), (0, 1))
    assert mx.array_equal(cache.features_for(3, (0, 1)).features, features)
    assert mx.array_equal(cache.features_for(3, (1,)).features, features[1:])
    assert cache.features_for(4, (0, 1)).features is None
    assert cache.features_for(3, (0, 2)).features is None
    assert cache.features_for(3, (0, 0, 1)).features is None
