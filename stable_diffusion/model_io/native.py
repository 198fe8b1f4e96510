"""Weights in the modules' own form: their names, channels last, quantised or not. Loading converts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mlx.utils import tree_flatten
from safetensors import SafetensorError, safe_open

from ..backend import mx, nn
from ..errors import WeightsError
from .quantised import Quantisation, prepare
from .strict import read_header

FORMAT = {"format": "mlx", "names": "stable_diffusion"}  # in the metadata of the file
FILE = "model.safetensors"
QUANTIZATION = "quantization"  # the key in config.json for how weights are stored, as in mlx-lm


def is_own_form(path: Path) -> bool:
    """True if a safetensors file's metadata say that it has this form."""
    try:
        with safe_open(path, framework="numpy") as file:
            return FORMAT.items() <= (file.metadata() or {}).items()
    except (SafetensorError, OSError, ValueError):
        return False  # strict loading reports what is wrong with it


def load_own_form(
    model: nn.Module,
    path: Path,
    dtype: mx.Dtype,
    quantization: Any = None,
    check_values: bool = False,
    keep_half: bool = False,
) -> None:
    """Load a file's tensors into `model`, lazily; `quantization` is its config.json's entry, or None.

    `keep_half` keeps the file's float16 tensors in float16, whatever the `dtype`.

    Raises `WeightsError` for tensors that are missing, left over, or of another shape or kind, and, with
    `check_values`, for NaN or infinite values; `ConfigError` for an invalid `quantization`.
    """
    given = {key: (shape, dtype_name == "U32") for key, (shape, dtype_name) in read_header(path).items()}
    if quantization is not None:
        scales = sorted(key.removesuffix(".scales") for key in given if key.endswith(".scales"))
        prepare(model, Quantisation.from_config(quantization, f"{path.parent}/config.json"), scales, str(path))
    wanted = {
        key: (value.shape, value.dtype == mx.uint32) for key, value in dict(tree_flatten(model.parameters())).items()
    }
    bad = sorted(key for key in given.keys() | wanted.keys() if given.get(key) != wanted.get(key))
    if bad:
        listed = "; ".join(f"{key} should be {_words(wanted.get(key))}, is {_words(given.get(key))}" for key in bad[:4])
        raise WeightsError(f"{path} does not match its config.json in {len(bad)} tensors: {listed}.")
    tensors = cast(dict[str, mx.array], mx.load(str(path)))
    if check_values and (broken := [key for key, tensor in tensors.items() if not mx.isfinite(tensor).all().item()]):
        raise WeightsError(f"{path} holds NaN or infinite values: {', '.join(broken[:4])}. The file is damaged.")
    kept = (mx.uint32, mx.float16) if keep_half else (mx.uint32,)
    loaded = [(key, tensor if tensor.dtype in kept else tensor.astype(dtype)) for key, tensor in tensors.items()]
    model.load_weights(loaded, strict=True)


def _words(tensor: tuple[tuple[int, ...], bool] | None) -> str:
    if tensor is None:
        return "absent"
    return f"{tensor[0]}{' of packed numbers' * tensor[1]}"
