"""Strict loading: each tensor of a file is used or named in an ignore list, each parameter of the model is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mlx.utils import tree_flatten
from safetensors import SafetensorError, safe_open

from ..backend import mx, nn
from ..errors import WeightsError
from .mapping import NameMap

FLOATS = ("F64", "F32", "F16", "BF16")


def load_weights(
    model: nn.Module, files: Sequence[Path], names: NameMap, dtype: mx.Dtype, check_values: bool = False
) -> None:
    """Give `model` the tensors of safetensors files, lazily: a tensor is read when it is first needed.

    Raises `WeightsError` for a file that is cut short or corrupt, for tensors that are missing, left over or of
    another shape, and, where `check_values` asks for it (which reads everything), for NaN or infinite values.
    """
    expected = dict(tree_flatten(model.parameters()))
    sources = _sources(files, names)
    _check_names(sources, expected, files)
    loaded = []
    tensors = {path: _load(path) for path in files}
    for target, (path, key) in sources.items():
        loaded.append((target, _arranged(tensors[path][key], expected[target].shape, f"{path}: {key}").astype(dtype)))
    if check_values:
        _check_values(loaded, files)
    model.load_weights(loaded, strict=True)


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """The names, shapes and types of a safetensors file's tensors, from its header alone."""
    try:
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty (0 bytes); download or copy it again.")
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a safe_open is no mapping)
            return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is no intact safetensors file ({error}); it may be cut short. Download or copy it again."
        ) from None


def _sources(files: Sequence[Path], names: NameMap) -> dict[str, tuple[Path, str]]:
    """Parameter name -> the file and key that hold it."""
    sources: dict[str, tuple[Path, str]] = {}
    for path in files:
        for key, (_, dtype) in read_header(path).items():
            target = names.target(key)
            if target is None:
                continue
            if dtype not in FLOATS:
                raise WeightsError(f"{path}: the tensor {key} is of type {dtype}; weights should be floating point.")
            if target in sources:
                raise WeightsError(f"{path}: both {sources[target][1]} and {key} hold the parameter {target}.")
            sources[target] = (path, key)
    return sources


def _check_names(sources: dict[str, tuple[Path, str]], expected: dict[str, mx.array], files: Sequence[Path]) -> None:
    missing = sorted(expected.keys() - sources.keys())
    extra = sorted(sources[name][1] for name in sources.keys() - expected.keys())
    problems = [_listed("missing", missing)] * bool(missing) + [_listed("not known", extra)] * bool(extra)
    if problems:
        raise WeightsError(
            f"{_named(files)} does not hold the tensors that its config.json calls for: {'; '.join(problems)}."
        )


def _arranged(tensor: mx.array, shape: tuple[int, ...], label: str) -> mx.array:
    """A torch tensor as the layers here want it: kernels (O, I, kH, kW) -> (O, kH, kW, I), or (O, I) for a 1x1 kernel.

    The same the other way round for a linear layer that the file holds as (O, I) and the model as (O, 1, 1, I).
    """
    given = tensor.shape
    if tensor.ndim == 4:
        tensor = tensor.squeeze((2, 3)) if len(shape) == 2 and given[2:] == (1, 1) else tensor.transpose(0, 2, 3, 1)
    if tensor.shape != shape:
        raise WeightsError(f"{label} has the shape {given}; the model as configured calls for {shape} (channels last).")
    return mx.contiguous(tensor)


def _load(path: Path) -> dict[str, mx.array]:
    try:
        return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None


def _check_values(loaded: list[tuple[str, mx.array]], files: Sequence[Path]) -> None:
    bad = [name for name, tensor in loaded if not mx.isfinite(tensor).all().item()]
    if bad:
        raise WeightsError(f"{_named(files)} holds NaN or infinite values: {_listed('', bad)}. The file is damaged.")


def _listed(what: str, names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}".strip()


def _named(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
