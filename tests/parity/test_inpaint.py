"""Inpainting against diffusers' pipelines: any checkpoint with its latents put back, and U-Nets of nine channels."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image, ImageDraw  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.diffusion.noise import NoiseStream  # noqa: E402
from stable_diffusion.pictures.inpainting import Inpainting  # noqa: E402

from . import pipelines  # noqa: E402
from .test_pipeline import (  # noqa: E402
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SCHEDULERS,
    WIDTH,
    assert_same_pictures,
    reference,
    with_scheduler,
)

pytestmark = pytest.mark.parity

KINDS = {"sd": diffusers.StableDiffusionInpaintPipeline, "sdxl": diffusers.StableDiffusionXLInpaintPipeline}
VE = {"euler", "euler_a", "heun", "lms"}
TWO_CALLS = {"heun"}
TRAJECTORY, SEED = 1e-4, 7
PLAIN, NINE = ["sd1", "sd2", "sdxl"], ["sd1 inpainting", "sdxl inpainting"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A random pipeline of each family, saved by diffusers; those for inpainting with a U-Net of nine channels."""
    found = {}
    for name in PLAIN + NINE:
        family, *nine = name.split()
        folder = pipelines.save(tmp_path_factory.mktemp(name.replace(" ", "_")), family)
        if nine:
            config = {**pipelines.UNETS[family], "in_channels": 9}
            pipelines.randomise(diffusers.UNet2DConditionModel(**config)).save_pretrained(folder / "unet")
        found[name] = folder
    return found


@pytest.fixture(scope="module")
def pictures() -> tuple[Image.Image, Image.Image]:
    """A picture and its mask, whose edges lie on no grid."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    mask = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(mask).ellipse((21, 13, 83, 59), fill=255)
    return picture, mask


@functools.lru_cache(maxsize=2)
def loaded(folder: Path) -> tuple:
    """(ours, the reference's pipeline)"""
    return StableDiffusion(folder, float16=False), reference(folder, KINDS["sdxl" if "sdxl" in folder.name else "sd"])


def compare(monkeypatch, folder, sampler, pictures, strength, num_steps=10, cfg_weight=7.5):
    """Hold every step of ours to the reference's, given the same draws, and then the pictures."""
    picture, mask = pictures
    sd, pipe = loaded(folder)
    with_scheduler(pipe, folder, sampler)
    steps = list(
        sd.generate_latents(
            PROMPT, NEGATIVE, 1, num_steps, cfg_weight, WIDTH, HEIGHT, SEED, picture, strength, sampler,
            mask_image=mask,
        )
    )  # fmt: skip
    stream = NoiseStream([SEED], (HEIGHT // 8, WIDTH // 8, 4))
    draws = iter(range(1000))

    def draw(shape, *args, **kwargs):
        # The third draw encodes the masked picture; where nothing but the latents is asked for, ours does without.
        if next(draws) == 2 and not sd.inpainting:
            return torch.zeros(tuple(shape))
        return torch.from_numpy(np.array(stream()).transpose(0, 3, 1, 2).copy())

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("diffusers") and "randn_tensor" in vars(module):
            monkeypatch.setattr(module, "randn_tensor", draw)
    expected = []

    def remember(pipe, i, t, state):
        x = state["latents"]
        if sampler in VE:
            x = x / math.sqrt(1 + float(pipe.scheduler.sigmas[pipe.scheduler.step_index]) ** 2)
        expected.append(pipelines.channels_last(x))
        return {}

    result = pipe(
        PROMPT, negative_prompt=NEGATIVE, image=picture, mask_image=mask, height=HEIGHT, width=WIDTH,
        strength=strength, num_inference_steps=num_steps, guidance_scale=cfg_weight,
        callback_on_step_end=remember, output_type="np",
    )  # fmt: skip
    if sampler in TWO_CALLS:
        expected = [*expected[1::2], expected[-1]]
    elif sampler == "pndm" and len(expected) > 1:
        expected = expected[1:]
    assert len(steps) == len(expected)
    # Begun midway, the reference's PNDM puts the kept part back one level ahead of its first step, which we don't show.
    ahead = sampler == "pndm" and strength < 1
    for step, x in list(zip(steps, expected, strict=True))[ahead:]:
        assert np.abs(np.array(step.latents) - x).max() <= TRAJECTORY * np.abs(x).max(), f"step {step.index}"
    assert_same_pictures(np.array(sd.decode(steps[-1].latents)), result.images)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_any_checkpoint_with_every_sampler(sampler, folders, pictures, monkeypatch):
    compare(monkeypatch, folders["sd1"], sampler, pictures, 0.6)


@pytest.mark.parametrize("sampler", ["euler_a", "heun", "pndm", "dpmpp_2m", "unipc", "lms"])
def test_from_pure_noise(sampler, folders, pictures, monkeypatch):
    compare(monkeypatch, folders["sd1"], sampler, pictures, 1.0)


@pytest.mark.parametrize("sampler", ["euler_a", "heun", "pndm", "ddim"])
def test_nine_channels_with_several_samplers(sampler, folders, pictures, monkeypatch):
    compare(monkeypatch, folders["sd1 inpainting"], sampler, pictures, 1.0)


@pytest.mark.parametrize("strength", [0.1, 0.75, 1.0])
@pytest.mark.parametrize("family", PLAIN + NINE)
def test_every_family(family, strength, folders, pictures, monkeypatch):
    compare(monkeypatch, folders[family], "euler", pictures, strength)


@pytest.mark.parametrize("family", ["sd1", "sd1 inpainting"])
def test_without_guidance(family, folders, pictures, monkeypatch):
    compare(monkeypatch, folders[family], "euler_a", pictures, 0.8, cfg_weight=1.0)


def test_what_inpainting_makes_ready(folders, pictures, monkeypatch):
    """Only the masked area, its mask thickened to the latents' squares: the reference, given that, paints the same."""
    picture, mask = pictures
    job = Inpainting(picture.resize((300, 200)), mask, WIDTH, HEIGHT, only_masked=True, padding=10)
    compare(monkeypatch, folders["sd1 inpainting"], "dpmpp_2m", (job.picture, job.mask), 0.9)
