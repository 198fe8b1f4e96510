"""8- and 4-bit weights: which layers take them, and converting networks to them."""

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
# Smaller layers would save next to no memory and still add to the error.
SMALL = 1 << 14


@dataclass(frozen=True)
class Quantisation:
    """How weights are stored: integers of `bits`, with a scale and a bias per `group_size` numbers of a row."""

    bits: int
    group_size: int = 64

    @classmethod
    def from_config(cls, values: Any, source: str) -> Quantisation:
        """From a config.json's "quantization". Raises a subclass of `CheckpointError`."""
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
        """The entry for config.json."""
        return {"bits": self.bits, "group_size": self.group_size, "mode": "affine"}

    def takes(self, path: str, layer: nn.Module) -> bool:
        """True for a layer worth quantising: linear or an embedding, not small, its rows made of whole groups."""
        if (
            type(layer) not in (nn.Linear, nn.Embedding) or path == "position_embedding"
        ):  # whose weights are read directly
            return False
        return layer.weight.size >= SMALL and layer.weight.shape[-1] % self.group_size == 0


class QuantizedLinear(nn.QuantizedLinear):
    """MLX's layer, with the device's best form of the product."""

    def __call__(self, x: mx.array) -> mx.array:
        y = ops.quantized_matmul(x, self.weight, self.scales, self["biases"], self.group_size, self.bits)
        return y + self.bias if "bias" in self else y


def check_bits(bits: int | None) -> None:
    """Raise `InputError` for bits other than 8, 4 or None."""
    if bits is not None and (type(bits) is not int or bits not in BITS):
        raise InputError(f"bits = {bits!r} should be {_either(BITS)}, or None to leave weights as they are.")


def quantise(unet: nn.Module, text_encoders: Sequence[nn.Module], bits: int, progress: Progress | None = None) -> None:
    """Quantise the large linear layers and embeddings one by one, so that memory never exceeds the result's.

    Raises `InputError` for networks already quantised to other bits, since that would round twice.
    """
    before = quantisation_of(unet)
    if before is not None and before.bits != bits:
        raise InputError(
            f"bits = {bits}: the checkpoint's weights have {before.bits} bits already. Leave bits out, or start from "
            f"the checkpoint that it was made from."
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
        mx.eval(_convert(model, path, quantisation).parameters())


def prepare(model: nn.Module, quantisation: Quantisation, paths: Iterable[str], source: str) -> None:
    """Convert the layers at `paths` so that quantised weights can be loaded. Raises `ConfigError` for other paths."""
    layers = _layers(model)
    for path in paths:
        layer = layers.get(path)
        if not isinstance(layer, nn.Linear | nn.Embedding) or layer.weight.shape[-1] % quantisation.group_size:
            raise ConfigError(f"{source}: the weights of {path!r} are quantised, but no such layer can be.")
        _convert(model, path, quantisation)


def quantisation_of(model: nn.Module) -> Quantisation | None:
    """How a network's weights are quantised; None for plain weights."""
    for layer in _layers(model).values():
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            return Quantisation(layer.bits, layer.group_size)
    return None


def dequantised(layer: nn.Module) -> mx.array:
    """A quantised layer's weights, unpacked: (outputs, inputs)."""
    return mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)


def plain_parameters(model: nn.Module) -> dict[str, mx.array]:
    """A network's parameters by name, with quantised ones unpacked."""
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for path, layer in _layers(model).items():
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            parameters[f"{path}.weight"] = dequantised(layer)
            del parameters[f"{path}.scales"], parameters[f"{path}.biases"]
    return parameters


def _convert(model: nn.Module, path: str, quantisation: Quantisation) -> nn.Module:
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
