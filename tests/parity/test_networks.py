"""Each network against diffusers and transformers: float32 within 1e-5, float16 within 5e-3 of the largest value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import mlx.core as mx  # noqa: E402

from stable_diffusion.clip import CLIPTextModel  # noqa: E402
from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, UNetConfig  # noqa: E402
from stable_diffusion.model_io import mapping  # noqa: E402
from stable_diffusion.model_io.weights import load_weights  # noqa: E402
from stable_diffusion.unet import UNet  # noqa: E402
from stable_diffusion.vae import Autoencoder  # noqa: E402

from . import pipelines  # noqa: E402
from .pipelines import relative_error  # noqa: E402

pytestmark = pytest.mark.parity

FLOAT32, FLOAT16 = 1e-5, 5e-3


def load(module, config_type, names, reference, folder: Path, dtype=mx.float32):
    """The reference's network, saved by itself and loaded here."""
    reference.save_pretrained(folder)
    model = module(config_type.from_dict(json.loads((folder / "config.json").read_text())))
    load_weights(model, sorted(folder.glob("*.safetensors")), names, dtype)
    return model


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def unet_pair(name: str, size: tuple[int, int], folder: Path, dtype=mx.float32):
    """The prediction of our U-Net and the reference's for the same input."""
    reference = pipelines.unet(name)
    ours = load(UNet, UNetConfig, mapping.UNET, reference, folder, dtype)
    config = ours.config
    x = normal(0, 2, *size, config.in_channels)
    text = normal(1, 2, 77, config.per_block("cross_attention_dim")[0])
    t = np.array([601.0, 3.0], np.float32)
    extra, added = {}, {}
    if config.addition_embed_type:
        pooled, ids = normal(2, 2, 24), np.array([[128, 96, 0, 8, 64, 80]] * 2, np.float32)
        extra = {"pooled": mx.array(pooled), "time_ids": mx.array(ids)}
        added = {
            "added_cond_kwargs": {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(ids)},
        }
    if config.time_cond_proj_dim:
        guidance = ours.guidance_embedding(8.5)
        extra["guidance"] = guidance
        added["timestep_cond"] = torch.from_numpy(np.array(guidance)).repeat(2, 1)
    context = ours.project_text(mx.array(text).astype(dtype))
    prediction = ours(mx.array(x).astype(dtype), mx.array(t), context, **extra)
    with torch.no_grad():
        expected = reference(to_torch(x), torch.from_numpy(t), torch.from_numpy(text), **added).sample
    return np.array(prediction.astype(mx.float32)), expected


@pytest.mark.parametrize("name", pipelines.UNETS)
def test_unet(name, tmp_path):
    assert relative_error(*unet_pair(name, (16, 12), tmp_path)) <= FLOAT32


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (9, 16), (13, 3)])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_unet_of_odd_sides(name, size, tmp_path):
    assert relative_error(*unet_pair(name, size, tmp_path)) <= FLOAT32


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_unet_in_float16(name, tmp_path):
    assert relative_error(*unet_pair(name, (16, 12), tmp_path, mx.float16)) <= FLOAT16


def test_guidance_embedding(tmp_path):
    from diffusers import LatentConsistencyModelPipeline

    ours = UNet(UNetConfig(time_cond_proj_dim=32, block_out_channels=(32,), down_block_types=("DownBlock2D",),
                           up_block_types=("UpBlock2D",), attention_head_dim=4))  # fmt: skip
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([7.5]), embedding_dim=32)
    assert np.abs(np.array(ours.guidance_embedding(8.5)) - expected.numpy()).max() < 5e-4  # sin of angles up to 7,500


@pytest.mark.parametrize("name", pipelines.VAES)
def test_vae(name, tmp_path):
    reference = pipelines.vae(name)
    ours = load(Autoencoder, AutoencoderConfig, mapping.VAE, reference, tmp_path)
    picture, latents = normal(0, 2, 40, 56, 3).clip(-1, 1), normal(1, 2, 5, 7, 4)
    with torch.no_grad():
        posterior = reference.encode(to_torch(picture)).latent_dist
        decoded = reference.decode(to_torch(latents)).sample
    mean, deviation = ours.moments(mx.array(picture))
    assert relative_error(mean, posterior.mean) <= FLOAT32
    assert relative_error(deviation, posterior.std) <= FLOAT32
    # The reference leaves scaling to its pipelines, so undo ours.
    assert relative_error(ours.decode(ours._scale(mx.array(latents))), decoded) <= FLOAT32


def test_vae_scaling():
    """Scaled as the reference's pipelines do it, and back."""
    config = AutoencoderConfig(**pipelines.VAES["statistics"])
    z = mx.array(normal(0, 1, 2, 2, 4))
    vae = Autoencoder(config)
    expected = (np.array(z) - np.array(config.latents_mean)) * config.scaling_factor / np.array(config.latents_std)
    assert relative_error(vae._scale(z), expected) < 1e-6
    assert relative_error(vae._unscale(vae._scale(z)), np.array(z)) < 1e-6


def test_vae_in_float16(tmp_path):
    reference = pipelines.vae()
    ours = load(Autoencoder, AutoencoderConfig, mapping.VAE, reference, tmp_path, mx.float16)
    latents = normal(1, 2, 5, 7, 4)
    with torch.no_grad():
        decoded = reference.decode(to_torch(latents)).sample
    assert relative_error(ours.decode(ours._scale(mx.array(latents))).astype(mx.float32), decoded) <= FLOAT16


def test_vae_attention_names_of_old_files(tmp_path):
    from safetensors.torch import load_file, save_file

    reference = pipelines.vae()
    expected = load(Autoencoder, AutoencoderConfig, mapping.VAE, reference, tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    for new_name, old_name in old.items():
        tensors = {key.replace(f".{new_name}.", f".{old_name}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, tmp_path / "old.safetensors")
    model = Autoencoder(expected.config)
    load_weights(model, [tmp_path / "old.safetensors"], mapping.VAE, mx.float32)
    latents = mx.array(normal(1, 1, 4, 4, 4))
    assert mx.array_equal(model.decode(latents), expected.decode(latents))


@pytest.mark.parametrize("with_projection", [False, True])
@pytest.mark.parametrize("name", pipelines.TEXTS)
def test_text_encoder(name, with_projection, tmp_path):
    reference = pipelines.text_encoder(pipelines.TEXTS[name], with_projection)
    ours = load(CLIPTextModel, CLIPTextConfig, mapping.TEXT_ENCODER, reference, tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 740, (2, 77)).astype(np.int32)
    ids[0, 9:] = 741
    ids[1, 30], ids[1, 31:] = 741, 0
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids).long(), output_hidden_states=True)
    output = ours(mx.array(ids))
    pooled = expected.text_embeds if with_projection else expected.pooler_output
    assert relative_error(output.last_hidden_state, expected.last_hidden_state) <= FLOAT32
    assert relative_error(output.pooled, pooled) <= FLOAT32
    assert relative_error(output.hidden_states[-2], expected.hidden_states[-2]) <= FLOAT32


def test_text_encoder_in_float16(tmp_path):
    reference = pipelines.text_encoder(pipelines.TEXT)
    ours = load(CLIPTextModel, CLIPTextConfig, mapping.TEXT_ENCODER, reference, tmp_path, mx.float16)
    ids = np.random.default_rng(0).integers(0, 742, (2, 77)).astype(np.int32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids).long()).last_hidden_state
    assert relative_error(ours(mx.array(ids)).last_hidden_state.astype(mx.float32), expected) <= FLOAT16
