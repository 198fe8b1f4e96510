"""What a picture's parameters say beyond A1111's own fields, so that the same picture can be made again.

Each key that changes the picture has its name here. A1111's names are kept where it has one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model_io import hashes
from ..text.blend import Frame
from ..text.prompt import A1111, Blend
from .used import Used

PRECISION, VERSION = "Precision", "Version"
BITS, PREDICTION_TYPE = "Bits", "Prediction type"
VAE, VAE_HASH = "VAE", "VAE hash"
LORA, LORA_HASHES, EMBEDDING_HASHES = "LoRA", "Lora hashes", "TI hashes"
CLIP_SKIP, PROMPT_LANGUAGE = "Clip skip", "Prompt language"
CFG_RESCALE = "CFG Rescale"
RESIZE_MODE = "Resize mode"
VARIATION_SEED, VARIATION_STRENGTH = "Variation seed", "Variation seed strength"
BATCH_SIZE, BATCH_POSITION = "Batch size", "Batch pos"
MASK_BLUR, MASK_MODE, MASKED_CONTENT = "Mask blur", "Mask mode", "Masked content"
INPAINT_AREA, MASKED_PADDING = "Inpaint area", "Masked area padding"
OUTPAINT = {side: f"Outpaint {side}" for side in ("left", "right", "top", "bottom")}
BLEND_PROMPT, BLEND_SEED, BLEND_SHARE = "Blend prompt", "Blend seed", "Blend share"
BLEND_FRAMES, BLEND_FPS = "Blend frames", "Blend fps"

_CONTENTS = {"original": "original", "noise": "latent noise", "fill": "fill"}
_WHOLE_PICTURE, _ONLY_MASKED, _NOT_MASKED = "Whole picture", "Only masked", "Inpaint not masked"


def of_used(used: Used) -> dict[str, str]:
    """What the engine said when the generation began."""
    extra = {}
    if used.loras:
        extra[LORA] = ", ".join(f"{name}:{plain(strength.unet)}" for name, strength in used.loras)
    for key, hashed in ((LORA_HASHES, used.lora_hashes), (EMBEDDING_HASHES, used.embedding_hashes)):
        if hashed:
            extra[key] = ", ".join(f"{name}: {digits}" for name, digits in hashed.items())
    return extra | {PRECISION: used.precision, VERSION: used.version}


def of_asked(
    bits: int | None = None, prediction_type: str | None = None, vae: str | os.PathLike | None = None
) -> dict[str, str]:
    """How the model was asked to be loaded, where that is not its own way."""
    extra = {} if bits is None else {BITS: str(bits)}
    if prediction_type is not None:
        extra[PREDICTION_TYPE] = prediction_type
    return extra | ({} if vae is None else _of_vae(os.fspath(vae)))


def of_language(prompt_language: str) -> dict[str, str]:
    """How the texts were read, where that is not A1111's way."""
    return {} if prompt_language == A1111 else {PROMPT_LANGUAGE: prompt_language}


def of_rescale(guidance_rescale: float) -> dict[str, str]:
    """How much of the guidance's contrast was taken back, where any was."""
    return {CFG_RESCALE: plain(guidance_rescale)} if guidance_rescale else {}


def of_variation(seed: int, strength: float) -> dict[str, str]:
    """One picture's variation seed; nothing where it counts for nothing."""
    return {VARIATION_SEED: str(seed), VARIATION_STRENGTH: plain(strength)} if strength else {}


def of_frame(frame: Frame) -> dict[str, str]:
    """What makes one picture of a blend; its first prompt is the picture's prompt."""
    said = {}
    if isinstance(frame.text, Blend):
        said = {BLEND_PROMPT: frame.end, BLEND_SHARE: plain(frame.share)}
    return said | ({} if frame.to_seed is None else of_variation(frame.to_seed, frame.share))


def of_blend(frame: Frame, fps: float) -> dict[str, str]:
    """What makes the strip or the film of a blend, told of any of its frames."""
    said = {BLEND_PROMPT: frame.end, BLEND_FRAMES: str(frame.total), BLEND_FPS: plain(fps)}
    return said if frame.to_seed is None else said | {BLEND_SEED: str(frame.to_seed)}


def of_fit(how: str) -> dict[str, str]:
    """How an input picture came to its size, one of `picture.FITS`; cropping, which is usual, goes without saying."""
    return {} if how == "crop" else {RESIZE_MODE: how}


def of_batch(size: int, position: int) -> dict[str, str]:
    """The place in a batch: a product of matrices rounds by their size, so the last bit may be the batch's."""
    return {BATCH_SIZE: str(size), BATCH_POSITION: str(position)} if size > 1 else {}


def of_inpainting(
    masked_content: str, mask_blur: float, only_masked: bool = False, padding: int = 32, invert: bool = False
) -> dict[str, str]:
    """How a mask was used, in A1111's words; the mask itself is recorded as a file is."""
    area = {INPAINT_AREA: _ONLY_MASKED, MASKED_PADDING: str(padding)} if only_masked else {INPAINT_AREA: _WHOLE_PICTURE}
    mode = {MASK_MODE: _NOT_MASKED} if invert else {}
    return {MASK_BLUR: plain(mask_blur), MASKED_CONTENT: _CONTENTS[masked_content]} | area | mode


def of_outpainting(**added: int) -> dict[str, str]:
    """The pixels that were added at each side (left, right, top, bottom)."""
    return {key: str(added[side]) for side, key in OUTPAINT.items() if added.get(side)}


def read_inpainting(extra: Mapping[str, str]) -> dict[str, Any]:
    """What `of_inpainting` was told, or {} where no mask was used; A1111's defaults for what is not said or not known.

    A1111 leaves out what is its default, and always says the blur.
    """
    if not any(key in extra for key in (MASK_BLUR, MASKED_CONTENT, INPAINT_AREA)):
        return {}
    contents = {words: content for content, words in _CONTENTS.items()}
    return {
        "masked_content": contents.get(extra.get(MASKED_CONTENT, ""), "original"),
        "mask_blur": _number(extra.get(MASK_BLUR), 4),
        "only_masked": extra.get(INPAINT_AREA) == _ONLY_MASKED,
        "padding": int(_number(extra.get(MASKED_PADDING), 32)),
        "invert": extra.get(MASK_MODE) == _NOT_MASKED,
    }


def _number(text: str | None, default: float) -> float:
    try:
        value = float(text or default)
    except ValueError:
        return default
    return value if 0 <= value < 10**6 else default


def plain(value: float) -> str:
    """A number with every digit that it has, and no more."""
    return str(int(value) if float(value).is_integer() else float(value))


def _of_vae(vae: str) -> dict[str, str]:
    path = Path(vae).expanduser()
    if not path.exists():
        return {VAE: vae}  # an id of the hub
    return {VAE: path.resolve().name} | ({VAE_HASH: hashes.short_hash(path)} if path.is_file() else {})
