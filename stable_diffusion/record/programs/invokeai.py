"""InvokeAI: JSON as the text `invokeai_metadata`, before version 3 as `sd-metadata`, first of all a line `Dream`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..parameters import Parameters
from . import values

_NAMES = {
    "prompt": "positive_prompt",
    "negative": "negative_prompt",
    "steps": "steps",
    "sampler": "scheduler",
    "cfg": "cfg_scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "strength": "strength",
}
_OLD_NAMES = {"steps": "steps", "sampler": "sampler", "cfg": "cfg_scale", "seed": "seed"}
_OLD_NAMES |= {"width": "width", "height": "height"}
_LETTERS = {"steps": "s", "seed": "S", "width": "W", "height": "H", "cfg": "C", "sampler": "A", "strength": "f"}


def read(texts: Mapping[str, str]) -> Parameters | None:
    """The parameters in it."""
    said = values.from_json(texts.get("invokeai_metadata"))
    if said is not None and "positive_prompt" in said:
        found = values.parameters(said, _NAMES)
        found.model = _model(said.get("model"))
        found.extra = values.loras(
            (_model(each.get("model") or each.get("lora")), each.get("weight")) for each in said.get("loras") or []
        )
        return found
    old = values.from_json(texts.get("sd-metadata")) or {}
    if isinstance(image := old.get("image"), dict):
        found = values.parameters(image, _OLD_NAMES)
        prompt = image["prompt"]
        _split(found, prompt if isinstance(prompt, str) else values.words([each["prompt"] for each in prompt]))
        found.model = values.model_name(old.get("model_weights"))
        return found
    return _dream(texts["Dream"]) if "Dream" in texts else None


def _dream(line: str) -> Parameters | None:
    """A line as its command line read it: "a prompt [and what to avoid]" -s 30 -S 4031 ..."""
    quoted = re.fullmatch(r'\s*"(.*)"((?:\s+-.*)?)', line, re.DOTALL)
    if quoted is None:
        return None
    found = values.parameters(dict(re.findall(r"\s-([A-Za-z])\s*(\S+)", quoted[2])), _LETTERS)
    _split(found, quoted[1])
    return found


def _split(found: Parameters, prompt: str) -> None:
    """Set prompt and negative prompt; the latter stands in square brackets within the former."""
    found.negative = ", ".join(re.findall(r"\[([^\[\]]*)\]", prompt))
    found.prompt = re.sub(r"\s*\[[^\[\]]*\]", "", prompt).strip()


def _model(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("name") or value.get("model_name") or value.get("key")
    return values.model_name(value)
