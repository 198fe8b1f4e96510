"""Random weights and inputs that need no file: each drawn from a generator that its own name seeds."""

from __future__ import annotations

import math
import zlib

import numpy as np


def normal(name: str, *shape: int) -> np.ndarray:
    """Unit normal float32 values that depend on nothing but the name and the shape."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of torch's layout, scaled so that every part of a network shows in its result."""
    values = normal(name, *shape)
    if len(shape) > 1:
        return values / np.float32(math.sqrt(math.prod(shape[1:])))
    return values * np.float32(0.1) + np.float32("norm" in name and name.endswith("weight"))
