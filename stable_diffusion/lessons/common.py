"""What several lessons need: painting with the loaded model, and pictures for the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..diffusion.schedule import NoiseSchedule
from ..pictures import arrays
from ..pictures.reading import fit
from ..sampler import sampler_by_name
from ..service.preview import jpeg
from .lesson import Paper, Report, Values, Words

EXAMPLE = "a red house on green hills at sunset, with clouds"
OTHER = "a blue tent by the sea at night, with stars"
PROMPT = Words("prompt", "Prompt", EXAMPLE)
DDPM = Paper("Ho, Jain and Abbeel 2020, Denoising diffusion probabilistic models", "https://arxiv.org/abs/2006.11239")
DDIM = Paper("Song, Meng and Ermon 2021, Denoising diffusion implicit models", "https://arxiv.org/abs/2010.02502")
CFG = Paper("Ho and Salimans 2022, Classifier-free diffusion guidance", "https://arxiv.org/abs/2207.12598")
LDM = Paper(
    "Rombach et al. 2022, High-resolution image synthesis with latent diffusion models",
    "https://arxiv.org/abs/2112.10752",
)
CLIP = Paper(
    "Radford et al. 2021, Learning transferable visual models from natural language supervision",
    "https://arxiv.org/abs/2103.00020",
)
SCORE = Paper(
    "Song et al. 2021, Score-based generative modeling through stochastic differential equations",
    "https://arxiv.org/abs/2011.13456",
)


@dataclass(frozen=True)
class Settings:
    """How the loaded model paints in lessons: its own defaults, and few steps."""

    negative: str = ""
    steps: int = 20
    cfg: float = 5.0
    seed: int = 1
    sampler: str = "euler"


def settings_of(values: Values) -> Settings:
    """The settings that the page found for the chosen model."""
    return values.get("settings") or Settings()


def prompt_of(values: Values, key: str = "prompt", usual: str = EXAMPLE) -> str:
    """A typed text, or the example where the field is empty."""
    return str(values.get(key, "")).strip() or usual


def steps(model: Any, values: Values, **changes: Any) -> Any:
    """A generation with the lesson's prompt and settings; `changes` are arguments of `generate_latents`."""
    own = settings_of(values)
    arguments: dict[str, Any] = {
        "text": prompt_of(values),
        "negative_text": own.negative or None,
        "num_steps": own.steps,
        "cfg_weight": own.cfg,
        "seed": own.seed,
        "sampler": own.sampler,
    }
    return model.generate_latents(**(arguments | changes))


def run(model: Any, report: Report, values: Values, note: str = "", **changes: Any) -> Iterator[Any]:
    """The steps of a generation, each evaluated, so that a cancel takes effect at once; as `generate_latents`."""
    with closing(steps(model, values, **changes)) as generation:
        for step in generation:
            report(note or f"Step {step.index} of {step.total}", step.index / step.total)
            np.asarray(step.latents)
            yield step


def painted(model: Any, report: Report, values: Values, note: str, **changes: Any) -> Any:
    """The latents (1, h, w, C) of a finished generation."""
    *_, last = run(model, report, values, note, **changes)
    return last.latents


def picture_of(model: Any, latents: Any) -> np.ndarray:
    """Decode latents (1, h, w, C): (H, W, 3) in [0, 1]."""
    return np.asarray(model.decode(latents), dtype=np.float32)[0]


def decoded(model: Any, latents: Any) -> bytes:
    """Decode latents (1, h, w, C) to a small JPEG."""
    return jpeg(arrays.to_picture(picture_of(model, latents)))


def own_or_painted(model: Any, report: Report, values: Values) -> Image.Image:
    """The reader's picture at the model's size, or one that the model paints."""
    picture = values.get("picture")
    if picture is None:
        latents = painted(model, report, values, "Painting a picture to begin with")
        return arrays.to_picture(picture_of(model, latents))
    return fit(picture, *model.default_size)


def noise_schedule(model: Any) -> NoiseSchedule:
    """The noise that the model was trained with."""
    return NoiseSchedule.from_config(sampler_by_name("ddim").resolve(model.scheduler_config))
