"""An upscaler's file -> its network. Nothing in a .pth file is executed; every tensor is used or known to be idle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import backend
from ..backend import cpu_threads, mx
from ..model_io.load_file import source_of
from ..model_io.name_table import Names
from ..model_io.strict import Form, Source, add_source, give
from ..model_io.tensor_file import StoredTensor, TensorFile, as_floats, open_tensors
from .architectures import COMPACT, ESRGAN, SPAN, SWINIR, Description
from .files import described, senseless


class UpscalingNetwork(Protocol):
    """What an architecture has to be."""

    scale: int
    overlap: int  # of tiles, in pixels of the input
    margin: int  # what is near a tile's edge and not used
    multiple: int  # tiles should start at multiples of it
    supports_half: bool  # whether float16 is enough
    values_per_pixel: int  # numbers in memory at the peak, for each pixel of the input

    def __call__(self, x: mx.array) -> mx.array:
        """Pictures (B, H, W, 3) in [0, 1] -> (B, scale H, scale W, 3), not clipped."""


def builders() -> dict[str, Any]:
    """The class of each architecture; imported here, since most are never needed."""
    from .compact import Compact
    from .rrdb import RRDBNet
    from .span import SPAN as Span
    from .swinir import SwinIR

    return {ESRGAN: RRDBNet, COMPACT: Compact, SPAN: Span, SWINIR: SwinIR}


def load_network(path: Path, half: bool | None = None) -> UpscalingNetwork:
    """Load a .pth or .safetensors file; `half` asks for float16, where the architecture allows it (None: on a GPU).

    Raises `UnsupportedCheckpointError` for what is no upscaler, or one that is not built here, by its name, and
    `WeightsError` for a file that is cut short or lacks tensors.
    """
    backend.prepare()
    half = backend.default_float16() if half is None else half
    with open_tensors(path) as file:
        keys, found = described(file)
        try:
            network = builders()[found.architecture](**found.sizes)
            sources = _sources(file, keys, found)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError):
            raise senseless(path) from None
        dtype = mx.float16 if half and network.supports_half else mx.float32
        give(network, sources, str(path), dtype, check_values=True, threads=cpu_threads())
        file.check_unchanged()
    network.eval()
    return network


def _sources(file: TensorFile, keys: Mapping[str, str], found: Description) -> dict[str, Source]:
    tensors = {name: file.tensors[key] for name, key in keys.items()}
    sources = _merged(file, tensors, found.names) if found.merged else {}
    for name, tensor in tensors.items():
        for place in [] if _is_part(name, sources) else found.names.read(name):
            add_source(sources, place.ours, source_of(file, tensor))
    return sources


# --- SPAN's convolutions: sk(x) + conv.2(conv.1(conv.0(x))), which are one 3x3 convolution

_PARTS = ("sk", "conv.0", "conv.1", "conv.2")


def _is_part(name: str, merged: Mapping[str, Source]) -> bool:
    return any(name.startswith(f"{whole.rpartition('.')[0]}.{part}.") for whole in merged for part in _PARTS)


def _merged(file: TensorFile, tensors: Mapping[str, StoredTensor], names: Names) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for key, stored in tensors.items():
        if not key.endswith(".sk.weight"):
            continue
        whole = key.removesuffix(".sk.weight")
        parts = [tensors[f"{whole}.{part}.{kind}"] for part in _PARTS for kind in ("weight", "bias")]
        outputs, inputs, *_ = stored.shape
        for i, (kind, shape) in enumerate((("weight", (outputs, inputs, 3, 3)), ("bias", (outputs,)))):

            def read(form: Form, parts: list[StoredTensor] = parts, i: int = i) -> mx.array:
                values = _one_convolution(*(as_floats(file.read(each), each.dtype) for each in parts))[i]
                return mx.array(values.transpose(0, 2, 3, 1) if form.channels_last else values).astype(form.dtype)

            label = f"{file.path}: {whole}"
            add_source(sources, f"{whole}.{kind}", Source(label, whole, shape, stored.dtype, read))
    return sources


def _one_convolution(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight (O, I, 3, 3) and bias (O,) that do what weights and biases of the four in turn do; float32."""
    sk, sk_bias, first, first_bias, middle, middle_bias, last, last_bias = (part.astype(np.float64) for part in parts)
    weight = np.einsum("om,mnyx,ni->oiyx", last[:, :, 0, 0], middle, first[:, :, 0, 0])
    weight[:, :, 1, 1] += sk[:, :, 0, 0]
    # The picture is padded before the first of them, so its bias does not reach beyond the edge.
    bias = last[:, :, 0, 0] @ (middle.sum((2, 3)) @ first_bias + middle_bias) + last_bias + sk_bias
    return weight.astype(np.float32), bias.astype(np.float32)
