"""Where files lie: those that come with the package, and the folders of the person who runs it."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

HOME_VARIABLE = "STABLE_DIFFUSION_HOME"
CACHE_VARIABLE = "STABLE_DIFFUSION_CACHE"


def packaged(*parts: str) -> Path:
    """A file or folder that comes with the package, such as `packaged("checkpoints", "postcards-tiny")`."""
    return Path(str(resources.files(__package__).joinpath(*parts)))


def cache_folder() -> Path:
    """What may be deleted at any time: $STABLE_DIFFUSION_CACHE, or a folder of the user's cache ($XDG_CACHE_HOME)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stable-diffusion-mlx"


def home() -> Path:
    """The folder that holds models/, loras/, embeddings/ and outputs/.

    $STABLE_DIFFUSION_HOME, else the checkout that this package is part of, else (installed by pip) the current folder.
    """
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named).expanduser()
    checkout = packaged().parent
    return checkout if (checkout / "pyproject.toml").is_file() and (checkout / "webui.sh").is_file() else Path.cwd()
