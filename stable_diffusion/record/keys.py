"""Keys of a record that belong to no setting: models used, batch position, blends. Does not import MLX.

The settings' own keys are next to their fields in request.py. Names follow A1111 where it has one.
"""

from __future__ import annotations

import re
from typing import Any

from .used import Used

PRECISION, VAE_PRECISION, VERSION = "Precision", "VAE precision", "Version"
VAE, VAE_HASH = "VAE", "VAE hash"
REFINER = "Refiner"  # "name [hash]", as in A1111
LORA, LORA_HASHES, EMBEDDING_HASHES = "LoRA", "Lora hashes", "TI hashes"
BATCH_SIZE, BATCH_POSITION = "Batch size", "Batch pos"
BLEND_PROMPT, BLEND_SEED, BLEND_SHARE = "Blend prompt", "Blend seed", "Blend share"
BLEND_FRAMES, BLEND_FPS = "Blend frames", "Blend fps"
STOPPED = "Stopped after"  # of a picture that was not finished: "12 of 20 steps"
VARIATION_SEED, VARIATION_STRENGTH = "Variation seed", "Variation seed strength"
NGMS, NGMS_ALL = "NGMS", "NGMS all steps"  # A1111's "negative guidance minimum sigma"; without ALL, every second step
TEMPLATE, NEGATIVE_TEMPLATE = "Template", "Negative Template"  # of dynamic prompts, as sd-dynamic-prompts has them
_PAIR = re.compile(r"(.+?): ?([^\s:,]+)(?:, *|$)")


def of_used(used: Used) -> dict[str, str]:
    """The entries for the models that the engine reported at the start."""
    extra = {}
    if used.vae is not None:
        extra[VAE] = used.vae
    if used.vae_hash is not None:
        extra[VAE_HASH] = used.vae_hash
    if used.refiner is not None:
        extra[REFINER] = used.refiner + (f" [{used.refiner_hash}]" if used.refiner_hash else "")
    if used.loras:
        extra[LORA] = ", ".join(f"{name}:{plain(strength.unet)}" for name, strength in used.loras)
    for key, hashed in ((LORA_HASHES, used.lora_hashes), (EMBEDDING_HASHES, used.embedding_hashes)):
        if hashed:
            extra[key] = ", ".join(f"{name}: {digits}" for name, digits in hashed.items())
    if used.vae_precision is not None:
        extra[VAE_PRECISION] = used.vae_precision
    return extra | {PRECISION: used.precision, VERSION: used.version}


def of_frame(frame: Any) -> dict[str, str]:
    """The entries for one picture of a blend, from its `text.blend.Frame`; the first prompt is the record's own."""
    said = {}
    if not isinstance(frame.text, str):
        said = {BLEND_PROMPT: frame.end, BLEND_SHARE: plain(frame.share)}
    if frame.to_seed is not None and frame.share:
        said |= {VARIATION_SEED: str(frame.to_seed), VARIATION_STRENGTH: plain(frame.share)}
    return said


def of_blend(frame: Any, fps: float) -> dict[str, str]:
    """The entries for the strip or film of a blend, from any of its frames."""
    said = {BLEND_PROMPT: frame.end, BLEND_FRAMES: str(frame.total), BLEND_FPS: plain(fps)}
    return said if frame.to_seed is None else said | {BLEND_SEED: str(frame.to_seed)}


def of_batch(size: int, position: int) -> dict[str, str]:
    """The batch and the position in it: rounding in matrix products depends on their size, so the last bit may too."""
    return {BATCH_SIZE: str(size), BATCH_POSITION: str(position)} if size > 1 else {}


def titled(text: str) -> tuple[str, str | None]:
    """The name and the hash of a model from "name [hash]", or the name alone."""
    found = re.fullmatch(r"(.*?) \[([0-9a-fA-F]{8,64})\]", text.strip(), re.DOTALL)
    return (found[1], found[2]) if found else (text.strip(), None)


def pairs(text: str) -> list[tuple[str, str]]:
    """What `of_used` writes, "name:value, other: value": names may have commas and colons in them."""
    return [(match[1].strip(), match[2]) for match in _PAIR.finditer(text)]


def plain(value: float) -> str:
    """A number in the shortest exact form."""
    return str(int(value) if float(value).is_integer() else float(value))
