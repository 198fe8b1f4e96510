"""Writes docs/api.md from the public names and their docstrings: `python scripts/api_docs.py`.

A test compares the file with this script's output.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import stable_diffusion  # noqa: E402

HEAD = """\
# The library

Everything public in `stable_diffusion`. This file is made from the docstrings by `python scripts/api_docs.py`;
[examples/](../examples/) has scripts that use it.
"""


def document() -> str:
    """The whole file."""
    found = {name: getattr(stable_diffusion, name) for name in stable_diffusion.__all__}
    errors = {name: value for name, value in found.items() if inspect.isclass(value) and issubclass(value, Exception)}
    parts = [HEAD]
    for name, value in found.items():
        if name not in errors:
            parts += (
                _class(name, value) if inspect.isclass(value) else [_function(f"## `{name}{_signature(value)}`", value)]
            )
    parts.append("## Errors\n\nEach message quotes the refused value and says what to do.\n")
    parts.append("".join(_error(name, value) for name, value in errors.items()))
    return "\n".join(parts)


def _class(name: str, value: type) -> list[str]:
    fields = [field for field in dataclasses.fields(value) if field.repr] if dataclasses.is_dataclass(value) else []
    parts = [_function(f"## `{name}{_signature(value)}`", value)]
    if fields and all(field.name not in _signature(value) for field in fields):
        parts.append("Fields: " + ", ".join(f"`{field.name}`" for field in fields) + ".\n")
    own_bases = [base for base in value.__mro__ if base.__module__.startswith("stable_diffusion")]
    members = {member: own for base in reversed(own_bases) for member, own in vars(base).items()}
    for member, own in members.items():
        if member.startswith("_"):
            continue
        if isinstance(own, property):
            parts.append(_function(f"### `{name}.{member}`", own.fget))
        elif inspect.isfunction(own):
            parts.append(_function(f"### `{name}.{member}{_signature(own)}`", own))
        elif isinstance(own, classmethod):
            parts.append(_function(f"### `{name}.{member}{_signature(getattr(value, member))}`", own.__func__))
    return parts


def _error(name: str, value: type[Exception]) -> str:
    bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
    return f"- `{name}` ({bases}): {' '.join((inspect.getdoc(value) or '').split())}\n"


def _function(heading: str, value: Any) -> str:
    return f"{heading}\n\n{inspect.getdoc(value) or ''}\n"


def _signature(value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    kept = [each for name, each in signature.parameters.items() if name != "self"]
    shown = str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))
    return re.sub(r": '([^']*)'", r": \1", shown)  # annotations are strings


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(document(), encoding="utf-8")
