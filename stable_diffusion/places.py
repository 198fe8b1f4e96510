"""Where files are: those of the package, and the user's folders."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

HOME_VARIABLE = "STABLE_DIFFUSION_HOME"
CACHE_VARIABLE = "STABLE_DIFFUSION_CACHE"
MODELS_VARIABLE = "STABLE_DIFFUSION_MODELS"


def expanded(path: str | os.PathLike) -> Path:
    """A path whose leading `~` or `~user` stands for a home folder; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


def folders_in(variable: str, several: bool = True) -> list[Path]:
    """The folders that an environment variable names, separated as in $PATH where there may be `several`."""
    named = os.environ.get(variable, "")
    return [expanded(part) for part in (named.split(os.pathsep) if several else [named]) if part]


def of_other_programs() -> list[Path]:
    """Folders that may be A1111's: those that $STABLE_DIFFUSION_MODELS names, and the two above each."""
    return list(dict.fromkeys(place for each in folders_in(MODELS_VARIABLE) for place in (each, *each.parents[:2])))


def packaged(*parts: str) -> Path:
    """A file or folder of the package, such as `packaged("checkpoints", "postcards-tiny")`."""
    return Path(str(resources.files(__package__).joinpath(*parts)))


def embedded_vaes() -> dict[str, Path]:
    """The folders of VAEs that come with the package for its models, by name."""
    files = sorted(packaged("checkpoints").glob("*/diffusion_pytorch_model.safetensors"))
    return {file.parent.name: file.parent for file in files}


def cache_folder() -> Path:
    """What may be deleted at any time: $STABLE_DIFFUSION_CACHE, or a folder of the user's cache ($XDG_CACHE_HOME)."""
    if named := folders_in(CACHE_VARIABLE, several=False):
        return named[0]
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stable-diffusion-mlx"


def home() -> Path:
    """The folder that holds models/, loras/, embeddings/ and outputs/.

    $STABLE_DIFFUSION_HOME, else the checkout that contains this package, else (installed by pip) the current folder.
    """
    if named := folders_in(HOME_VARIABLE, several=False):
        return named[0]
    checkout = packaged().parent
    return checkout if (checkout / "pyproject.toml").is_file() and (checkout / "webui.sh").is_file() else Path.cwd()
