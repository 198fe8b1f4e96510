"""Write a safetensors file tensor by tensor, so that only one at a time needs to be in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from ..backend import mx
from .tensor_file import ITEM_SIZES

TYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32"}


def write_safetensors(
    path: Path, tensors: dict[str, mx.array], metadata: Mapping[str, str], written: Callable[[int], None]
) -> None:
    """Write a new file, removing each tensor from `tensors` once it is written; nothing else should hold them.

    `written(bytes)` is called after each. Raises OSError, such as FileExistsError.
    """
    with path.open("xb") as file:
        file.write(
            _header({key: (each.shape, TYPES[each.dtype], each.nbytes) for key, each in tensors.items()}, metadata)
        )
        for key in list(tensors):
            # A view of bytes, since numpy has no bfloat16.
            numbers = np.array(mx.contiguous(tensors.pop(key)).reshape(-1).view(mx.uint8), copy=False)
            file.write(numbers.data)
            written(numbers.nbytes)
        file.flush()
        os.fsync(file.fileno())


def write_arrays(
    path: Path,
    entries: Mapping[str, tuple[tuple[int, ...], str]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write arrays as they come, one for each entry (shape, safetensors' name of the type), to a file that may exist.

    Raises OSError.
    """
    sizes = {key: (shape, dtype, math.prod(shape) * ITEM_SIZES[dtype]) for key, (shape, dtype) in entries.items()}
    with path.open("wb") as file:
        file.write(_header(sizes, metadata))
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, tuple[tuple[int, ...], str, int]], metadata: Mapping[str, str]) -> bytes:
    """A file's beginning, from each tensor's shape, type and size in bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key, (shape, dtype, size) in tensors.items():
        start, end = end, end + size
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
