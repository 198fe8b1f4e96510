"""LoRA tags in prompts: `a house <lora:watercolour:0.8>`. Needs no MLX."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import InputError

TAG = re.compile(r"<(?:lora|lyco|hypernet):([^>]*)>", re.IGNORECASE)
HYPERNETWORK = "<hypernet:"


@dataclass(frozen=True)
class Strength:
    """An adapter's strength in the U-Net and in the text encoders; 1 is as trained."""

    unet: float = 1.0
    text: float = 1.0


def take_tags(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The prompt without its tags, and the tags as typed."""
    return TAG.sub("", prompt), tuple(match[0] for match in TAG.finditer(prompt))


def read_tag(tag: str) -> tuple[str, Strength]:
    """A tag's LoRA and strength.

    The form is A1111's: `<lora:name>`, `<lora:name:0.8>`, `<lora:name:TEXT:UNET>`, `<lora:name:te=0.5:unet=1>`. Raises
    `InputError` for a tag without a name, or with a strength that is not a number, and for `<hypernet:name>`.
    """
    if tag.lower().startswith(HYPERNETWORK):
        raise InputError(f"{tag!r} names a hypernetwork, which is not supported: take it out of the prompt.")
    items = [item.strip() for item in tag[:-1].split(":")[1:]]
    named = dict(item.split("=", 1) for item in items[1:] if "=" in item)
    plain = [item for item in items if "=" not in item] if "=" not in items[0] else [items[0], *items[1:]]
    if not items[0] or len(plain) > 3 or named.keys() - {"te", "unet"}:
        raise InputError(f"The tag {tag!r} should be like <lora:name:0.8>.")
    text = named.get("te", plain[1] if len(plain) > 1 else "1")
    unet = named.get("unet", plain[2] if len(plain) > 2 else text)
    return items[0], Strength(unet=_number(tag, unet), text=_number(tag, text))


def _number(tag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"The strength {text!r} in {tag!r} should be a number, as in <lora:name:0.8>.")
    return value
