"""Files on a disk: which of a folder's entries count. Needs no MLX."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def is_hidden(name: str) -> bool:
    """Whether a file is hidden: macOS's companions (`._NAME` on exFAT and SMB), .DS_Store, half-written files."""
    return name.startswith(".")


def is_companion(name: str) -> bool:
    """Whether macOS wrote a file beside others for its own use."""
    return name.startswith("._") or name == ".DS_Store"


def visible(folder: str | os.PathLike) -> list[Path]:
    """The entries of a folder that are not hidden, by name. Raises OSError."""
    return sorted(Path(folder, name) for name in os.listdir(folder) if not is_hidden(name))


def walk(folder: str | os.PathLike) -> Iterator[Path]:
    """The visible files in a folder and below, by name; a link that leads back up is followed once."""
    seen: set[str] = set()
    for root, below, names in os.walk(Path(folder), followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not is_hidden(name))
        yield from (Path(root, name) for name in sorted(names) if not is_hidden(name))
