"""Keys of a record that belong to no setting: models used, batch position, blends. Does not import MLX.

The settings' own keys are next to their fields in request.py. Names follow A1111 where it has one.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .parameters import Parameters
from .used import Used

PRECISION, VAE_PRECISION, VERSION = "Precision", "VAE precision", "Version"
VAE, VAE_HASH = "VAE", "VAE hash"
REFINER = "Refiner"  # "name [hash]", as in A1111
LORA, LORA_HASHES, EMBEDDING_HASHES = "LoRA", "Lora hashes", "TI hashes"
BATCH_SIZE, BATCH_POSITION = "Batch size", "Batch pos"
BLEND_PROMPT, BLEND_SEED, BLEND_SHARE = "Blend prompt", "Blend seed", "Blend share"
BLEND_PROMPTS, BLEND_SEEDS = "Blend prompts", "Blend seeds"  # of a strip's stations after the first, if several
BLEND_FRAMES, BLEND_FPS = "Blend frames", "Blend fps"
BLEND_LOOP, BLEND_EASING, BLEND_STRENGTH = "Blend loop", "Blend easing", "Blend strength"
EDITED, IMAGIC = "Prompt-to-prompt", "Imagic amount"  # of the commands `edit` and `imagic`
STOPPED = "Stopped after"  # of a picture that was not finished: "12 of 20 steps"
VARIATION_SEED, VARIATION_STRENGTH = "Variation seed", "Variation seed strength"
VARIATION_OF_ALL = "Variation of all noise"
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


def of_walk(walk: Any, fps: float) -> dict[str, str]:
    """The entries for the strip or film of a `text.blend.Walk`; the first station is the record's own."""
    first, *others = walk.stations
    seeds = [each.seed for each in others]
    if len(others) == 1:
        said = {BLEND_PROMPT: others[0].prompt} | ({} if seeds == [first.seed] else {BLEND_SEED: str(seeds[0])})
    else:
        said = {
            BLEND_PROMPTS: json.dumps([each.prompt for each in others], ensure_ascii=False),
            BLEND_SEEDS: ", ".join(map(str, seeds)),
        }
    said |= {BLEND_FRAMES: str(walk.n_frames), BLEND_FPS: plain(fps)}
    said |= {BLEND_LOOP: str(True)} if walk.loop else {}
    said |= {BLEND_EASING: walk.easing} if walk.easing != "linear" else {}
    return said if walk.strengths is None else said | {BLEND_STRENGTH: plain(walk.strengths[1])}


def same_picture(one: Parameters, other: Parameters) -> bool:
    """Whether two records are of the same picture, of which one may not have been decoded yet."""
    told = [{key: text for key, text in each.extra.items() if key != VAE_PRECISION} for each in (one, other)]
    return told[0] == told[1] and dataclasses.replace(one, extra={}) == dataclasses.replace(other, extra={})


def stations(extra: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The prompts and the seeds of a strip's stations after the first, as `of_walk` writes them.

    Raises `InputError` for what that did not write.
    """
    if BLEND_PROMPTS not in extra:
        return [extra[key] for key in (BLEND_PROMPT,) if key in extra], [
            extra[key] for key in (BLEND_SEED,) if key in extra
        ]
    try:
        prompts = json.loads(extra[BLEND_PROMPTS])
    except ValueError:
        prompts = None
    if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
        raise InputError(f"{BLEND_PROMPTS} {extra[BLEND_PROMPTS][:80]!r} should be a list of texts.")
    return prompts, [each.strip() for each in extra.get(BLEND_SEEDS, "").split(",") if each.strip()]


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
