"""Which family a LoRA was made for, as the header of its file shows: by its keys, its shapes, its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .. import families
from ..families import FAMILIES
from . import file_keys

Shape = tuple[int, ...]

# The width of the text that attn2 reads.
TEXT_WIDTHS = {family.text_width: family.title for family in FAMILIES.values()}
# Tell-tale keys of other architectures; the first match counts.
ARCHITECTURES = (
    (r"double_blocks|single_blocks|single_transformer_blocks", "FLUX"),
    (r"joint_blocks|^(lora_te3_|text_encoder_3\.)|^(lora_)?transformer[._]transformer_blocks", "Stable Diffusion 3"),
    (
        r"^(lora_)?transformer[._]|^diffusion_model\.(blocks|layers)\.|^lora_unet_(blocks|layers)_\d",
        "another architecture",
    ),
    (r"^lora_prior_|^lora_(stage_[bc]|prior)_", "Stable Cascade or Kandinsky"),
    (r"^(lora_te2_|text_encoder_2\.)", families.SDXL.title),
)
# Base models in trainers' metadata, by prefix.
BASE_MODELS = {
    **{base: family.title for family in FAMILIES.values() for base in family.lora_bases},
    "stable-diffusion-v3": "Stable Diffusion 3",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
}
# The parts whose second axes, multiplied, are a layer's inputs; the first set that is complete counts.
INPUTS = (
    ("down",),
    ("hada_w1_b",),
    ("lokr_w1", "lokr_w2"),
    ("lokr_w1", "lokr_w2_b"),
    ("lokr_w1_b", "lokr_w2"),
    ("lokr_w1_b", "lokr_w2_b"),
    ("diff",),
)


def family_of(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> str:
    """The title of the family or architecture ("SD 1.x", "FLUX"), or "" where nothing shows it."""
    return by_keys(shapes) or TEXT_WIDTHS.get(text_width(shapes) or 0, "") or by_metadata(metadata)


def by_keys(keys: Iterable[str]) -> str:
    """The architecture that keys give away, or ""."""
    keys = list(keys)
    return next((title for pattern, title in ARCHITECTURES if any(re.search(pattern, key) for key in keys)), "")


def text_width(shapes: Mapping[str, Shape]) -> int | None:
    """The width of the text that the changed U-Net attends to; None if no such layer is changed."""
    layers: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        part = file_keys.parse(key)
        if part and part.flat.endswith("attn2_to_k") and len(shape) > 1:
            layers.setdefault(part.flat, {})[part.part] = shape
    for parts in layers.values():
        for names in INPUTS:
            if parts.keys() >= set(names):
                width = 1
                for name in names:
                    width *= parts[name][1]
                return width
    return None


def by_metadata(metadata: Mapping[str, str]) -> str:
    """The base model that a trainer has noted down, or ""."""
    base = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    return next((title for start, title in BASE_MODELS.items() if base.startswith(start)), "")
