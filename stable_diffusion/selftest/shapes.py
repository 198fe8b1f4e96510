"""How much a selftest compares: Stable Diffusion's networks with few layers, their weights and inputs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..backend import mx, nn
from .published import TEXTS, UNETS, VAE, Config

WIDTHS = [320, 640, 1280, 1280]


def few_layers(unet: Config, levels: int, middle: bool) -> Config:
    """A U-Net of the same widths, heads and kinds of blocks, one layer at each of the first levels."""
    types = unet.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])[:levels]
    heads = unet.get("attention_head_dim", 8)
    return {
        **unet,
        "block_out_channels": list(unet.get("block_out_channels", WIDTHS))[:levels],
        "down_block_types": types,
        "up_block_types": [each.replace("Down", "Up") for each in reversed(types)],
        "attention_head_dim": heads[:levels] if isinstance(heads, list) else heads,
        "transformer_layers_per_block": 1,
        "layers_per_block": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
    }


@dataclass(frozen=True)
class Sizes:
    """How much is compared: the networks, and the sides of what they are given."""

    unets: Mapping[str, Config]
    texts: Mapping[str, Config]
    vae: Config
    latents: int  # side, of the U-Nets
    vae_latents: int
    attentions: tuple[tuple[int, int, int], ...]  # (heads, head size, queries and keys)
    pictures: int = 3
    speed: tuple[str, ...] = ()  # the keys of SPEED that are timed on every machine
    speed_on_gpu: tuple[str, ...] = ()  # those that are timed on a GPU that has the memory


@dataclass(frozen=True)
class Speed:
    """What is timed: a U-Net with guidance, and a picture's decoding."""

    unet: str
    pixels: int


SPEED = {
    "SD 1.5 at 512x512": Speed("SD 1.5", 512),
    "SD 1.5 at 1024x1024": Speed("SD 1.5", 1024),
    "SDXL at 1024x1024": Speed("SDXL", 1024),
}
HEADS = ((8, 40), (8, 80), (8, 160), (10, 64), (1, 512))  # how many, and of which size


def _sizes(levels: int, middle: bool, text_layers: int, positions: int, **others: Any) -> Sizes:
    texts = {
        name: {**config, "num_hidden_layers": text_layers, "vocab_size": 1000, "eos_token_id": 999}
        for name, config in TEXTS.items()
    }
    unets = {name: few_layers(config, levels, middle) for name, config in UNETS.items()}
    attentions = tuple((*heads, positions) for heads in HEADS)
    return Sizes(unets, texts, {**VAE, "layers_per_block": 1}, attentions=attentions, **others)


QUICK = _sizes(2, False, 1, 512, latents=16, vae_latents=8)
USUAL = _sizes(
    3,
    True,
    2,
    1024,
    latents=32,
    vae_latents=16,
    speed=("SD 1.5 at 512x512",),
    speed_on_gpu=("SD 1.5 at 1024x1024", "SDXL at 1024x1024"),
)
FULL = _sizes(3, True, 4, 4096, latents=64, vae_latents=32, speed=tuple(SPEED))


def fill(network: nn.Module, dtype: mx.Dtype = mx.float32) -> None:
    """Give a network weights that need no generator's minutes: windows of one pool of normal numbers, scaled.

    Matrices and kernels keep the variance of what they are given; norms and biases stay as they are made.
    """
    pool = np.random.default_rng(1).standard_normal(1_000_003).astype(np.float32)
    filled = []
    for name, value in _parameters(network):
        if value.ndim > 1:
            scale = np.float32(1 / np.sqrt(value.size / value.shape[0]))
            start = zlib.crc32(name.encode()) % pool.size
            value = mx.array(np.resize(np.roll(pool, -start) * scale, value.shape))
        filled.append((name, value.astype(dtype)))
        mx.eval(filled[-1][1])
    network.update(tree_unflatten(filled))


def cast(network: nn.Module, dtype: mx.Dtype) -> None:
    """Turn the weights into another precision, one after the other."""
    for name, value in _parameters(network):
        network.update(tree_unflatten([(name, value.astype(dtype))]))
    mx.eval(network.parameters())


def _parameters(network: nn.Module) -> list[tuple[str, mx.array]]:
    return tree_flatten(network.parameters())  # type: ignore[return-value]


def normal(seed: int, *shape: int) -> mx.array:
    """Unit normal inputs, from numpy."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def unet_inputs(config: Config, rows: int, side: int) -> Iterator[mx.array]:
    """Latents, hidden states, and where the network takes them the pooled text and the sizes."""
    yield normal(1, rows, side, side, 4)
    yield normal(2, rows, 77, config["cross_attention_dim"])
    if "addition_embed_type" in config:
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        yield normal(3, rows, width)
        yield mx.array([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]] * rows)
