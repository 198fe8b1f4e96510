"""Arguments of a call, refused at the door: each check returns the value in the form that is worked with.

All raise `InputError`, which quotes the value and says what is wanted. Needs no MLX.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from .errors import InputError

MAX_SEED = 2**64 - 1
MAX_SIDE = 8192  # pixels


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InputError(f"{name} should be a string, not {value!r}.")
    return value


def whole(name: str, value: Any, low: int, high: int, unit: str = "") -> int:
    """An integer in [low, high]; bools are rejected. `unit` ("pixels") is for the message."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        wanted = f"a whole number of {unit}" if unit else "a whole number"
        raise InputError(f"{name} = {value!r} should be {wanted} from {low} to {high}.")
    return number


def number(name: str, value: Any, low: float, high: float, unit: str = "") -> float:
    """A finite number in [low, high]; bools and strings are rejected."""
    try:
        found = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (low <= found <= high and math.isfinite(found)):
        bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g}"
        raise InputError(f"{name} = {value!r} should be a number {f'of {unit} ' if unit else ''}{bounds}.")
    return found
