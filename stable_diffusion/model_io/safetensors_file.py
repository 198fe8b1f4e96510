"""Write a safetensors file tensor by tensor, so that only one at a time needs to be in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..backend import mx

TYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32"}


def write_safetensors(
    path: Path, tensors: dict[str, mx.array], metadata: Mapping[str, str], written: Callable[[int], None]
) -> None:
    """Write a new file, removing each tensor from `tensors` once it is written; nothing else should hold them.

    `written(bytes)` is called after each. Raises OSError, such as FileExistsError.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in list(tensors):
            # A view of bytes, since numpy has no bfloat16.
            numbers = np.array(mx.contiguous(tensors.pop(key)).reshape(-1).view(mx.uint8), copy=False)
            file.write(numbers.data)
            written(numbers.nbytes)
        file.flush()
        os.fsync(file.fileno())
