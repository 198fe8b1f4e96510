"""Whole generations against diffusers' pipelines: the same noise, pictures equal within 1 level on 99.9 % of values."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import mlx.core as mx  # noqa: E402
from PIL import Image  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.diffusion.noise import NoiseStream  # noqa: E402

from ..conftest import EMBEDDED  # noqa: E402
from ..test_goldens import CFG_WEIGHT, NUM_STEPS, POSTCARDS, noise_for  # noqa: E402
from . import pipelines  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEIGHT = 104, 72  # latents of 13 x 9: odd sides
PROMPT, NEGATIVE = "a red house on green hills at sunset, with clouds", "a blue tent"
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A random pipeline of each family, saved by diffusers."""
    return {name: pipelines.save(tmp_path_factory.mktemp(name), name) for name in pipelines.SCHEDULERS}


@contextlib.contextmanager
def scheduler_file(folder: Path, **changes) -> Iterator[None]:
    """The folder's scheduler_config.json with other values for a while; a key whose value is None is left out."""
    file = folder / "scheduler" / "scheduler_config.json"
    before = file.read_text()
    values = {key: value for key, value in {**json.loads(before), **changes}.items() if value is not None}
    file.write_text(json.dumps(values))
    try:
        yield
    finally:
        file.write_text(before)


