"""Where files are: those of the package, and the user's folders."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

HOME_VARIABLE = "STABLE_DIFFUSION_HOME"


def packaged(*parts: str) -> Path:
    """A file or folder of the package, such as `packaged("checkpoints", "postcards-tiny")`."""
    return Path(str(resources.files(__package__).joinpath(*parts)))


def home() -> Path:
    """The folder that holds models/, loras/, embeddings/ and outputs/.

    $STABLE_DIFFUSION_HOME, else the checkout that contains this package, else (installed by pip) the current folder.
    """
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named).expanduser()
    checkout = packaged().parent
    return checkout if (checkout / "pyproject.toml").is_file() and (checkout / "webui.sh").is_file() else Path.cwd()
