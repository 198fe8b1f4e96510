"""One row per model family, with everything that differs between families. No other file compares family names.

A new family needs a row here, a table in model_io/names.py, and its networks. Needs no MLX.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

CLIP, OPEN_CLIP = "clip", "open_clip"  # a text encoder's names in a single file: transformers' or OpenCLIP's

# Latents to colours without the VAE: a matrix of latent channels by R, G, B, then the bias; results lie in [-1, 1].
Colours = tuple[tuple[tuple[float, ...], ...], tuple[float, float, float]]


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder of a family."""

    prefix: str  # of its keys in a single file
    width: int  # of its hidden states, and of an embedding's vectors
    kind: str = CLIP  # the network, and its names in the files that are written
    pad_token: str = "<|endoftext|>"
    part: str = "text_encoder"  # its folder in diffusers' form


@dataclass(frozen=True)
class Family:
    """Everything known about a family. The defaults suit an unknown one."""

    key: str
    title: str = ""  # as lists and messages have it
    long_title: str = ""

    # Defaults for a checkpoint without its own.
    side: int = 512  # pixels
    cfg: float = 7.5
    strength: float = 0.7  # denoising strength
    downscale: int = 8  # pixels to a latent, along each side

    # Text.
    text_encoders: tuple[TextEncoder, ...] = ()
    pooled: bool = False  # the U-Net also takes the last encoder's pooled vector and the picture's sizes
    refines: bool = False  # made for a generation's last steps: of the sizes a score takes the target's place
    zeros_for_empty_prompt: bool = (
        False  # for a missing negative prompt, instead of encoding it; a folder may override it
    )
    embedding_keys: tuple[tuple[str, ...], ...] = ()  # of each encoder's vectors in an embedding's file, by maker

    # The U-Net of a single file, where tensor shapes do not determine it.
    latent_side: int = 64  # that it was trained on
    latent_side_of_eps: int | None = None  # for models that predict eps, if it differs
    heads: int | None = None  # of every attention; None: one per 64 channels
    linear_projection: bool = True
    upcast_attention: bool = False
    marks_v: bool = True  # v prediction is marked by a key in the file; otherwise the weights decide

    # The autoencoder.
    scaling_factor: float = 0.18215
    latent_channels: int = 4
    float32_vae: bool = False  # honours force_upcast, as the reference: runs in float32 even if the rest is float16
    tiny_vae: str = ""  # TAESD for these latents, on the hub
    colours: Colours | None = None

    # The schedule.
    steps_offset: int | None = None  # overrides the files, as the reference does; None: as in the file
    schedule: Mapping[str, Any] = field(default_factory=dict)  # further scheduler_config.json keys for single files
    aligned_sigmas: tuple[float, ...] | None = None  # for Align Your Steps; None: Stable Diffusion 1.5's

    # Folders in diffusers' form: a regular expression for the pipeline classes that are read, then what is written.
    pipelines: str = r"(?!)"
    pipeline: str = ""
    scheduler: str = ""
    lcm_pipeline: str = ""  # for a U-Net that takes the guidance weight as an input
    lcm_scheduler: str = ""
    empty_parts: tuple[str, ...] = ()

    # Names used elsewhere.
    architecture: str = ""  # in modelspec metadata
    lora_bases: tuple[str, ...] = ()  # prefixes of the base model in a LoRA's metadata
    lora_base: str = ""  # as kohya's scripts write it there

    @property
    def text_width(self) -> int:
        """The width of what the U-Net attends to: the encoders' hidden states, joined."""
        return sum(encoder.width for encoder in self.text_encoders)

    @property
    def encoders(self) -> dict[str, TextEncoder]:
        """The text encoders by the names of their folders."""
        return {each.part: each for each in self.text_encoders}

    @property
    def time_ids(self) -> int:
        """How many numbers about the picture the U-Net takes beside the pooled vector.

        Height, width, the crop's top and left, then the target's height and width, or an aesthetic score.
        """
        return 5 if self.refines else 6


# Colours: the constants of InvokeAI (Apache-2.0), invokeai/app/util/step_callback.py, there credited to @keturn and
# @torridgristle (SD 1.x, whose latents are SD 2.x's too) and @StAlKeR7779 (SDXL).
_SD1_COLOURS = (
    ((0.3444, 0.1385, 0.0670), (0.1247, 0.4027, 0.1494), (-0.3192, 0.2513, 0.2103), (-0.1307, -0.1874, -0.7445)),
    (0.0, 0.0, 0.0),
)
_SDXL_COLOURS = (
    ((0.3816, 0.4930, 0.5320), (-0.3753, 0.1631, 0.1739), (0.1770, 0.3588, -0.2048), (-0.4350, -0.2644, -0.4289)),
    (0.0, 0.0, 0.0),
)
_FIRST: dict[str, Any] = {
    "tiny_vae": "madebyollin/taesd",
    "colours": _SD1_COLOURS,
    "steps_offset": 1,
    "pipelines": r"StableDiffusion(Img2Img|Inpaint|)Pipeline|LatentConsistency.*",
    "pipeline": "StableDiffusion",
    "scheduler": "DDIMScheduler",
    "lcm_pipeline": "LatentConsistencyModel",
    "lcm_scheduler": "LCMScheduler",
    "empty_parts": ("safety_checker", "feature_extractor", "image_encoder"),
}  # what SD 1.x and 2.x have in common

