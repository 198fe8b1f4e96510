"""Settings saved by name in one JSON file."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import atomic
from ..errors import InputError

MAX_NAME = 60
MAX_PRESETS = 200

_lock = threading.Lock()


def load(path: Path) -> dict[str, dict[str, Any]]:
    """All presets by name; empty if the file is missing or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in values.items() if isinstance(v, dict)} if isinstance(values, dict) else {}


def save(path: Path, name: str, values: Mapping[str, Any]) -> None:
    """Save settings under a name, replacing earlier ones. Raises InputError for a bad name, and OSError."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(f"{name[:MAX_NAME]!r} is not a valid name for a preset: use 1 to {MAX_NAME} characters.")
    with _lock:
        presets = load(path)
        if name not in presets and len(presets) >= MAX_PRESETS:
            raise InputError(f"There are {MAX_PRESETS} presets already: delete one first.")
        _write(path, presets | {name: dict(values)})


def delete(path: Path, name: str) -> None:
    """Delete a preset if it exists. Raises OSError."""
    with _lock:
        presets = load(path)
        if presets.pop(name, None) is not None:
            _write(path, presets)


def _write(path: Path, presets: Mapping[str, Any]) -> None:
    atomic.write_whole(path, json.dumps(presets, indent=1))
