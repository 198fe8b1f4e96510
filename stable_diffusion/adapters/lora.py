"""LoRA and its relatives: a file -> the layers that it changes -> copies of the networks with it applied.

Nothing is changed in place. Networks with adapters are copies that share every array with the checkpoint's except the
changed weights: removing an adapter means dropping the copy, and two generations can use different ones.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import families
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..errors import UnsupportedCheckpointError, WeightsError
from ..families import FAMILIES
from ..model_io.quantised import dequantised
from ..model_io.strict import FLOATS, as_array, load_tensors
from ..model_io.tensor_file import open_tensors
from ..text.tags import Strength
from ..unet import UNet
from . import file_keys
from .forms import FORMS, Layer

# What attn2 reads.
TEXT_WIDTHS = {**{family.text_width: family.title for family in FAMILIES.values()}, 1280: "SDXL's refiner"}
WITH_WIDTH = FORMS[:7]
UNFIT = (ValueError, IndexError, KeyError, OverflowError, RuntimeError)  # from tensors whose shapes do not fit
NUMBERS = ("string_to_token.*",)  # an embedding's own word; the file's name is used instead
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


class AdapterWarning(UserWarning):
    """Something in an adapter file is not used."""


@dataclass(frozen=True)
class Networks:
    """The networks that an adapter can change."""

    unet: UNet
    text_encoders: tuple[CLIPTextModel, ...]

    def components(self) -> dict[str, nn.Module]:
        """The networks by their names in adapter files."""
        return {
            file_keys.UNET: self.unet,
            **dict(zip((file_keys.TEXT, file_keys.TEXT_2), self.text_encoders, strict=False)),
        }


@dataclass(frozen=True)
class Lora:
    """A file's layers by component and path; tensors are read when first needed."""

    name: str
    layers: Mapping[tuple[str, str], Layer]


def load_lora(path: Path, networks: Networks, family: str) -> Lora:
    """Read a file's header and match it with the networks of a checkpoint of `family`, a key of families.FAMILIES.

    Warns with `AdapterWarning` of tensors that match nothing. Raises `UnsupportedCheckpointError` for a file of another
    family or an unsupported form, or that matches nothing at all, and `WeightsError` for a damaged one.
    """
    name = path.stem
    tensors, metadata = read_tensors(path)
    parts = {key: file_keys.parse(key) for key in tensors}
    groups: dict[tuple[str, str], Layer] = {}
    for key, part in parts.items():
        if part:
            layer = groups.setdefault((part.component, part.flat), Layer(part.module))
            layer.parts[part.part] = tensors[key]
            layer.keys[part.part] = key
    _refuse_other_families(name, tensors, groups, metadata, networks, family)
    tables = _tables(networks)
    layers: dict[tuple[str, str], Layer] = {}
    unmatched = [key for key, part in parts.items() if part is None]
    for (component, module), layer in groups.items():
        owner = next((owner for owner in ([component] if component else tables) if module in tables.get(owner, {})), "")
        if not owner or layer.form() is None:
            unmatched += layer.keys.values()
            continue
        unmatched += layer.left_over()
        layers[owner, tables[owner][module]] = layer
    _report(name, unmatched, layers, family)
    _set_alphas(layers, metadata, path)
    _check_shapes(name, layers, networks)
    return Lora(name, layers)


def lay_over(networks: Networks, loras: Sequence[tuple[Lora, Strength]]) -> Networks:
    """Networks with adapters added: W + sum of strength * change. Arrays are lazy; the given networks stay unchanged.

    Strengths other than 1 of a DoRA interpolate between the weight and the learnt one. A changed quantised layer
    becomes a plain one.
    """
    changed = {}
    for component, model in networks.components().items():
        changes: dict[str, list[tuple[Layer, float]]] = {}
        for lora, strength in loras:
            amount = strength.unet if component == file_keys.UNET else strength.text
            for (owner, path), layer in lora.layers.items():
                if owner == component and amount:
                    changes.setdefault(path, []).append((layer, amount))
        changed[component] = _with_changes(model, changes) if changes else model
    encoders = [changed[component] for component in (file_keys.TEXT, file_keys.TEXT_2) if component in changed]
    return Networks(changed[file_keys.UNET], tuple(encoders))  # type: ignore[arg-type]


