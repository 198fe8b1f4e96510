"""Keys of a picture's parameters that no setting has: what was used, a place in a batch, a blend. Needs no MLX.

The settings' own keys stand beside their fields in request.py. A1111's names are kept where it has one.
"""

from __future__ import annotations

import re
from typing import Any

from .used import Used

PRECISION, VERSION = "Precision", "Version"
VAE, VAE_HASH = "VAE", "VAE hash"
LORA, LORA_HASHES, EMBEDDING_HASHES = "LoRA", "Lora hashes", "TI hashes"
BATCH_SIZE, BATCH_POSITION = "Batch size", "Batch pos"
BLEND_PROMPT, BLEND_SEED, BLEND_SHARE = "Blend prompt", "Blend seed", "Blend share"
BLEND_FRAMES, BLEND_FPS = "Blend frames", "Blend fps"
STOPPED = "Stopped after"  # of a picture that was not finished: "12 of 20 steps"
VARIATION_SEED, VARIATION_STRENGTH = "Variation seed", "Variation seed strength"
_PAIR = re.compile(r"(.+?): ?([^\s:,]+)(?:, *|$)")


def of_used(used: Used) -> dict[str, str]:
    """What the engine said when the generation began."""
    extra = {}
    if used.vae is not None:
        extra[VAE] = used.vae
    if used.vae_hash is not None:
        extra[VAE_HASH] = used.vae_hash
    if used.loras:
        extra[LORA] = ", ".join(f"{name}:{plain(strength.unet)}" for name, strength in used.loras)
    for key, hashed in ((LORA_HASHES, used.lora_hashes), (EMBEDDING_HASHES, used.embedding_hashes)):
        if hashed:
            extra[key] = ", ".join(f"{name}: {digits}" for name, digits in hashed.items())
    return extra | {PRECISION: used.precision, VERSION: used.version}


def of_frame(frame: Any) -> dict[str, str]:
    """What makes one picture of a blend, of its `text.blend.Frame`; its first prompt is the picture's prompt."""
    said = {}
    if not isinstance(frame.text, str):
        said = {BLEND_PROMPT: frame.end, BLEND_SHARE: plain(frame.share)}
    if frame.to_seed is not None and frame.share:
        said |= {VARIATION_SEED: str(frame.to_seed), VARIATION_STRENGTH: plain(frame.share)}
    return said


def of_blend(frame: Any, fps: float) -> dict[str, str]:
    """What makes the strip or the film of a blend, told of any of its frames."""
    said = {BLEND_PROMPT: frame.end, BLEND_FRAMES: str(frame.total), BLEND_FPS: plain(fps)}
    return said if frame.to_seed is None else said | {BLEND_SEED: str(frame.to_seed)}


def of_batch(size: int, position: int) -> dict[str, str]:
    """The place in a batch: matrix products round by their size, so the last bit may depend on the batch."""
    return {BATCH_SIZE: str(size), BATCH_POSITION: str(position)} if size > 1 else {}


def pairs(text: str) -> list[tuple[str, str]]:
    """What `of_used` writes, "name:value, other: value": names may have commas and colons in them."""
    return [(match[1].strip(), match[2]) for match in _PAIR.finditer(text)]


def plain(value: float) -> str:
    """A number with every digit that it has, and no more."""
    return str(int(value) if float(value).is_integer() else float(value))
