"""Hires fix against torch and diffusers: latents enlarged as torch does, and the second pass that starts from them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import mlx.core as mx  # noqa: E402

from stable_diffusion import Hires, StableDiffusion  # noqa: E402
from stable_diffusion.diffusion.enlarging import enlarged  # noqa: E402
from stable_diffusion.hires import LATENT_MODES  # noqa: E402

from .. import drawn  # noqa: E402
from . import pipelines  # noqa: E402
from .test_pipeline import NEGATIVE, PROMPT, reference, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

WIDTH, HEIGHT = 40, 56
LATER = "a blue boat by the sea"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipelines.save(tmp_path_factory.mktemp("sd1"), "sd1")


def interpolated(latents: np.ndarray, height: int, width: int, name: str) -> torch.Tensor:
    """(B, h, w, C) -> (B, C, height, width), as A1111's sample_hr_pass calls torch."""
    mode, antialias = LATENT_MODES[name]
    rows = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
    return torch.nn.functional.interpolate(rows, size=(height, width), mode=mode, antialias=antialias)


@pytest.mark.parametrize("name", LATENT_MODES)
@pytest.mark.parametrize("size", [(32, 32), (31, 17), (16, 13), (9, 40)])
def test_latent_modes(name, size):
    latents = drawn.normal(f"latents {name}", 2, 16, 13, 4)
    expected = interpolated(latents, *size, name).numpy().transpose(0, 2, 3, 1)
    mode, antialias = LATENT_MODES[name]
    np.testing.assert_allclose(np.array(enlarged(mx.array(latents), *size, mode, antialias)), expected, atol=1e-5)


@pytest.mark.parametrize("name", LATENT_MODES)
def test_the_second_pass(name, folder, same_noise):  # noqa: F811
    """As A1111's: 4 steps from strength 0.5 are the last 4 of 8; the noise is the first draw at the larger size."""
    hires = Hires(1.5, upscaler=name, steps=4, strength=0.5, cfg=4.0, prompt=LATER)
    sd = StableDiffusion(folder, float16=False)
    for step in sd.generate_latents(
        PROMPT, NEGATIVE, num_steps=4, seed=5, n_images=2, width=WIDTH, height=HEIGHT, hires=hires, sampler="euler_a"
    ):
        latents = np.array(step.latents)
        if step.ends_pass and step.pass_number == 1:
            first = latents
    assert (step.index, step.total) == (8, 8)
    same_noise(5, 2, int(WIDTH * 1.5), int(HEIGHT * 1.5))
    expected = reference(folder, diffusers.StableDiffusionImg2ImgPipeline, "euler_a")(
        [LATER] * 2,
        negative_prompt=[NEGATIVE] * 2,
        image=interpolated(first, 10, 7, name),
        strength=0.5,
        num_inference_steps=8,
        guidance_scale=4.0,
        output_type="latent",
    ).images.numpy()
    assert np.ptp(expected) > 1, "flat latents agree with anything"
    np.testing.assert_allclose(latents.transpose(0, 3, 1, 2), expected, atol=1e-4)
