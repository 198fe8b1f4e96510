"""Steps that do less work, against the reference: guidance in an interval, and DeepCache's own package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
deepcache = pytest.importorskip("DeepCache")

from stable_diffusion import StableDiffusion  # noqa: E402

from .. import drawn  # noqa: E402
from . import pipelines  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEIGHT = 64, 48
STEPS, CFG_WEIGHT = 10, 5.0
PROMPT, NEGATIVE = "a red house on green hills at sunset, with clouds", "a blue tent"
NOISE = drawn.normal("noise", 1, HEIGHT // 8, WIDTH // 8, 4)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: pipelines.save(tmp_path_factory.mktemp(name), name) for name in ("sd1", "sdxl")}


def ours(folder: Path, **options) -> list[np.ndarray]:
    """The latents after each step."""
    sd = StableDiffusion(folder, float16=False)
    options = {"num_steps": STEPS, "cfg_weight": CFG_WEIGHT, "width": WIDTH, "height": HEIGHT, **options}
    steps = sd.generate_latents(PROMPT, NEGATIVE, latents=NOISE, prompt_language="plain", **options)
    return [np.array(step.latents) for step in steps]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@torch.no_grad()
def reference(folder: Path, scheduler: str, guided) -> np.ndarray:
    """The final latents of the reference's parts in a loop; guidance acts where `guided(place of the call, sigma)`."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    scheduler = getattr(diffusers, scheduler).from_pretrained(folder, subfolder="scheduler")
    encoded = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                                 negative_prompt=NEGATIVE)  # fmt: skip
    text, negative = encoded[:2]
    added = [{}, {}]
    if len(encoded) == 4:
        times = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]])
        added = [{"added_cond_kwargs": {"text_embeds": each, "time_ids": times}} for each in encoded[2:]]
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(NOISE.transpose(0, 3, 1, 2).copy()) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        output = pipe.unet(scaled, t, encoder_hidden_states=text, **added[0]).sample
        if guided(i, scheduler.sigmas[scheduler.step_index].item()):
            other = pipe.unet(scaled, t, encoder_hidden_states=negative, **added[1]).sample
            output = other + CFG_WEIGHT * (output - other)
        x = scheduler.step(output, t, x).prev_sample
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_guidance_in_an_interval(family, folders):
    found = ours(folders[family], guidance_start=0.2, guidance_end=0.7)[-1]
    expected = reference(folders[family], "EulerDiscreteScheduler", lambda i, sigma: 3 <= i < 7)
    assert_close(found, expected)
    assert np.abs(found - ours(folders[family])[-1]).max() > 1e-2 * np.abs(found).max()


def test_guidance_by_sigma_where_a_step_has_two_calls(folders):
    """Each call's own sigma decides: a step's second call may be below the bound where its first is not."""
    guided = []

    def above(i: int, sigma: float) -> bool:
        guided.append(sigma >= 2.0)
        return guided[-1]

    expected = reference(folders["sd1"], "HeunDiscreteScheduler", above)
    assert_close(ours(folders["sd1"], sampler="heun", guidance_min_sigma=2.0)[-1], expected)
    assert guided.count(True) % 2 == 1, "the bound lies between a step's two calls"


@torch.no_grad()
def reference_with_package(folder: Path, interval: int, branch: int) -> list[np.ndarray]:
    """The latents after each step of diffusers' pipeline with the package's helper."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    helper = deepcache.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    latents = []

    def keep(pipe, i, t, found):
        scale = (1 + pipe.scheduler.sigmas[i + 1] ** 2) ** 0.5  # its latents are of k-diffusion's kind
        latents.append((found["latents"] / scale).permute(0, 2, 3, 1).numpy().copy())
        return found

    pipe(
        PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=CFG_WEIGHT,
        negative_prompt=NEGATIVE, output_type="latent", callback_on_step_end=keep,
        latents=torch.from_numpy(NOISE.transpose(0, 3, 1, 2).copy()),
    )  # fmt: skip
    return latents


@pytest.mark.parametrize("family, interval, branch", [("sd1", 3, 0), ("sd1", 2, 2), ("sd1", 5, 3), ("sdxl", 2, 1)])
def test_deep_cache(family, interval, branch, folders):
    """At every step; branch 2 is where a level ends, and 3 where the next one begins."""
    layers = StableDiffusion(folders[family])._unet.config.per_block("layers_per_block")
    assert layers[0] == 2, "the package counts three skip connections for each level"
    found = ours(folders[family], deepcache_interval=interval, deepcache_branch=branch)
    expected = reference_with_package(folders[family], interval, branch)
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    assert np.abs(found[-1] - ours(folders[family])[-1]).max() > 1e-3 * np.abs(found[-1]).max()
