"""LoRA and its relatives: a file -> the layers that it changes -> copies of the networks with it applied.

Nothing is changed in place. Networks with adapters are copies that share every array with the checkpoint's except the
changed weights: removing an adapter means dropping the copy, and two generations can use different ones.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import families
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..errors import UnsupportedCheckpointError, WeightsError
from ..model_io.quantised import dequantised
from ..model_io.strict import FLOATS, as_array, load_tensors
from ..model_io.tensor_file import open_tensors
from ..text.tags import Strength
from ..unet import UNet
from . import file_keys, lora_family
from .forms import Layer
from .peft_config import read_configs

UNFIT = (ValueError, IndexError, KeyError, OverflowError, RuntimeError)  # from tensors whose shapes do not fit
BUNDLED = "bundle_emb."  # of an embedding in a LoRA's file: then its name, and its own key
NUMBERS = ("string_to_token.*",)  # an embedding's own word; the file's name is used instead


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
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(BUNDLED)}
    parts = {key: file_keys.parse(key) for key in tensors}
    groups: dict[tuple[str, str], Layer] = {}
    for key, part in parts.items():
        if part:
            layer = groups.setdefault((part.component, part.flat), Layer(part.module))
            layer.parts[part.part] = tensors[key]
            layer.keys[part.part] = key
    _refuse_other_families(name, tensors, metadata, networks, family)
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
    _set_alphas(name, layers, metadata, path)
    _check_shapes(name, layers, networks)
    return Lora(name, layers)


def bundled_embeddings(path: Path) -> dict[str, Mapping[str, mx.array]]:
    """The textual-inversion embeddings in a LoRA's file: name -> tensors, as in a file of its own."""
    with open_tensors(path, check=False) as file:
        if not any(key.startswith(BUNDLED) for key in file.tensors):
            return {}
    found: dict[str, dict[str, mx.array]] = {}
    for key, tensor in read_tensors(path)[0].items():
        name, _, own = key.removeprefix(BUNDLED).partition(".")
        if key.startswith(BUNDLED) and name.strip() and own:
            found.setdefault(name, {})[own] = tensor
    return dict(found)


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
    name: str, tensors: Mapping[str, mx.array], metadata: Mapping[str, str], networks: Networks, family: str
) -> None:
    form = file_keys.other_form(tensors)
    if form:
        raise UnsupportedCheckpointError(f"The LoRA {name!r} has the form {form}, which is not supported.")
    found = _family(tensors, metadata, networks)
    own = families.get(family).title
    if found and found != own:
        raise UnsupportedCheckpointError(
            f"The LoRA {name!r} is for {found}, this checkpoint is {own}. Choose one of the same family."
        )


def _family(tensors: Mapping[str, mx.array], metadata: Mapping[str, str], networks: Networks) -> str | None:
    """The family that a file was made for, None for that of the networks or an unknown one."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    architecture = lora_family.by_keys(shapes)
    if architecture:
        return architecture
    width = lora_family.text_width(shapes)
    if width is None:
        return lora_family.by_metadata(metadata) or None
    if width == networks.unet.config.per_block("cross_attention_dim")[0]:
        return None
    return lora_family.TEXT_WIDTHS.get(width, f"a model whose text is {width} wide")


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


def _set_alphas(name: str, layers: Mapping[tuple[str, str], Layer], metadata: Mapping[str, str], path: Path) -> None:
    """Set alpha and rank as peft's settings have them."""
    configs = read_configs(path, metadata, (file_keys.UNET, file_keys.TEXT, file_keys.TEXT_2))
    for (component, _), layer in layers.items():
        config = configs[component]
        layer.alpha, layer.given_rank, layer.root = config.alpha(layer.module), config.rank(layer.module), config.root
    ignored = dict.fromkeys(what for component, _ in layers for what in configs[component].not_honoured())
    if ignored:
        warnings.warn(
            f"The LoRA {name!r} was trained with {', '.join(ignored)}, which is not supported: it may not look as it "
            f"was meant to.",
            AdapterWarning,
            stacklevel=5,
        )


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
