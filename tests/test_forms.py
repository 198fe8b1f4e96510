"""The forms of operations that this device takes, against the plain ones: each network, and a whole generation."""

from __future__ import annotations

import numpy as np
import pytest
from mlx.utils import tree_flatten

from stable_diffusion import StableDiffusion, ops
from stable_diffusion.backend import mx, nn
from stable_diffusion.config import AutoencoderConfig, UNetConfig
from stable_diffusion.unet import UNet
from stable_diffusion.vae import Autoencoder

from . import drawn, networks, shapes

NETWORK, TRAJECTORY = 5e-5, 1e-3  # relative to the largest value

# Wide and large enough that attention and group norm come in several blocks, and convolutions in Winograd's form.
VAE = {**shapes.VAE, "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1}  # fmt: skip
UNET = {**shapes.UNET, "block_out_channels": (32, 64, 64), "layers_per_block": 1}


def with_drawn_weights(model: nn.Module) -> nn.Module:
    """Each parameter drawn by its name; linear weights and kernels alike have their outputs first."""
    parameters = tree_flatten(model.parameters())
    model.load_weights([(name, mx.array(drawn.weight(name, value.shape))) for name, value in parameters])
    return model


def vae_outputs() -> list[np.ndarray]:
    model = with_drawn_weights(Autoencoder(AutoencoderConfig.from_dict(VAE)))
    picture, z = drawn.normal("picture", 1, 90, 86, 3).clip(-1, 1), drawn.normal("z", 1, 45, 43, 4)
    return list(networks.run_vae(model, {"picture": picture, "z": z}).values())


def unet_outputs() -> list[np.ndarray]:
    model = with_drawn_weights(UNet(UNetConfig.from_dict(UNET)))
    return [networks.run_unet(model, shapes.unet_inputs("sd1", 44, 41))]


@pytest.mark.parametrize("outputs", [vae_outputs, unet_outputs])
def test_networks(outputs):
    ours = outputs()
    with ops.use("plain"):
        theirs = outputs()
    for a, b in zip(ours, theirs, strict=True):
        assert networks.relative_error(a, b) <= NETWORK


def test_a_generation():
    def latents() -> list[np.ndarray]:
        sd = StableDiffusion("postcards-tiny", float16=False)
        steps = sd.generate_latents("a red house on green hills at sunset", seed=3, width=256, height=192)
        return [np.array(step.latents) for step in steps]

    ours = latents()
    with ops.use("plain"):
        theirs = latents()
    for a, b in zip(ours, theirs, strict=True):
        assert networks.relative_error(a, b) <= TRAJECTORY
