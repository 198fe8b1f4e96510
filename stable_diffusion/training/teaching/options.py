"""The options with which a run was begun, kept next to its state: resuming it with others is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import atomic
from ...errors import InputError

FILE = "options.json"


def keep(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the options of a new run, or compare them with those that it was begun with.

    Raises `InputError` for one that differs, and OSError.
    """
    path = folder / FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        atomic.write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        return
    for name, value in json.loads(json.dumps(values)).items():
        if name in before and before[name] != value:
            raise InputError(
                f"{str(folder)!r} holds a run with {name} = {before[name]!r}, not {value!r}: repeat it with that to "
                f"resume it, or choose another --output, or delete that folder to begin again."
            )
