"""Strict loading: every tensor of a file is used or explicitly ignored, every parameter of the model is set."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from mlx.utils import tree_flatten
from safetensors import SafetensorError, safe_open

from ..backend import mx, nn
from ..errors import WeightsError
from .name_table import Names
from .tensor_file import FLOAT8, as_floats, open_tensors

HALVES = ("F16", *FLOAT8)  # what float16 holds exactly
FLOATS = ("F64", "F32", "BF16", *HALVES)


@dataclass(frozen=True)
class Form:
    """The form that a tensor in a file has to take as a parameter."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    channels_last: bool  # a kernel: (O, I, kH, kW) in the file, (O, kH, kW, I) here


@dataclass(frozen=True)
class Source:
    """A parameter's tensor, still in its file."""

    label: str  # the file and the key, for errors
    key: str
    shape: tuple[int, ...]  # torch's: kernels are (O, I, kH, kW)
    dtype: str  # as safetensors names it
    read: Callable[[Form], mx.array]


def load_weights(
    model: nn.Module,
    files: Sequence[Path],
    names: Names,
    dtype: mx.Dtype,
    check_values: bool = False,
    keep_half: bool = False,
) -> None:
    """Load safetensors files into `model`, lazily: a tensor is read when it is first needed.

    `keep_half` keeps the files' float16 tensors in float16, whatever the `dtype`. Raises `WeightsError` for a file that
    is cut short or corrupt, for tensors that are missing, left over or of another shape, and, with `check_values`
    (which reads everything), for NaN or infinite values.
    """
    give(model, _sources(files, names), _named(files), dtype, check_values, keep_half=keep_half)


def give(
    model: nn.Module,
    sources: Mapping[str, Source],
    where: str,
    dtype: mx.Dtype,
    check_values: bool = False,
    threads: int = 1,
    keep_half: bool = False,
) -> None:
    """Set `model`'s parameters from the sources of the same names; names and shapes are checked before any is read.

    `where` names the files in errors; several `threads` help where reading a source involves computing. Raises
    `WeightsError`.
    """
    expected = dict(tree_flatten(model.parameters()))
    _check_names(sources, expected, where)
    forms = {
        target: _form(source, expected[target].shape, mx.float16 if keep_half and source.dtype in HALVES else dtype)
        for target, source in sources.items()
    }
    with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
        read = (pool.map if pool else map)(lambda target: sources[target].read(forms[target]), sources)
        loaded = list(zip(sources, read, strict=True))
    if check_values:
        _check_values(loaded, where)
    model.load_weights(loaded, strict=True)


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """The names, shapes and types of a safetensors file's tensors, from its header."""
    try:
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty (0 bytes); download or copy it again.")
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
            return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is not an intact safetensors file ({error}); it may be cut short. Download or copy it again."
        ) from None


def _sources(files: Sequence[Path], names: Names) -> dict[str, Source]:
    """Parameter name -> its tensor in the files."""
    sources: dict[str, Source] = {}
    for path in files:
        header = read_header(path)
        tensors = load_tensors(path, {dtype for _, dtype in header.values()})
        for key, (shape, dtype) in header.items():
            for place in names.read(key):
                read = functools.partial(_formed, tensors[key])
                add_source(sources, place.ours, Source(f"{path}: {key}", key, shape, dtype, read))
    return sources


def add_source(sources: dict[str, Source], target: str, source: Source) -> None:
    """Add a parameter's source. Raises `WeightsError` for a second one, or one that is not floating point."""
    if source.dtype not in FLOATS:
        raise WeightsError(f"{source.label} is of type {source.dtype}; weights should be floating point.")
    if target in sources:
        raise WeightsError(f"{source.label} and {sources[target].key} both hold the parameter {target}.")
    sources[target] = source


def _check_names(sources: Mapping[str, Source], expected: Mapping[str, mx.array], where: str) -> None:
    missing = sorted(expected.keys() - sources.keys())
    extra = sorted(sources[name].key for name in sources.keys() - expected.keys())
    problems = [_listed("missing", missing)] * bool(missing) + [_listed("not known", extra)] * bool(extra)
    if problems:
        raise WeightsError(f"{where} does not hold the tensors that its configuration requires: {'; '.join(problems)}.")


def _form(source: Source, shape: tuple[int, ...], dtype: mx.Dtype) -> Form:
    """How a torch tensor becomes one for the layers: kernels (O, I, kH, kW) -> (O, kH, kW, I), or (O, I) for 1x1."""
    given = source.shape
    if len(given) == 4 and (given[0], *given[2:], given[1]) == shape:
        return Form(shape, dtype, channels_last=True)
    if given == shape or (len(given) > len(shape) == 2 and given == (*shape, *(1,) * (len(given) - 2))):
        return Form(shape, dtype, channels_last=False)
    raise WeightsError(f"{source.label} has the shape {given}; the model as configured needs {shape} (channels last).")


def _formed(tensor: mx.array, form: Form) -> mx.array:
    tensor = tensor.transpose(0, 2, 3, 1) if form.channels_last else tensor.reshape(form.shape)
    return mx.contiguous(tensor).astype(form.dtype)


def load_tensors(path: Path, dtypes: Collection[str]) -> dict[str, mx.array]:
    """The tensors of a safetensors file whose types are `dtypes`: lazy, but read at once if some are float8.

    Raises `WeightsError` for a file that cannot be read.
    """
    if any(dtype in FLOAT8 for dtype in dtypes):  # MLX reads one of the two, as whole numbers
        with open_tensors(path) as file:
            return {key: as_array(file.read(stored), stored.dtype) for key, stored in file.tensors.items()}
    try:
        return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None


def as_array(numbers: np.ndarray, dtype: str) -> mx.array:
    """Numbers as `TensorFile.read` gives them: float8 becomes float16, which holds all its values, float64 float32."""
    if dtype == "BF16":
        return mx.array(numbers).view(mx.bfloat16)
    if dtype in FLOAT8:
        return mx.array(as_floats(numbers, dtype).astype(np.float16))
    return mx.array(numbers.astype(np.float32) if dtype == "F64" else numbers)


def _check_values(loaded: list[tuple[str, mx.array]], where: str) -> None:
    bad = [name for name, tensor in loaded if not mx.isfinite(tensor).all().item()]
    if bad:
        raise WeightsError(f"{where} holds NaN or infinite values: {_listed('', bad)}. The file is damaged.")


def _listed(what: str, names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}".strip()


def _named(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
