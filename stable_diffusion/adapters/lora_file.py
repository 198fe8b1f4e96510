"""Writing adapters as other programs read them: LoRAs with kohya's or diffusers' keys, and embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import atomic, families
from ..backend import mx
from ..model_io import names
from ..model_io.name_table import KERNEL, Names
from ..model_io.safetensors_file import write_safetensors
from ..unet import UNet
from . import file_keys
from .peft_config import HEADER_KEY

KOHYA, DIFFUSERS = FORMATS = ("kohya", "diffusers")
EMBEDDING = "emb_params"  # kohya's key of an embedding for one text encoder
# How kohya begins the keys of each component; the first text encoder's depends on whether there is a second.
STARTS = {file_keys.UNET: "lora_unet_", file_keys.TEXT: "lora_te_", file_keys.TEXT_2: "lora_te2_"}
FIRST_OF_TWO = "lora_te1_"


@dataclass(frozen=True)
class LearntLayer:
    """One layer's low-rank change as the modules here have it: up (O, r) and down (r, I) or (r, kH, kW, I)."""

    up: mx.array
    down: mx.array
    alpha: float


Learnt = Mapping[tuple[str, str], LearntLayer]  # by component, a name of file_keys, and path


def lora_tensors(layers: Learnt, unet: UNet, family: str, form: str) -> tuple[dict[str, mx.array], dict[str, str]]:
    """A file's tensors, float16, and what its header has to say for them to be read right."""
    write = _as_kohya if form == KOHYA else _as_diffusers
    tables = _tables(unet, family, form)
    tensors: dict[str, mx.array] = {}
    for (component, path), layer in sorted(layers.items()):
        place = tables[component].write(f"{path}.weight")
        down = layer.down.transpose(0, 3, 1, 2) if layer.down.ndim == 4 else layer.down
        up = layer.up
        if layer.down.ndim == 4 or place.form == KERNEL:
            down, up = down.reshape(*down.shape, *[1] * (4 - down.ndim)), up[:, :, None, None]
        module = place.theirs.removesuffix(".weight")
        two = len(families.get(family).text_encoders) > 1
        tensors |= write(component, module, two, {"up": up, "down": down}, layer.alpha)
    return tensors, {} if form == KOHYA else {HEADER_KEY: json.dumps(_peft_settings(layers, tables))}


def _tables(unet: UNet, family: str, form: str) -> dict[str, Names]:
    """The names of each component's layers: SDXL's U-Net has the original ones in kohya's files."""
    original = form == KOHYA and families.get(family).pooled
    table = names.original_unet(unet.config) if original else names.unet(unet.config)
    return {file_keys.UNET: table, file_keys.TEXT: names.TEXT_ENCODER, file_keys.TEXT_2: names.TEXT_ENCODER}


def _as_kohya(component: str, module: str, two: bool, parts: dict[str, mx.array], alpha: float) -> dict[str, mx.array]:
    start = FIRST_OF_TWO if two and component == file_keys.TEXT else STARTS[component]
    name = start + names.flat(module)
    return {
        f"{name}.lora_down.weight": parts["down"].astype(mx.float16),
        f"{name}.lora_up.weight": parts["up"].astype(mx.float16),
        f"{name}.alpha": mx.array(alpha, mx.float16),
    }


def _as_diffusers(
    component: str, module: str, two: bool, parts: dict[str, mx.array], alpha: float
) -> dict[str, mx.array]:
    name = f"{component}.{module}"
    return {
        f"{name}.lora_A.weight": parts["down"].astype(mx.float16),
        f"{name}.lora_B.weight": parts["up"].astype(mx.float16),
    }


def _peft_settings(layers: Learnt, tables: Mapping[str, Names]) -> dict[str, object]:
    """peft's settings of each component, as diffusers packs them into a header."""
    settings: dict[str, object] = {}
    for component in sorted({component for component, _ in layers}):
        own = {path: layer for (each, path), layer in layers.items() if each == component}
        first = next(iter(own.values()))
        # peft compares the ends of names, and transformers' text encoders have lost their outer "text_model." since 5.
        named = (tables[component].write(f"{path}.weight").theirs.removesuffix(".weight") for path in sorted(own))
        modules = [name.removeprefix("text_model.") for name in named]
        settings |= {
            f"{component}.r": len(first.down),
            f"{component}.lora_alpha": first.alpha,
            f"{component}.target_modules": modules,
        }
    return settings


def write_tensors(path: Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, whole or not at all. Raises OSError."""
    with atomic.written(path) as temporary:
        write_safetensors(temporary, dict(tensors), {"format": "pt", **metadata}, lambda count: None)


def embedding_tensors(vectors: list[mx.array], word: str, family: str, form: str) -> dict[str, mx.array]:
    """An embedding's tensors, float32: vectors (N, D) for each text encoder.

    A1111 and diffusers read both forms; with one encoder diffusers' own has the word as its key.
    """
    keys = families.get(family).embedding_keys
    if keys:
        return dict(zip(keys[0], vectors, strict=True))
    return {EMBEDDING if form == KOHYA else word: vectors[0]}
