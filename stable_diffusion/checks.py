"""Validation of arguments: each check returns the value, normalised, or raises `InputError`.

The error quotes the value and says what is expected. Does not import MLX.
"""

from __future__ import annotations

import math
import operator
import os
from dataclasses import dataclass
from typing import Any

from .errors import InputError

MAX_SEED = 2**64 - 1
MAX_SIDE = 8192  # pixels
MAX_TEXT = 20_000  # characters of a prompt; far more than any encoder reads


def text(name: str, value: Any, most: int | None = None) -> str:
    """A string of at most `most` characters."""
    if not isinstance(value, str):
        raise InputError(f"{name} should be a string, not {value!r}.")
    if most is not None and len(value) > most:
        raise InputError(f"{name} has {len(value)} characters, more than {most}: shorten it. It begins {value[:60]!r}.")
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


def interval(first: str, start: Any, last: str, end: Any) -> None:
    """Shares from 0 to 1, the first no larger than the last."""
    if number(first, start, 0, 1) > number(last, end, 0, 1):
        raise InputError(f"{first} = {start!r} lies after {last} = {end!r}: give a start before the end.")


# --- Checks as objects, for settings that come from several places: a command line, a form, JSON, a picture


@dataclass(frozen=True)
class Whole:
    """An integer in [low, high] that is a multiple of `multiple`."""

    low: int
    high: int
    multiple: int = 1

    def __call__(self, name: str, value: Any) -> int:
        """Return the value; raises `InputError` if it is out of range or not an integer."""
        found = whole(name, value, self.low, self.high)
        if found % self.multiple:
            raise InputError(f"{name} = {value!r} should be a multiple of {self.multiple}.")
        return found

    def read(self, text: str) -> int:
        """Parse a string. Raises `InputError` if it is not a valid value."""
        try:
            value = int(text)
        except ValueError:
            value = self.low - 1
        if not self.low <= value <= self.high or value % self.multiple:
            kind = f"a multiple of {self.multiple}" if self.multiple > 1 else "a whole number"
            raise InputError(f"{text!r} should be {kind} from {self.low} to {self.high}")
        return value


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high]."""

    low: float
    high: float

    def __call__(self, name: str, value: Any) -> float:
        """Return the value; raises `InputError` if it is out of range or not a number."""
        return number(name, value, self.low, self.high)

    def read(self, text: str) -> float:
        """Parse a string. Raises `InputError` if it is not a valid value."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (self.low <= value <= self.high and math.isfinite(value)):
            wanted = f"from {self.low:g} to {self.high:g}" if math.isfinite(self.high) else f"from {self.low:g}"
            raise InputError(f"{text!r} should be a number {wanted}")
        return value


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Any, ...]

    def __call__(self, name: str, value: Any) -> Any:
        """Return the value; raises `InputError` if it is not one of the options."""
        if value not in self.options:
            raise InputError(f"{name} = {value!r} should be one of {', '.join(map(str, self.options))}.")
        return value

    def read(self, text: str) -> Any:
        """Parse a string. Raises `InputError` if it is not one of the options."""
        found = next((option for option in self.options if str(option) == text), None)
        if found is None:
            raise InputError(f"{text!r} should be one of {', '.join(map(str, self.options))}")
        return found


@dataclass(frozen=True)
class Text:
    """A string of at most `most` characters."""

    most: int | None = None

    def __call__(self, name: str, value: Any) -> str:
        """Return the value; raises `InputError` if it is not a string, or too long."""
        return text(name, value, self.most)

    def read(self, text: str) -> str:
        """Return the string unchanged."""
        return text


@dataclass(frozen=True)
class FilePath(Text):
    """A file's or folder's path; on a command line with `~` for a home folder."""

    def read(self, text: str) -> str:
        """The path with its home folder written out; a slash at its end stays."""
        return os.path.expanduser(text)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def __call__(self, name: str, value: Any) -> bool:
        """Return the value; raises `InputError` if it is neither."""
        if not isinstance(value, bool):
            raise InputError(f"{name} = {value!r} should be true or false.")
        return value

    def read(self, text: str) -> bool:
        """Parse "true" or "false", in any case. Raises `InputError` for anything else."""
        return Choice(("true", "false")).read(text.lower()) == "true"


@dataclass(frozen=True)
class Wholes:
    """Integers in [low, high], each a multiple of `multiple`, such as "24,48,48"; at least one."""

    low: int
    high: int
    multiple: int = 1

    def __call__(self, name: str, value: Any) -> tuple[int, ...]:
        """Return the values; raises `InputError` if there are none, or for one that is out of range."""
        if not isinstance(value, (list, tuple)) or not value:
            raise InputError(f"{name} = {value!r} should be a list of whole numbers.")
        return tuple(Whole(self.low, self.high, self.multiple)(name, each) for each in value)

    def read(self, text: str) -> tuple[int, ...]:
        """Parse numbers with commas between them. Raises `InputError` if one is not valid."""
        return tuple(Whole(self.low, self.high, self.multiple).read(each.strip()) for each in text.split(","))


Check = Whole | Number | Choice | Text | Flag | Wholes