SD1 = Family(
    "sd1",
    "SD 1.x",
    "Stable Diffusion 1.x",
    text_encoders=(TextEncoder("cond_stage_model.transformer.", 768),),
    heads=8,
    linear_projection=False,
    architecture="stable-diffusion-v1",
    lora_bases=("sd_v1", "stable-diffusion-v1"),
    lora_base="sd_v1",
    **_FIRST,
)
SD2 = Family(
    "sd2",
    "SD 2.x",
    "Stable Diffusion 2.x",
    text_encoders=(TextEncoder("cond_stage_model.model.", 1024, OPEN_CLIP, "!"),),
    latent_side=96,
    latent_side_of_eps=64,
    upcast_attention=True,
    marks_v=False,
    architecture="stable-diffusion-v2",
    lora_bases=("sd_v2", "stable-diffusion-v2"),
    lora_base="sd_v2",
    **_FIRST,
)
_XL: dict[str, Any] = {
    "side": 1024,
    "cfg": 7.0,
    "pooled": True,
    "latent_side": 128,
    "scaling_factor": 0.13025,
    "float32_vae": True,
    "tiny_vae": "madebyollin/taesdxl",
    "colours": _SDXL_COLOURS,
    "schedule": {"timestep_spacing": "leading", "interpolation_type": "linear", "use_karras_sigmas": False},
    # Align Your Steps: Sabour et al. 2024, arXiv:2404.14507
    "aligned_sigmas": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "scheduler": "EulerDiscreteScheduler",
    "lcm_scheduler": "EulerDiscreteScheduler",
}  # what SDXL and its refiner have in common

SDXL = Family(
    "sdxl",
    "SDXL",
    "Stable Diffusion XL",
    text_encoders=(
        TextEncoder("conditioner.embedders.0.transformer.", 768),
        TextEncoder("conditioner.embedders.1.model.", 1280, OPEN_CLIP, "!", "text_encoder_2"),
    ),
    zeros_for_empty_prompt=True,
    # kohya's and A1111's, then those of diffusers' advanced training.
    embedding_keys=(("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")),
    pipelines=r"StableDiffusionXL.*",
    pipeline="StableDiffusionXL",
    lcm_pipeline="StableDiffusionXL",
    architecture="stable-diffusion-xl-v1-base",
    lora_bases=("sdxl", "stable-diffusion-xl"),
    lora_base="sdxl_base_v1-0",
    **_XL,
)
# Its only text encoder is SDXL's second, in the first one's place in single files.
SDXL_REFINER = Family(
    "sdxl_refiner",
    "SDXL refiner",
    "Stable Diffusion XL, refiner",
    strength=0.3,
    refines=True,
    text_encoders=(TextEncoder("conditioner.embedders.0.model.", 1280, OPEN_CLIP, "!", "text_encoder_2"),),
    embedding_keys=(("clip_g",), ("text_encoders_1",)),
    pipelines=r"StableDiffusionXLImg2ImgPipeline",
    pipeline="StableDiffusionXLImg2Img",
    lcm_pipeline="StableDiffusionXLImg2Img",
    architecture="stable-diffusion-xl-v1-refiner",
    **_XL,
)
FAMILIES: dict[str, Family] = {family.key: family for family in (SD1, SD2, SDXL, SDXL_REFINER)}
IN_NAMES = ("sdxl", "xl", "sd", "sdv")  # words for families in the names of files
IN_WORDS = "Stable Diffusion 1.x, 2.x, XL and its refiner"  # for messages

# By family, or by name for a model with its own latent space (least squares, benchmarks/fit_latent_rgb.py).
RGB_FACTORS: dict[str, Colours] = {
    **{key: family.colours for key, family in FAMILIES.items() if family.colours},
    "postcards-tiny": (
        ((0.2136, 0.1851, 0.2926), (-0.3970, -0.1402, 0.0749), (0.1615, 0.2139, 0.4853), (0.1241, -0.0916, 0.1696)),
        (0.0848, 0.0021, 0.1259),
    ),
}


def get(key: str) -> Family:
    """The row of a family; an unknown key, such as "", gets a row of defaults."""
    return FAMILIES.get(key) or Family(key, key, key)


def of_width(text_width: int) -> Family | None:
    """The family whose U-Net attends to text of this width."""
    return next((family for family in FAMILIES.values() if family.text_width == text_width), None)


def of_text_encoder(kind: str, pooled: bool) -> Family | None:
    """The family whose first text encoder is of a kind, for text widths that are no family's."""
    return next((row for row in FAMILIES.values() if (row.text_encoders[0].kind, row.pooled) == (kind, pooled)), None)


def of_network(text_width: Any, pooled: bool, parts: Collection[str]) -> Family:
    """The family of a U-Net and of the folders of its text encoders.

    An unusual text width counts as the first family with the same `pooled` and, if there is one, the same `parts`.
    """
    found = [family for family in FAMILIES.values() if family.pooled == pooled]
    return _nearest([family for family in found if set(family.encoders) == set(parts)] or found, text_width)


def of_pipeline(name: str, text_width: Any) -> Family | None:
    """The family of a pipeline's class in diffusers; None for other classes."""
    found = [family for family in FAMILIES.values() if re.fullmatch(family.pipelines, name)]
    return _nearest(found, text_width) if found else None


def _nearest(families: list[Family], text_width: Any) -> Family:
    return next((family for family in families if family.text_width == text_width), families[0])
