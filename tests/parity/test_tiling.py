"""Seamless tiling against diffusers' networks with torch's circular padding, along one axis or both."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.models.downsampling import Downsample2D  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from stable_diffusion import StableDiffusion, ops  # noqa: E402
from stable_diffusion.backend import mx  # noqa: E402
from stable_diffusion.config import AutoencoderTinyConfig  # noqa: E402
from stable_diffusion.model_io.load_vae import load_vae  # noqa: E402
from stable_diffusion.pictures import TILINGS  # noqa: E402

from .. import drawn, networks, shapes  # noqa: E402
from ..networks import relative_error  # noqa: E402
from . import pipelines  # noqa: E402
from .pipelines import channels_first, channels_last  # noqa: E402
from .test_pipeline import assert_same_pictures, reference, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity


class Around(torch.nn.Module):
    """A convolution with its padding circular along some axes of (B, H, W, C), zeros along the others."""

    def __init__(self, conv, axes):
        super().__init__()
        self.conv, self.axes, self.sides = conv, axes, conv.padding
        conv.padding = 0

    def forward(self, x):
        down, across = self.sides
        for axis, pad in ((2, (across, across, 0, 0)), (1, (0, 0, down, down))):
            x = F.pad(x, pad, mode="circular" if axis in self.axes else "constant")
        return self.conv(x)


def circular(model, tiling, monkeypatch):
    """The model with such convolutions; with "both" torch's own. Zeros that the encoder adds by hand go around, too."""
    axes = TILINGS[tiling]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Conv2d) and child.padding != (0, 0):
                if tiling == "both":
                    child.padding_mode = "circular"
                    child._reversed_padding_repeated_twice = [p for pad in child.padding[::-1] for p in (pad, pad)]
                else:
                    setattr(parent, name, Around(child, axes))

    def by_hand(self, x, *args, **kwargs):
        if self.use_conv and self.padding == 0:
            x = F.pad(x, (0, 1, 0, 0), mode="circular" if 2 in axes else "constant")
            x = F.pad(x, (0, 0, 0, 1), mode="circular" if 1 in axes else "constant")
        return self.conv(x)

    monkeypatch.setattr(Downsample2D, "forward", by_hand)
    return model


@pytest.mark.parametrize("tiling", ["x", "y", "both"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_unet(name, tiling, tmp_path, monkeypatch):
    inputs, model = shapes.unet_inputs(name, 16, 12), pipelines.unet(name)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = networks.load_unet(config, next(tmp_path.glob("*.safetensors")))
    with ops.wrapping(TILINGS[tiling]):
        ours = networks.run_unet(own, inputs)
    assert relative_error(ours, pipelines.run_unet(circular(model, tiling, monkeypatch), inputs)) <= 1e-5
    assert relative_error(ours, networks.run_unet(own, inputs)) > 1e-3


@pytest.mark.parametrize("tiling", ["x", "y", "both"])
def test_vae(tiling, tmp_path, monkeypatch):
    inputs, model = shapes.vae_inputs(), pipelines.vae()
    model.save_pretrained(tmp_path)
    own = networks.load_vae(json.loads((tmp_path / "config.json").read_text()), next(tmp_path.glob("*.safetensors")))
    with ops.wrapping(TILINGS[tiling]):
        ours = networks.run_vae(own, inputs)
    plain = networks.run_vae(own, inputs)
    for key, expected in pipelines.run_vae(circular(model, tiling, monkeypatch), inputs).items():
        assert relative_error(ours[key], expected) <= 1e-5, key
        assert relative_error(plain[key], expected) > 1e-3, key


@pytest.mark.parametrize("tiling", ["x", "y", "both"])
def test_tiny_vae(tiling, tmp_path, monkeypatch):
    channels = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (24,) * 4}
    model = pipelines.randomise(diffusers.AutoencoderTiny(**channels))
    model.save_pretrained(tmp_path)
    own = load_vae(tmp_path, AutoencoderTinyConfig.from_dict(channels), "sd1", mx.float32)
    latents, picture = drawn.normal("latents", 2, 5, 7, 4), drawn.normal("picture", 1, 40, 56, 3).clip(-1, 1)
    circular(model, tiling, monkeypatch)
    with torch.no_grad():
        decoded = channels_last(model.decode(channels_first(latents)).sample)
        encoded = channels_last(model.encode(channels_first(picture)).latents)
    with ops.wrapping(TILINGS[tiling]):
        ours = [np.array(each) for each in (own.decode(mx.array(latents)), own.encode(mx.array(picture)))]
    assert relative_error(ours[0], decoded) <= 1e-5 and relative_error(ours[1], encoded) <= 1e-5


@pytest.mark.parametrize("tiling", ["x", "both"])
def test_the_pipelines_picture(tiling, tmp_path, monkeypatch, same_noise):  # noqa: F811
    sd = StableDiffusion(pipelines.save(tmp_path, "sd1"), float16=False)
    size = {"width": 64, "height": 48}
    *_, step = sd.generate_latents("a house", num_steps=5, seed=5, tiling=tiling, **size)
    pipe = reference(tmp_path)
    for model in (pipe.unet, pipe.vae):
        circular(model, tiling, monkeypatch)
    same_noise(5, 1, **size)
    expected = pipe("a house", num_inference_steps=5, guidance_scale=7.5, output_type="np", **size).images
    assert_same_pictures(np.array(sd.decode(step.latents, tiling)), expected)
