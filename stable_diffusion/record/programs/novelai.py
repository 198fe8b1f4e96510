"""NovelAI: the prompt as the text `Description`, settings as JSON in `Comment`, the model's name in `Source`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..parameters import Parameters
from . import values

_NAMES = {
    "negative": "uc",
    "steps": "steps",
    "sampler": "sampler",
    "schedule": "noise_schedule",
    "cfg": "scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
}


def read(texts: Mapping[str, str]) -> Parameters | None:
    """The parameters in it."""
    said = values.from_json(texts.get("Comment"))
    if texts.get("Software") != "NovelAI" or said is None:
        return None
    found = values.parameters(said, _NAMES)
    found.prompt = "\n".join(filter(None, (texts.get("Description") or values.words(said.get("prompt")), *_more(said))))
    if "Img2Img" in values.words(said.get("request_type")):  # pictures from text have a strength too
        found.strength = values.number(said.get("strength"))
    source = re.fullmatch(r"(.*?) ([0-9A-F]{8})", texts.get("Source", ""))
    if source:
        found.model, found.model_hash = source[1], source[2].lower()
    return found


def _more(said: Mapping[str, Any]) -> list[str]:
    """The prompts of single characters, from version 4 on."""
    captions = ((said.get("v4_prompt") or {}).get("caption") or {}).get("char_captions") or []
    return [values.words(each.get("char_caption")) for each in captions]
