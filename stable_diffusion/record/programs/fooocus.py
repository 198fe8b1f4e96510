"""Fooocus: JSON as the text `parameters` or `Comment`, or in EXIF UserComment. The prompt is that before its styles."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..parameters import Parameters
from . import values

_NAMES = {
    "prompt": "prompt",
    "negative": "negative_prompt",
    "steps": "steps",
    "sampler": "sampler",
    "schedule": "scheduler",
    "cfg": "guidance_scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "model": "base_model",
}


def read(texts: Mapping[str, str]) -> Parameters | None:
    """The parameters in it."""
    for each in values.objects(texts):
        if "prompt" in each and "base_model" in each:
            found = values.parameters(each, _NAMES)
            if size := re.search(r"(\d+)\D+(\d+)", values.words(each.get("resolution"))):
                found.width, found.height = int(size[1]), int(size[2])
            if re.fullmatch(r"[0-9a-f]{10}", hashed := values.words(each.get("base_model_hash"))):
                found.model_hash = hashed
            found.extra = values.loras((lora[0], lora[1]) for lora in each.get("loras") or [])
            return found
    return None
