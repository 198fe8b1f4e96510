"""Stable Diffusion for MLX: text to image and image to image, in agreement with diffusers.

from stable_diffusion import StableDiffusion

sd = StableDiffusion("postcards-tiny")
for step in sd.generate_latents("a red house on green hills at sunset"):
    print(step.index, step.total)
pictures = sd.decode(step.latents)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import GenerationStep, StableDiffusion
    from .sampler import SimpleEulerSampler, sampler_by_name
    from .text.prompt import Blend

__version__ = "0.1.0"

# Resolved when first used, so that errors, configurations and `--help` cost no import of MLX.
_HOMES = {
    "Blend": ".text.prompt",
    "GenerationStep": ".pipeline",
    "StableDiffusion": ".pipeline",
    "SimpleEulerSampler": ".sampler",
    "sampler_by_name": ".sampler",
}

__all__ = ["Blend", "GenerationStep", "SimpleEulerSampler", "StableDiffusion", "sampler_by_name"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
