"""A classifier of noisy latents, p(y | x_t): what Dhariwal and Nichol 2021 (arXiv:2105.05233) steer a diffusion with.

It is the way down of a small U-Net, conditioned on the time, with a head for each attribute (thing, colour ...).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .. import atomic
from ..backend import mx, nn
from ..config import SchedulerConfig
from ..diffusion.schedule import NoiseSchedule
from ..errors import CheckpointError, CheckpointNotFoundError, StableDiffusionError
from ..layers import Conv2d, Downsample, GroupNorm, ResnetBlock
from ..places import packaged
from ..sampler import sampler_by_name
from ..unet import TimestepEmbedding, sinusoidal_embedding

FOLDER = packaged("checkpoints", "postcards-classifier")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
GROUPS = 8


@dataclass(frozen=True)
class ClassifierConfig:
    """What must be known to rebuild the network and to use it.

    `heads` are the attributes, and the options of each with the words that stand for it. `widths` are the channels at
    full size, half and so on. `scheduler` is the noise of its training. `probe` is what the autoencoder whose latents
    it reads makes of `probe_picture`.
    """

    heads: Mapping[str, Mapping[str, tuple[str, ...]]]
    channels: int = 4
    widths: tuple[int, ...] = (40, 80, 112)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    probe: tuple[float, ...] = ()

    def schedule(self) -> NoiseSchedule:
        """Its times and their noise."""
        return NoiseSchedule.from_config(sampler_by_name("ddpm").resolve(self.scheduler))


class LatentClassifier(nn.Module):
    """Latents x_t (B, h, w, C) at times t (B,) -> for each attribute the logits (B, options) of its options."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        widths = config.widths
        time = 2 * widths[0]
        self.time = TimestepEmbedding(widths[0], time, "silu")
        self.conv_in = Conv2d(config.channels, widths[0])
        self.blocks = [
            ResnetBlock(a, b, GROUPS, 1e-5, time_channels=time)
            for a, b in zip((widths[0], *widths[:-1]), widths, strict=True)
        ]
        self.halve = [Downsample(width, padding=1) for width in widths[:-1]]
        self.norm_out = GroupNorm(GROUPS, widths[-1], 1e-5, "silu")
        self.heads = {name: nn.Linear(2 * widths[-1], len(options)) for name, options in config.heads.items()}
        self.config = config

    def __call__(self, x: mx.array, t: mx.array) -> dict[str, mx.array]:
        time = sinusoidal_embedding(t, self.config.widths[0], flip_sin_to_cos=False, freq_shift=0)
        time = nn.silu(self.time(time.astype(x.dtype)))
        x = self.conv_in(x)
        for level, block in enumerate(self.blocks):
            x = block(x, time)
            if level < len(self.halve):
                x = self.halve[level](x)
        x = self.norm_out(x)
        features = mx.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        return {name: head(features).astype(mx.float32) for name, head in self.heads.items()}


def named_in(text: str, heads: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, str]:
    """The options that a text names, by attribute; of several of one attribute the first.

    Longer words are looked for first, so that "green hills" are a place and nothing green.
    """
    words = [(word, name, option) for name, each in heads.items() for option, own in each.items() for word in own]
    found: dict[str, tuple[int, str]] = {}
    text = text.casefold()
    for word, name, option in sorted(words, key=lambda each: -len(each[0])):
        for match in re.finditer(rf"\b{re.escape(word.casefold())}\b", text):
            place = match.start()
            if name not in found or place < found[name][0]:
                found[name] = place, option
            text = text[:place] + " " * len(word) + text[match.end() :]
    return {name: found[name][1] for name in heads if name in found}


def save(model: LatentClassifier, folder: Path) -> None:
    """Write a model to a folder: its configuration, and the weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    values = asdict(model.config)
    values["scheduler"] = {k: v for k, v in values["scheduler"].items() if v is not None}
    atomic.write_whole(folder / CONFIG, json.dumps(values, indent=2) + "\n")
    tensors = {name: value.astype(mx.float16) for name, value in dict(tree_flatten(model.parameters())).items()}
    with atomic.written(folder / WEIGHTS) as temporary:
        mx.save_safetensors(str(temporary), tensors)


def load(folder: Path = FOLDER) -> LatentClassifier:
    """Read what `save` wrote, in float32, by default the classifier that comes along.

    Raises `CheckpointNotFoundError` where there is nothing, and `CheckpointError` for files of another kind.
    """
    model = LatentClassifier(load_config(folder))
    try:
        tensors: Any = mx.load(str(folder / WEIGHTS))
    except RuntimeError as error:
        raise CheckpointError(f"{str(folder / WEIGHTS)!r} cannot be read ({error}).") from None
    wanted = {name: value.shape for name, value in dict(tree_flatten(model.parameters())).items()}
    if {name: value.shape for name, value in tensors.items()} != wanted:
        raise CheckpointError(f"{str(folder / WEIGHTS)!r} does not fit the {CONFIG} next to it.")
    model.update(tree_unflatten([(name, value.astype(mx.float32)) for name, value in tensors.items()]))
    mx.eval(model.parameters())
    return model


def load_config(folder: Path = FOLDER) -> ClassifierConfig:
    """The configuration alone. Raises as `load` does."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointNotFoundError(
            f"There is no model of `train classifier` at {str(folder)!r}: it would have {CONFIG} and {WEIGHTS}."
        )
    path = folder / CONFIG
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        return ClassifierConfig(
            heads={
                name: {option: tuple(words) for option, words in options.items()}
                for name, options in values["heads"].items()
            },
            channels=values["channels"],
            widths=tuple(values["widths"]),
            scheduler=SchedulerConfig.from_dict(values["scheduler"], str(path)),
            probe=tuple(values["probe"]),
        )
    except StableDiffusionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(path)!r} is not the configuration of a classifier ({error}).") from None


def probe_picture(side: int = 128) -> np.ndarray:
    """A picture by whose latents autoencoders are told apart: slopes of colour, (side, side, 3) in [-1, 1]."""
    slope = np.linspace(-1, 1, side, dtype=np.float32)
    across, down = np.meshgrid(slope, slope)
    return np.stack([across, down, across * down], axis=-1)


def probe_of(latents: np.ndarray) -> tuple[float, ...]:
    """The means of the four quarters of latents (h, w, C), 4 C numbers."""
    height, width = latents.shape[0] // 2, latents.shape[1] // 2
    quarters = [latents[i : i + height, j : j + width].mean((0, 1)) for i in (0, height) for j in (0, width)]
    return tuple(round(float(value), 3) for value in np.concatenate(quarters))
