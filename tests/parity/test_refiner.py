"""SDXL's refiner alone, image to image, against diffusers' StableDiffusionXLImg2ImgPipeline with aesthetic scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.model_io.convert import convert  # noqa: E402

from . import original_layout  # noqa: E402
from .test_pipeline import HEIGHT, NEGATIVE, PROMPT, WIDTH, assert_same_pictures, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """A random refiner's folder, as diffusers has it, and the same as a single file."""
    networks = original_layout.build("refiner")
    folder = original_layout.save_folder(tmp_path_factory.mktemp("refiner"), "refiner", networks)
    single = tmp_path_factory.mktemp("single") / "refiner.safetensors"
    tensors = {
        key: value.detach().contiguous() for key, value in original_layout.state_dict("refiner", networks).items()
    }
    save_file(tensors, single)
    return folder, single


def pipeline(folder):
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    assert pipe.config.requires_aesthetics_score
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(source, **options) -> np.ndarray:
    sd = StableDiffusion(source, float16=False)
    assert sd.family == "sdxl_refiner"
    options = {"input_image": PICTURE, "seed": 7, "num_steps": 12, "width": WIDTH, "height": HEIGHT, **options}
    *_, last = sd.generate_latents(PROMPT, **options)
    return np.array(sd.decode(last.latents))


@pytest.mark.parametrize("form", ["folder", "single file"])
@pytest.mark.parametrize("negative, cfg", [(NEGATIVE, 7.0), (None, 7.0), (PROMPT, 7.0), (NEGATIVE, 1.0)])
def test_pictures(form, negative, cfg, refiner, same_noise):  # noqa: F811
    """The negative has a score of its own, even where it is the prompt."""
    folder, single = refiner
    picture = ours(
        single if form == "single file" else folder, negative_text=negative, cfg_weight=cfg, denoising_strength=0.5
    )
    same_noise(7, 1)
    expected = pipeline(folder)(
        PROMPT, image=torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 255, strength=0.5, num_inference_steps=12,
        guidance_scale=cfg, negative_prompt=negative, output_type="np",
    ).images  # fmt: skip
    assert_same_pictures(picture, expected)


@pytest.mark.parametrize("destination", ["folder", "again.safetensors", "own"])
def test_conversions(destination, refiner, tmp_path):
    """From the single file; a folder names the pipeline that diffusers needs."""
    _, single = refiner
    converted = convert(single, tmp_path / destination, mlx=destination == "own")
    assert np.array_equal(ours(converted), ours(single))
    if destination == "folder":
        assert json.loads((converted / "model_index.json").read_text())["requires_aesthetics_score"]
        pipeline(converted)
