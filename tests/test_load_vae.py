"""A VAE in the place of a checkpoint's own: a folder, a file in either layout, inside of another checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from stable_diffusion import StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.config import AutoencoderTinyConfig
from stable_diffusion.errors import CheckpointNotFoundError, ConfigError, UnsupportedCheckpointError, WeightsError
from stable_diffusion.model_io import hub, load_vae
from stable_diffusion.vae_tiny import TinyAutoencoder

from . import drawn
from .conftest import EMBEDDED
from .test_hub import ROOT
from .test_hub import hub as hub_server  # noqa: F401

OWN = EMBEDDED / "vae" / "diffusion_pytorch_model.safetensors"
# The original names of an autoencoder's parts, as patterns of str.replace; what is numbered is done below.
TO_ORIGINAL = [
    (".downsamplers.0.", ".downsample."), (".upsamplers.0.", ".upsample."), (".resnets.", ".block."),
    ("mid_block.block.0", "mid.block_1"), ("mid_block.block.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    (".group_norm.", ".norm."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."), (".to_out.0.", ".proj_out."),
    (".conv_norm_out.", ".norm_out."), (".conv_shortcut.", ".nin_shortcut."), ("encoder.down_blocks.", "encoder.down."),
]  # fmt: skip


def drawn_vae() -> dict[str, np.ndarray]:
    """Other weights of the embedded VAE's shapes, by diffusers' names."""
    return {
        key: value.astype(np.float32) + np.float32(0.01) * drawn.normal(key, *value.shape)
        for key, value in load_file(OWN).items()
    }


def original(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    levels = len(json.loads((EMBEDDED / "vae" / "config.json").read_text())["block_out_channels"])
    renamed = {}
    for key, value in tensors.items():
        for ours, theirs in TO_ORIGINAL:
            key = key.replace(ours, theirs)
        for level in range(levels):
            key = key.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.")
        if ".attn_1." in key and ".norm." not in key and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[key] = value
    return renamed


def put(folder: Path, tensors: dict[str, np.ndarray], **changes) -> Path:
    """A VAE's folder as diffusers writes it; a configuration's key whose value is None is left out."""
    folder.mkdir(parents=True)
    values = {**json.loads((EMBEDDED / "vae" / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def decoded(sd: StableDiffusion) -> np.ndarray:
    return np.array(sd.decode(mx.array(drawn.normal("latents", 1, 8, 8, 4))))


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> np.ndarray:
    """What the other weights decode to, in a whole checkpoint that holds them."""
    from shutil import copytree, rmtree

    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    copytree(EMBEDDED, folder)
    rmtree(folder / "vae")
    put(folder / "vae", drawn_vae())
    picture = decoded(StableDiffusion(folder, float16=False))
    assert np.abs(picture - decoded(StableDiffusion(float16=False))).max() > 0.05
    return picture


def test_a_folder(tmp_path, expected):
    for folder in (put(tmp_path / "vae", drawn_vae()), put(tmp_path / "pipeline" / "vae", drawn_vae()).parent):
        assert np.array_equal(decoded(StableDiffusion(vae=folder, float16=False)), expected)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_file(layout, prefix, tmp_path, expected):
    tensors = drawn_vae() if layout == "diffusers" else original(drawn_vae())
    tensors = {prefix + key: value for key, value in tensors.items()}
    stray = {f"{prefix}loss.logvar": np.zeros(1, np.float32), f"{prefix}model_ema.decay": np.zeros((), np.float32)}
    if prefix:
        stray |= {"model.diffusion_model.out.2.bias": np.zeros(4, np.float32)}
    save_file(tensors | stray, tmp_path / "vae.safetensors")
    assert np.array_equal(decoded(StableDiffusion(vae=tmp_path / "vae.safetensors", float16=False)), expected)


def test_latents_are_scaled_by_the_folders_factor_or_else_the_checkpoints(tmp_path):
    own = StableDiffusion(float16=False)._vae.config.scaling_factor
    for given, scale in ((0.5, 0.5), (None, own)):
        folder = put(tmp_path / str(given), drawn_vae(), scaling_factor=given)
        assert StableDiffusion(vae=folder, float16=False)._vae.config.scaling_factor == scale
    save_file(drawn_vae(), tmp_path / "vae.safetensors")
    assert StableDiffusion(vae=tmp_path / "vae.safetensors", float16=False)._vae.config.scaling_factor == own


def test_pictures_are_encoded_by_it_too(tmp_path):
    picture = mx.array(drawn.normal("picture", 1, 64, 64, 3).clip(-1, 1))
    folder = put(tmp_path / "vae", drawn_vae())
    means = [np.array(StableDiffusion(vae=vae, float16=False)._vae.moments(picture)[0]) for vae in (None, folder)]
    assert np.abs(means[0] - means[1]).max() > 0.01


def test_half_precision(tmp_path, expected):
    half = decoded(StableDiffusion(vae=put(tmp_path / "vae", drawn_vae()), float16=True))
    assert 0 < np.abs(half - expected).max() < 0.05


class TestTiny:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """A random TAESD of few channels, as diffusers writes it."""
        values = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4}
        model = TinyAutoencoder(AutoencoderTinyConfig.from_dict(values))
        arrays = {key: np.array(value) for key, value in tree_flatten(model.parameters())}
        tensors = {key: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for key, value in arrays.items()}
        return put_tiny(tmp_path / "tiny", tensors, values)

    def test_as_the_vae(self, folder):
        sd = StableDiffusion(vae=folder, float16=False)
        assert (sd.latent_channels, sd.downscale) == (4, 8)
        assert sd.decode(mx.zeros((2, 5, 7, 4))).shape == (2, 40, 56, 3)
        image = np.zeros((40, 56, 3), np.uint8)
        assert sd.encode(image, width=56, height=40).shape == (1, 5, 7, 4)
        assert next(sd.generate_latents("a house", input_image=image, width=64, height=64)).latents.dtype == mx.float32

    def test_for_previews_where_it_is_there(self, folder, monkeypatch):
        latents = mx.array(drawn.normal("latents", 1, 8, 8, 4))
        plain = StableDiffusion(float16=False)
        assert mx.array_equal(plain.preview(latents), plain.decode(latents))
        factor = plain._vae.config.scaling_factor
        monkeypatch.setattr(load_vae, "TINY", {(factor, 4): "someone/tiny"})
        monkeypatch.setattr(hub, "cached_vae", {"someone/tiny": folder}.get)
        with_tiny = StableDiffusion(float16=False)
        expected = StableDiffusion(vae=folder, float16=False).decode(latents)
        assert mx.array_equal(with_tiny.preview(latents), expected)
        assert mx.array_equal(with_tiny.decode(latents), plain.decode(latents))

    @pytest.mark.parametrize(
        "values, match",
        [({"num_decoder_blocks": [1]}, "num_decoder_blocks"), ({"upsample_fn": "bilinear"}, "upsample_fn")],
    )
    def test_configurations_that_are_not_built(self, values, match, tmp_path):
        with pytest.raises((ConfigError, UnsupportedCheckpointError), match=match):
            StableDiffusion(vae=put_tiny(tmp_path / "tiny", {"x": np.zeros(1, np.float32)}, values))


def put_tiny(folder: Path, tensors: dict[str, np.ndarray], values: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", **values}))
    save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    return folder


class TestRefusals:
    def test_where_there_is_none(self, tmp_path):
        for source in ("nothing", tmp_path / "no.safetensors", ""):
            with pytest.raises(CheckpointNotFoundError, match="There is no VAE"):
                StableDiffusion(vae=source)
        with pytest.raises(CheckpointNotFoundError, match=r"neither config\.json nor vae/config\.json"):
            StableDiffusion(vae=tmp_path)

    def test_latents_of_other_channels(self, tmp_path):
        tensors = {key: value for key, value in drawn_vae().items() if not key.startswith(("quant", "post_quant"))}
        outputs = tensors["decoder.conv_in.weight"].shape[0]
        tensors["decoder.conv_in.weight"] = drawn.normal("w", outputs, 16, 3, 3)
        tensors["encoder.conv_out.weight"] = drawn.normal("w", 32, *tensors["encoder.conv_out.weight"].shape[1:])
        tensors["encoder.conv_out.bias"] = drawn.normal("b", 32)
        save_file(tensors, tmp_path / "vae.safetensors")
        with pytest.raises(ConfigError, match="latents of 16 channels, this checkpoint's have 4"):
            StableDiffusion(vae=tmp_path / "vae.safetensors")

    def test_what_holds_none(self, tmp_path):
        save_file({"lora_unet_x.lora_down.weight": np.zeros((2, 2), np.float32)}, tmp_path / "x.safetensors")
        with pytest.raises(UnsupportedCheckpointError, match="holds no VAE"):
            StableDiffusion(vae=tmp_path / "x.safetensors")
        decoder = {key: value for key, value in drawn_vae().items() if "decoder" in key}
        save_file(decoder, tmp_path / "y.safetensors")
        with pytest.raises(UnsupportedCheckpointError, match="its encoder is missing"):
            StableDiffusion(vae=tmp_path / "y.safetensors")

    def test_a_missing_tensor(self, tmp_path):
        tensors = drawn_vae()
        del tensors["decoder.conv_out.bias"]
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(WeightsError, match=r"decoder\.conv_out\.bias"):
            StableDiffusion(vae=tmp_path / "x.safetensors")

    def test_another_kind(self, tmp_path):
        folder = put(tmp_path / "vae", drawn_vae(), _class_name="AsymmetricAutoencoderKL")
        with pytest.raises(UnsupportedCheckpointError, match="AsymmetricAutoencoderKL"):
            StableDiffusion(vae=folder)


def test_of_a_repository_only_the_vae():
    plain = ["README.md", "config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "x.ckpt"]
    assert hub.needed_for_vae(plain, False) == ["config.json", "diffusion_pytorch_model.safetensors"]
    whole = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
             "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]  # fmt: skip
    assert hub.needed_for_vae(whole, True) == ["vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert hub.needed_for_vae(["unet/config.json"], False) == []


def test_from_the_hub(hub_server, tmp_path):  # noqa: F811
    """Only the VAE of a whole repository is fetched, and only once."""
    code = (
        "from stable_diffusion.model_io.load_vae import locate_vae\n"
        "for _ in range(2): print(locate_vae('someone/postcards', False))"
    )
    own = {"HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")} | own
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second and first.endswith("/vae")
    assert sorted(hub_server.fetched) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
