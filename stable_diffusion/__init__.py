"""Stable Diffusion for MLX: text to image and image to image, in agreement with diffusers.

from stable_diffusion import StableDiffusion

sd = StableDiffusion("postcards-tiny")
(picture,) = sd.generate("a red house on green hills at sunset")
picture.save("house.png")

for step in sd.generate_latents("a red house on green hills at sunset"):  # step by step
    print(step.index, step.total)
pictures = sd.decode(step.latents)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import AttentionMaps, PictureMaps
    from .diffusion.guiding import Guidance
    from .errors import (
        BackendError,
        CheckpointError,
        CheckpointNotFoundError,
        ConfigError,
        DownloadError,
        InputError,
        NotFiniteError,
        PictureError,
        SamplerError,
        StableDiffusionError,
        TokenizerError,
        TrainingError,
        UnsupportedCheckpointError,
        WeightsError,
    )
    from .generation import GeneratedPicture, Generation, GenerationStep
    from .hires import Hires
    from .pictures.inpainting import Inpainting, outpaint
    from .pictures.reading import open_picture
    from .pipeline import StableDiffusion
    from .prompt_edit import PromptEdit
    from .sampler import SimpleEulerSampler, sampler_by_name, samplers
    from .steering import Steering
    from .text.prompt import Blend

__version__ = "0.1.0"

# Imported on first use: errors, configurations and `--help` do not need MLX.
_HOMES = {
    "AttentionMaps": ".attention",
    "BackendError": ".errors",
    "Blend": ".text.prompt",
    "CheckpointError": ".errors",
    "CheckpointNotFoundError": ".errors",
    "ConfigError": ".errors",
    "DownloadError": ".errors",
    "GeneratedPicture": ".generation",
    "Generation": ".generation",
    "GenerationStep": ".generation",
    "Guidance": ".diffusion.guiding",
    "Hires": ".hires",
    "Inpainting": ".pictures.inpainting",
    "InputError": ".errors",
    "NotFiniteError": ".errors",
    "PictureError": ".errors",
    "PictureMaps": ".attention",
    "PromptEdit": ".prompt_edit",
    "SamplerError": ".errors",
    "SimpleEulerSampler": ".sampler",
    "StableDiffusion": ".pipeline",
    "StableDiffusionError": ".errors",
    "Steering": ".steering",
    "TokenizerError": ".errors",
    "TrainingError": ".errors",
    "UnsupportedCheckpointError": ".errors",
    "WeightsError": ".errors",
    "open_picture": ".pictures.reading",
    "outpaint": ".pictures.inpainting",
    "sampler_by_name": ".sampler",
    "samplers": ".sampler",
}

__all__ = [
    "AttentionMaps",
    "BackendError",
    "Blend",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigError",
    "DownloadError",
    "GeneratedPicture",
    "Generation",
    "GenerationStep",
    "Guidance",
    "Hires",
    "Inpainting",
    "InputError",
    "NotFiniteError",
    "PictureError",
    "PictureMaps",
    "PromptEdit",
    "SamplerError",
    "SimpleEulerSampler",
    "StableDiffusion",
    "StableDiffusionError",
    "Steering",
    "TokenizerError",
    "TrainingError",
    "UnsupportedCheckpointError",
    "WeightsError",
    "open_picture",
    "outpaint",
    "sampler_by_name",
    "samplers",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