@pytest.fixture
def same_noise(monkeypatch):
    """Give diffusers the draws of our seed: `same_noise(seed, n_images, size)` before its pipeline runs."""

    def begin(seed: int, n_images: int, width: int = WIDTH, height: int = HEIGHT):
        stream = NoiseStream(range(seed, seed + n_images), (height // 8, width // 8, 4))

        def draw(shape, *args, **kwargs):
            noise = np.array(stream()).transpose(0, 3, 1, 2)
            assert tuple(shape)[1:] == noise.shape[1:]
            # The reference encodes one picture and repeats it; its posterior has one draw then.
            return torch.from_numpy(noise.copy())[: shape[0]]

        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("diffusers") and "randn_tensor" in vars(module):
                monkeypatch.setattr(module, "randn_tensor", draw)

    return begin


def reference(folder: Path, kind=None, sampler: str = "euler", **scheduler_options):
    pipe = (kind or diffusers.DiffusionPipeline).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return with_scheduler(pipe, folder, sampler, **scheduler_options)


def with_scheduler(pipe, folder: Path, sampler: str, **options):
    scheduler = getattr(diffusers, SCHEDULERS[sampler])
    # As from_pretrained would have built it from the file, not with what the pipeline made of the other class's keys.
    pipe.scheduler = scheduler.from_config(scheduler.load_config(folder / "scheduler"), **options)
    if "clip_sample" in pipe.scheduler.config:
        pipe.scheduler.register_to_config(clip_sample=False)
    return pipe


def ours(folder: Path, **options) -> np.ndarray:
    sd = StableDiffusion(folder, float16=False)
    for step in sd.generate_latents(PROMPT, **options):
        mx.eval(step.latents)
    return np.array(sd.decode(step.latents))


def assert_same_pictures(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    a, b = np.rint(a * 255), np.rint(np.asarray(b) * 255)
    assert np.ptp(a) > 50, "a flat picture agrees with anything"
    assert (np.abs(a - b) <= 1).mean() >= 0.999


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_text_to_image_with_every_sampler(sampler, folders, same_noise):
    folder = folders["sd1"]
    picture = ours(folder, negative_text=NEGATIVE, sampler=sampler, seed=5, width=WIDTH, height=HEIGHT, num_steps=20)
    same_noise(5, 1)
    pipe = reference(folder, sampler=sampler)
    expected = pipe(PROMPT, HEIGHT, WIDTH, 20, negative_prompt=NEGATIVE, output_type="np").images
    assert_same_pictures(picture, expected)


@pytest.mark.parametrize("cfg_weight", [0.0, 1.0, 3.0, 7.5])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_text_to_image(family, cfg_weight, folders, same_noise):
    options = {"seed": 11, "width": WIDTH, "height": HEIGHT, "num_steps": 12, "n_images": 2}
    picture = ours(folders[family], negative_text=NEGATIVE, cfg_weight=cfg_weight, **options)
    same_noise(11, 2)
    expected = reference(folders[family])(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=12,
        guidance_scale=cfg_weight,
        num_images_per_prompt=2,
        output_type="np",
    ).images
    assert_same_pictures(picture, expected)


@pytest.mark.parametrize("negative", [None, ""])
def test_sdxl_without_a_negative(negative, folders, same_noise):
    """None conditions on zeros where the checkpoint says so; the empty text is encoded."""
    options = {"seed": 1, "width": WIDTH, "height": HEIGHT, "num_steps": 5}
    picture = ours(folders["sdxl"], negative_text=negative, **options)
    same_noise(1, 1)
    expected = reference(folders["sdxl"])(
        PROMPT, negative_prompt=negative, height=HEIGHT, width=WIDTH, num_inference_steps=5, guidance_scale=7.5,
        output_type="np",
    ).images  # fmt: skip
    assert_same_pictures(picture, expected)


def test_guidance_rescale(folders, same_noise):
    picture = ours(folders["sd2"], seed=2, width=WIDTH, height=HEIGHT, num_steps=8, guidance_rescale=0.7)
    same_noise(2, 1)
    expected = reference(folders["sd2"])(
        PROMPT, HEIGHT, WIDTH, 8, guidance_scale=7.5, guidance_rescale=0.7, output_type="np"
    ).images
    assert_same_pictures(picture, expected)


def test_zero_terminal_snr(folders, same_noise):
    """As the reference's Euler treats it, reached through the checkpoint's own scheduler file."""
    folder = folders["sd2"]
    with scheduler_file(folder, rescale_betas_zero_snr=True, timestep_spacing="trailing"):
        picture = ours(folder, seed=3, width=WIDTH, height=HEIGHT, num_steps=10, guidance_rescale=0.7)
        same_noise(3, 1)
        expected = reference(folder)(
            PROMPT, HEIGHT, WIDTH, 10, guidance_scale=7.5, guidance_rescale=0.7, output_type="np"
        ).images
    assert_same_pictures(picture, expected)


def test_lcm(folders, same_noise):
    """The guidance weight goes in as an embedding, and the U-Net is called once a step."""
    picture = ours(folders["lcm"], sampler="lcm", seed=4, num_steps=4, cfg_weight=8.5, width=WIDTH, height=HEIGHT)
    same_noise(4, 1)
    pipe = reference(folders["lcm"], sampler="lcm")
    expected = pipe(PROMPT, HEIGHT, WIDTH, 4, guidance_scale=8.5, output_type="np").images
    assert_same_pictures(picture, expected)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_image_to_image(family, strength, folders, same_noise):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    options = {"input_image": picture, "denoising_strength": strength, "seed": 7, "num_steps": 15, "cfg_weight": 5.0}
    result = ours(folders[family], width=WIDTH, height=HEIGHT, **options)
    same_noise(7, 1)
    kinds = {"sd1": diffusers.StableDiffusionImg2ImgPipeline, "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline}
    expected = reference(folders[family], kinds[family])(
        PROMPT, image=picture, strength=strength, num_inference_steps=15, guidance_scale=5.0, output_type="np"
    ).images
    assert_same_pictures(result, expected)


@pytest.mark.parametrize("sampler", [name for name in SCHEDULERS if name != "lcm"])
def test_image_to_image_with_every_sampler(sampler, folders, same_noise):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    result = ours(
        folders["sd1"], input_image=picture, denoising_strength=0.6, seed=7, sampler=sampler, width=WIDTH, height=HEIGHT
    )
    same_noise(7, 1)
    expected = reference(folders["sd1"], diffusers.StableDiffusionImg2ImgPipeline, sampler)(
        PROMPT, image=picture, strength=0.6, num_inference_steps=20, guidance_scale=7.5, output_type="np"
    ).images
    assert_same_pictures(result, expected)


@pytest.mark.parametrize("steps_offset", [None, 0])
def test_an_old_files_offset_is_corrected(steps_offset, folders, same_noise):
    """As the reference's pipeline corrects it when it loads SD 1.x or 2.x."""
    with scheduler_file(folders["sd1"], steps_offset=steps_offset):
        picture = ours(folders["sd1"], sampler="pndm", seed=6, width=WIDTH, height=HEIGHT, num_steps=10)
        same_noise(6, 1)
        pipe = diffusers.DiffusionPipeline.from_pretrained(folders["sd1"], local_files_only=True)
        expected = pipe(PROMPT, HEIGHT, WIDTH, 10, guidance_scale=7.5, output_type="np").images
    assert_same_pictures(picture, expected)


@pytest.mark.parametrize("prompt, negative, seed", POSTCARDS[::4])
def test_postcards(prompt, negative, seed):
    """The embedded model, live; tests/test_goldens.py compares all twenty with stored pictures."""
    noise = noise_for(seed)
    sd = StableDiffusion("postcards-tiny", float16=False)
    options = {"num_steps": NUM_STEPS, "cfg_weight": CFG_WEIGHT, "prompt_language": "plain"}
    for step in sd.generate_latents(prompt, negative, latents=noise, **options):
        mx.eval(step.latents)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(EMBEDDED, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt,
        negative_prompt=negative or None,
        num_inference_steps=NUM_STEPS,
        guidance_scale=CFG_WEIGHT,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        output_type="np",
    ).images
    assert_same_pictures(np.array(sd.decode(step.latents)), expected)