def shared_copy(node: Any) -> Any:
    """A copy of a module's structure that shares its arrays."""
    if isinstance(node, nn.Module):
        node = copy.copy(node)
        for key, child in node.items():
            dict.__setitem__(node, key, shared_copy(child))
        return node
    if isinstance(node, list):
        return [shared_copy(child) for child in node]
    if isinstance(node, dict):
        return {key: shared_copy(child) for key, child in node.items()}
    return node


def read_tensors(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The tensors and metadata of a safetensors file (lazy), or the tensors of one of torch's (nothing is executed).

    Raises `WeightsError` for a file that is not intact, and `UnsupportedCheckpointError` for other kinds of file.
    """
    with open_tensors(path) as file:
        for tensor in file.tensors.values():
            if tensor.dtype not in FLOATS and not tensor.key.endswith((".alpha", *NUMBERS)):
                raise WeightsError(f"{path}: the tensor {tensor.key} is of type {tensor.dtype}, not floating point.")
        if file.form != "safetensors":
            return {key: as_array(file.read(stored), stored.dtype) for key, stored in file.tensors.items()}, {}
        metadata, dtypes = file.metadata, {stored.dtype for stored in file.tensors.values()}
    return load_tensors(path, dtypes), metadata


# --- Matching


def _tables(networks: Networks) -> dict[str, dict[str, str]]:
    """Component -> {every name of each of its layers: the layer's path}."""
    return {component: file_keys.modules(component, model) for component, model in networks.components().items()}


def _refuse_other_families(
    name: str,
    keys: Iterable[str],
    groups: Mapping[tuple[str, str], Layer],
    metadata: Mapping[str, str],
    networks: Networks,
    family: str,
) -> None:
    form = file_keys.other_form(keys)
    if form:
        raise UnsupportedCheckpointError(f"The LoRA {name!r} has the form {form}, which is not supported.")
    found = _family(keys, groups, metadata, networks)
    own = families.get(family).title
    if found and found != own:
        raise UnsupportedCheckpointError(
            f"The LoRA {name!r} is for {found}, this checkpoint is {own}. Choose one of the same family."
        )


def _family(
    keys: Iterable[str], groups: Mapping[tuple[str, str], Layer], metadata: Mapping[str, str], networks: Networks
) -> str | None:
    """The family that a file was made for: by its keys, then the width of text that it reads, then its metadata."""
    keys = list(keys)
    for pattern, architecture in ARCHITECTURES:
        if any(re.search(pattern, key) for key in keys):
            return architecture
    for (_, module), layer in groups.items():
        if module.endswith("attn2_to_k") and layer.form() in WITH_WIDTH:
            try:
                width = layer.product().shape[1]
            except UNFIT:
                continue
            if width == networks.unet.config.per_block("cross_attention_dim")[0]:
                return None
            return TEXT_WIDTHS.get(width, f"a model whose text is {width} wide")
    told = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    return next((title for start, title in BASE_MODELS.items() if told.startswith(start)), None)


def _report(name: str, unmatched: list[str], layers: Mapping, family: str) -> None:
    shown = ", ".join(sorted(unmatched)[:6]) + (f" and {len(unmatched) - 6} more" if len(unmatched) > 6 else "")
    if not layers:
        own = families.get(family).title
        what = f"none of its tensors matches this checkpoint ({own}): {shown}" if unmatched else "it is empty"
        raise UnsupportedCheckpointError(f"The LoRA {name!r} cannot be used: {what}.")
    if unmatched:
        warnings.warn(
            f"The LoRA {name!r} holds {len(unmatched)} tensors that match nothing in this checkpoint and are not "
            f"used: {shown}",
            AdapterWarning,
            stacklevel=5,
        )


def _set_alphas(layers: Mapping[tuple[str, str], Layer], metadata: Mapping[str, str], path: Path) -> None:
    """Read alpha from where peft keeps it: the file's metadata (diffusers), or adapter_config.json."""
    config = _json(metadata.get("lora_adapter_metadata"))
    bare = _json(path.with_name("adapter_config.json"))
    for (component, _), layer in layers.items():
        start = component + "."
        own = {key.removeprefix(start): value for key, value in config.items() if key.startswith(start)} or bare
        patterns = own.get("alpha_pattern")
        special = patterns.items() if isinstance(patterns, dict) else ()
        fits = (value for key, value in special if f".{layer.module}".endswith(f".{key}"))
        layer.alpha = next(fits, own.get("lora_alpha", own.get("alpha")))
        layer.root = bool(own.get("use_rslora"))
        if layer.alpha is not None and type(layer.alpha) not in (int, float):
            raise WeightsError(f"{path}: alpha is {layer.alpha!r} in its metadata, which is not a number.")


def _json(source: str | Path | None) -> dict[str, Any]:
    try:
        values = json.loads(source.read_text(encoding="utf-8") if isinstance(source, Path) else source or "{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _check_shapes(name: str, layers: Mapping[tuple[str, str], Layer], networks: Networks) -> None:
    """Build every change lazily, so that shapes that do not fit are found now."""
    modules = {component: dict(model.named_modules()) for component, model in networks.components().items()}
    for (component, path), layer in layers.items():
        module = modules[component][path]
        try:
            layer.weight_change(_torch_weight(module))
            bias = layer.bias_change()
            if bias is not None and ("bias" not in module or bias.shape != module.bias.shape):
                raise ValueError(f"a bias of {bias.shape}")
        except UNFIT as error:
            shapes = ", ".join(f"{layer.keys[part]} {tensor.shape}" for part, tensor in layer.parts.items())
            raise UnsupportedCheckpointError(
                f"The LoRA {name!r} does not fit this checkpoint at {component}.{path}: {error} ({shapes}). It was "
                f"made for another model."
            ) from None


# --- Applying


def _with_changes(model: nn.Module, changes: Mapping[str, list[tuple[Layer, float]]]) -> nn.Module:
    model = shared_copy(model)
    modules = dict(model.named_modules())
    for path, layers in changes.items():
        module = modules[path]
        if "scales" in module:
            module = _plain(module)
            parent, _, last = path.rpartition(".")
            modules[parent][last] = module
        _change(module, layers)
    return model


def _change(module: nn.Module, layers: Sequence[tuple[Layer, float]]) -> None:
    """Set a copied module's changed weight and bias, computed in float32, in their own type and layout."""
    weight = _torch_weight(module)
    total = weight
    for layer, amount in layers:
        change = layer.weight_change(weight)
        if change is not None:
            total = total + amount * change
        bias = layer.bias_change()
        if bias is not None:
            module.bias = (module.bias.astype(mx.float32) + amount * bias).astype(module.bias.dtype)
    if total is not weight:
        total = total.transpose(0, 2, 3, 1) if total.ndim == 4 else total
        module.weight = mx.contiguous(total.astype(module.weight.dtype))


def _torch_weight(module: nn.Module) -> mx.array:
    """A module's weight in torch's layout, float32; lazy."""
    weight = dequantised(module) if "scales" in module else module.weight
    weight = weight.astype(mx.float32)
    return weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight


def _plain(module: nn.Module) -> nn.Module:
    plain = nn.Linear(1, 1, bias="bias" in module)
    plain.weight = dequantised(module)
    if "bias" in module:
        plain.bias = module.bias
    return plain
