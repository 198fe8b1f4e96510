"""The fields of requests as tables: what becomes of each, and how a value of it is read.

The routes check what they get against these tables; docs/http.md and /openapi.json are made from them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ApiError

HONOURED, IGNORED, REFUSED = "honoured", "ignored", "refused"
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
MAX_DIGITS = 30


@dataclass(frozen=True)
class Field:
    """One field: its name, JSON's type, what becomes of it, and a note for the documentation.

    A refused one may still have the values that change nothing: those that are empty, zero or false, and `harmless`.
    """

    name: str
    type: str
    note: str = ""
    status: str = HONOURED
    harmless: tuple[Any, ...] = ()
    required: bool = False

    def read(self, value: Any) -> Any:
        """A value in JSON's type; numbers may be spelt as strings. Raises ApiError 422."""
        if self.status == IGNORED:
            return value
        if self.status == REFUSED:
            if value and value not in self.harmless:
                why = f": {self.note}" if self.note else ""
                raise ApiError(422, f"{self.name} = {reprlib.repr(value)} is not supported{why}.")
            return value
        found = _converted(value, self.type)
        if found is None:
            raise ApiError(422, f"{self.name} = {reprlib.repr(value)} should be of type {self.type}.")
        return found


def read_fields(values: Mapping[str, Any], fields: Iterable[Field]) -> dict[str, Any]:
    """The honoured values by name, None and unknown names left out. Raises ApiError 422 for what is refused."""
    found = {}
    for field in fields:
        value = values.get(field.name)
        if value is None:
            if field.required:
                raise ApiError(422, f"{field.name} is missing.")
            continue
        read = field.read(value)
        if field.status == HONOURED:
            found[field.name] = read
    return found


def _converted(value: Any, kind: str) -> Any:
    if isinstance(value, bool):
        return value if kind == "boolean" else int(value) if kind == "integer" else None
    if kind == "boolean":
        if isinstance(value, str):
            return {"true": True, "false": False, "1": True, "0": False}.get(value.lower())
        return bool(value) if value in (0, 1) else None
    if kind in ("integer", "number") and isinstance(value, str):
        try:
            value = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value) else float(value)
        except ValueError:
            return None
    if kind == "integer" and isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if kind == "integer" and isinstance(value, int) and len(str(value)) > MAX_DIGITS:
        return None
    return value if isinstance(value, TYPES[kind]) else None
