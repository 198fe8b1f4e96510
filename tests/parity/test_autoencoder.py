"""VAEs in the place of a checkpoint's own against diffusers': AutoencoderKL, single files, AutoencoderTiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import mlx.core as mx  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402

from .. import drawn  # noqa: E402
from ..networks import relative_error  # noqa: E402
from ..shapes import VAES  # noqa: E402
from . import pipelines  # noqa: E402
from .original_layout import _vae_key  # noqa: E402
from .pipelines import channels_first, channels_last  # noqa: E402
from .test_pipeline import assert_same_pictures, reference, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return pipelines.save(tmp_path_factory.mktemp("sd1"), "sd1")


def other_vae() -> diffusers.AutoencoderKL:
    vae = diffusers.AutoencoderKL(**{**VAES["plain"], "scaling_factor": 0.4})
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            parameter.copy_(torch.from_numpy(drawn.weight("other " + name, tuple(parameter.shape))))
    return vae.eval()


@pytest.mark.parametrize("form", ["folder", "file", "original", "checkpoint"])
def test_the_pipelines_picture(form, folder, tmp_path, same_noise):  # noqa: F811
    vae = other_vae()
    tensors = {key: value.contiguous() for key, value in vae.state_dict().items()}
    source = tmp_path / "vae.safetensors"
    if form == "folder":
        source = tmp_path
        vae.save_pretrained(tmp_path)
    elif form == "file":
        save_file(tensors, source)
    else:
        prefix = "first_stage_model." if form == "checkpoint" else ""
        save_file({prefix + _vae_key(key, 4): value for key, value in tensors.items()}, source)
    sd = StableDiffusion(folder, float16=False, vae=source)
    for step in sd.generate_latents("a house", num_steps=5, seed=5, **SIZE):
        mx.eval(step.latents)
    pipe = reference(folder)
    # A file without a configuration scales latents as the checkpoint does.
    factor = 0.4 if form == "folder" else pipe.vae.config.scaling_factor
    pipe.vae = vae
    pipe.vae.register_to_config(scaling_factor=factor)
    same_noise(5, 1, **SIZE)
    expected = pipe("a house", num_inference_steps=5, guidance_scale=7.5, output_type="np", **SIZE).images
    assert_same_pictures(np.array(sd.decode(step.latents)), expected)


def test_a_tiny_one(folder, tmp_path):
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(24,) * 4, num_decoder_blocks=(2, 1, 3, 1)
    )
    pipelines.randomise(tiny).save_pretrained(tmp_path)
    sd = StableDiffusion(folder, float16=False, vae=tmp_path)
    assert (sd.latent_channels, sd.downscale) == (4, 8)
    latents = drawn.normal("latents", 2, 5, 7, 4)
    picture = drawn.normal("picture", 1, 40, 56, 3).clip(-1, 1)
    with torch.no_grad():
        decoded = channels_last(tiny.decode(channels_first(latents)).sample)
        encoded = channels_last(tiny.encode(channels_first(picture)).latents)
    assert relative_error(np.array(sd._vae.decode(mx.array(latents))), decoded) < 1e-5
    assert relative_error(np.array(sd._vae.encode(mx.array(picture))), encoded) < 1e-5
    assert np.ptp(np.array(sd.decode(mx.array(latents)))) > 0.2
