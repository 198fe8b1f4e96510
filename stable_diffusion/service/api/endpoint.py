"""One route of the API, as its table has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import Handler, a1111_error
from .fields import Field


@dataclass(frozen=True)
class Endpoint:
    """A route: its method, path, handler, and the fields of its body."""

    method: str
    path: str
    handle: Handler
    fields: tuple[Field, ...] = ()
    error: Callable[[int, str], Any] = a1111_error
    multipart: bool = False

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return (self.handle.__doc__ or "").strip().partition("\n")[0]
