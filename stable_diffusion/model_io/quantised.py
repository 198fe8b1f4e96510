"""8- and 4-bit weights: which layers take them, and networks turned over to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx.utils import tree_flatten

from .. import ops
from ..backend import mx, nn
from ..errors import ConfigError, InputError, UnsupportedCheckpointError
from .hub import Progress

BITS = (8, 4)
GROUP_SIZES = (32, 64, 128)
# Below this many weights a layer's share of the memory is nothing, its share of the error is not.
SMALL = 1 << 14


@dataclass(frozen=True)
class Quantisation:
    """How weights are kept: whole numbers of `bits`, with a scale and a bias for each `group_size` of a row."""

    bits: int
    group_size: int = 64

    @classmethod
    def from_config(cls, values: Any, source: str) -> Quantisation:
        """What a config.json has as "quantization"; raises an error below `CheckpointError`."""
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: quantization = {values!r} should hold bits and group_size.")
        known = {"bits", "group_size", "mode"}
        if values.keys() - known or values.get("mode", "affine") != "affine":
            raise UnsupportedCheckpointError(f"{source}: quantization = {values!r} is not supported, only affine.")
        bits, group_size = values.get("bits"), values.get("group_size", 64)
        if bits not in BITS or group_size not in GROUP_SIZES:
            raise ConfigError(
                f"{source}: quantization = {values!r} should have {_either(BITS)} bits and a group_size of "
                f"{_either(GROUP_SIZES)}."
            )
        return cls(bits, group_size)

    def to_config(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {"bits": self.bits, "group_size": self.group_size, "mode": "affine"}

    def takes(self, path: str, layer: nn.Module) -> bool:
        """True for a layer that gains by it: linear or an embedding, not small, its rows made of whole groups."""
        if type(layer) not in (nn.Linear, nn.Embedding) or path == "position_embedding":  # which is read, not called
            return False
        return layer.weight.size >= SMALL and layer.weight.shape[-1] % self.group_size == 0


class QuantizedLinear(nn.QuantizedLinear):
    """MLX's layer, multiplied as the device does it best."""

    def __call__(self, x: mx.array) -> mx.array:
        y = ops.quantized_matmul(x, self.weight, self.scales, self["biases"], self.group_size, self.bits)
        return y + self.bias if "bias" in self else y


def check_bits(bits: int | None) -> None:
    """Refuse what weights cannot be quantised to: raises `InputError`."""
    if bits is not None and (type(bits) is not int or bits not in BITS):
        raise InputError(f"bits = {bits!r} should be {_either(BITS)}, or None for weights as they are.")


def quantise(unet: nn.Module, text_encoders: Sequence[nn.Module], bits: int, progress: Progress | None = None) -> None:
    """Turn the large linear layers and embeddings over, one by one, so that memory is never more than the outcome's.

    Raises `InputError` for networks that are quantised to other bits: rounding twice is not what was asked for.
    """
    before = quantisation_of(unet)
    if before is not None and before.bits != bits:
        raise InputError(
            f"bits = {bits}: the checkpoint's weights have {before.bits} bits already. Leave bits away, or start from "
            f"the checkpoint that it was made of."
        )
    quantisation = before or Quantisation(bits)
    found = [
        (model, path)
        for model in (unet, *text_encoders)
        for path, layer in _layers(model).items()
        if quantisation.takes(path, layer)
    ]
    for done, (model, path) in enumerate(found):
        if progress:
            progress(f"Quantising to {bits} bits", done / len(found))
        mx.eval(_turn_over(model, path, quantisation).parameters())


def prepare(model: nn.Module, quantisation: Quantisation, paths: Iterable[str], source: str) -> None:
    """Give the layers at `paths` the form that quantised weights load into. Raises `ConfigError` for any other path."""
    layers = _layers(model)
    for path in paths:
        layer = layers.get(path)
        if not isinstance(layer, nn.Linear | nn.Embedding) or layer.weight.shape[-1] % quantisation.group_size:
            raise ConfigError(f"{source}: the weights of {path!r} are quantised, but no such layer can be.")
        _turn_over(model, path, quantisation)


def quantisation_of(model: nn.Module) -> Quantisation | None:
    """How a network's weights are kept; None for plain weights."""
    for layer in _layers(model).values():
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            return Quantisation(layer.bits, layer.group_size)
    return None


def dequantised(layer: nn.Module) -> mx.array:
    """The weights (outputs, inputs) that a quantised layer stands for."""
    return mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)


def plain_parameters(model: nn.Module) -> dict[str, mx.array]:
    """A network's parameters by name, with quantised ones unpacked."""
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for path, layer in _layers(model).items():
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            parameters[f"{path}.weight"] = dequantised(layer)
            del parameters[f"{path}.scales"], parameters[f"{path}.biases"]
    return parameters


def _turn_over(model: nn.Module, path: str, quantisation: Quantisation) -> nn.Module:
    *above, name = path.split(".")
    parent: Any = model
    for part in above:
        parent = parent[int(part) if isinstance(parent, list) else part]
    key = int(name) if isinstance(parent, list) else name
    kind = QuantizedLinear.from_linear if isinstance(parent[key], nn.Linear) else nn.QuantizedEmbedding.from_embedding
    parent[key] = kind(parent[key], quantisation.group_size, quantisation.bits)
    return parent[key]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))


def _either(values: tuple[int, ...]) -> str:
    return " or ".join(map(str, values))
