"""Easy Diffusion: a PNG text per setting, or all of them as JSON in EXIF UserComment; two spellings of the keys."""

from __future__ import annotations

from collections.abc import Mapping

from ..parameters import Parameters
from . import values

_SPELLINGS = (
    {
        "prompt": "prompt",
        "negative": "negative_prompt",
        "steps": "num_inference_steps",
        "sampler": "sampler_name",
        "cfg": "guidance_scale",
        "seed": "seed",
        "width": "width",
        "height": "height",
        "model": "use_stable_diffusion_model",
    },
    {
        "prompt": "Prompt",
        "negative": "Negative Prompt",
        "steps": "Steps",
        "sampler": "Sampler",
        "cfg": "Guidance Scale",
        "seed": "Seed",
        "width": "Width",
        "height": "Height",
        "model": "Stable Diffusion model",
    },
)


def read(texts: Mapping[str, str]) -> Parameters | None:
    """The parameters in it."""
    for each in (*values.objects(texts), texts):
        for names in _SPELLINGS:
            if all(names[field] in each for field in ("prompt", "steps", "cfg")):
                found = values.parameters(each, names)
                files, strengths = each.get("use_lora_model") or [], each.get("lora_alpha") or []
                if isinstance(files, str):
                    files, strengths = [files], [strengths]
                found.extra = values.loras(zip(files, strengths, strict=False))
                return found
    return None
