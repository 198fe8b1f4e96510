"""Arguments of a call, refused at the door: each check returns the value in the form that is worked with.

All raise `InputError`, which quotes the value and says what is wanted.
"""

from __future__ import annotations

import math
import operator
import secrets
from typing import Any

import numpy as np

from .backend import mx
from .diffusion.noise import Seeds
from .errors import InputError

MAX_SEED = 2**64 - 1


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InputError(f"{name} should be a string, not {value!r}.")
    return value


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`; true and false are none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise InputError(f"{name} = {value!r} should be a whole number from {low} to {high}.")
    return number


def number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number from `low` to `high`."""
    try:
        found = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (low <= found <= high and math.isfinite(found)):
        wanted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g}"
        raise InputError(f"{name} = {value!r} should be a number {wanted}.")
    return found


def seeds(seed: Any, n_images: int, variation_seed: Any, variation_strength: Any) -> Seeds:
    """The seeds of a batch; a seed that is None is drawn."""
    largest = MAX_SEED - n_images + 1
    seed = secrets.randbelow(2**32) if seed is None else whole("seed", seed, 0, largest)
    strength = number("variation_strength", variation_strength, 0.0, 1.0)
    if variation_seed is not None:
        return Seeds(seed, n_images, whole("variation_seed", variation_seed, 0, largest), strength)
    if strength:
        raise InputError(f"variation_strength = {strength:g} needs a variation_seed to turn towards.")
    return Seeds(seed, n_images)


def noise(latents: Any, shape: tuple[int, ...]) -> mx.array:
    """Latents of numpy or MLX, of the given shape, as float32."""
    found = latents if isinstance(latents, mx.array) else np.asarray(latents)
    if tuple(found.shape) != shape:
        raise InputError(
            f"latents of shape {tuple(found.shape)} do not fit: (n_images, height, width, channels) is {shape} here."
        )
    return mx.array(found).astype(mx.float32)
