"""SwarmUI: JSON with `sui_image_params`, as the text `parameters` or in EXIF UserComment."""

from __future__ import annotations

from collections.abc import Mapping

from ..parameters import Parameters
from . import values

_NAMES = {
    "prompt": "prompt",
    "negative": "negativeprompt",
    "steps": "steps",
    "sampler": "sampler",
    "schedule": "scheduler",
    "cfg": "cfgscale",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "model": "model",
}


def read(texts: Mapping[str, str]) -> Parameters | None:
    """The parameters in it."""
    for each in values.objects(texts):
        if "sui_image_params" in each:
            said = each["sui_image_params"]
            found = values.parameters(said, _NAMES)
            if "initimage" in said or "initimagecreativity" in said:
                found.strength = values.number(said.get("initimagecreativity"))
            names, strengths = said.get("loras") or [], said.get("loraweights") or []
            found.extra = values.loras(zip(names, strengths, strict=False))
            return found
    return None
