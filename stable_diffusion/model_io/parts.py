"""Where the parts of a checkpoint folder lie: in the folder itself, or in a neighbour that shares them.

A student has the text encoder, tokenizer and VAE of its teacher. Its model_index.json may name their places instead of
holding them again: {"_parts": {"vae": "../postcards-tiny/vae"}}. Needs no MLX.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

PARTS_KEY = "_parts"  # diffusers ignores keys with an underscore


def part_folder(folder: Path, index: Mapping[str, Any], part: str) -> Path:
    """The folder of a component, such as "vae". Raises `ConfigError` for a place that is no neighbour's."""
    shared = index.get(PARTS_KEY)
    place = shared.get(part) if isinstance(shared, Mapping) else None
    if place is None:
        return folder / part
    beside = Path(os.path.abspath(folder)).parent
    found = Path(os.path.normpath(beside / folder.name / place)) if isinstance(place, str) else beside
    if not found.is_relative_to(beside) or found == beside:
        raise ConfigError(
            f"{folder / 'model_index.json'} takes its {part} from {place!r}; it should be a folder next to its own, "
            f"such as '../other-model/{part}'."
        )
    return found
