"""Where a checkpoint comes from: the embedded model, a folder, or the hub."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointNotFoundError, UnsupportedCheckpointError
from . import hub
from .folder import is_complete

EMBEDDED = Path(__file__).parent.parent / "checkpoints"
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def embedded_models() -> list[str]:
    """The names of the checkpoints that travel with this package."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/model_index.json"))


def locate(model: str | os.PathLike, float16: bool, progress: hub.Progress | None = None) -> tuple[str, Path]:
    """A checkpoint's name and its folder on this disk, fetched from the hub first where it is not here yet.

    `model` is an embedded model's name, a folder, or a hub id "organisation/name". Raises `CheckpointNotFoundError`,
    `UnsupportedCheckpointError` or `DownloadError`.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if name in embedded_models():
        return name, EMBEDDED / name
    if name and path.is_dir():
        return path.resolve().name, path
    if path.suffix in SINGLE_FILES:
        if not path.is_file():
            raise CheckpointNotFoundError(f"No checkpoint file at {name!r}.")
        raise UnsupportedCheckpointError(
            f"{name!r} is a single-file checkpoint, which cannot be loaded yet; give a folder in diffusers' form."
        )
    if name and path.exists():
        raise UnsupportedCheckpointError(f"{name!r} is no checkpoint: give a folder in diffusers' form or a hub id.")
    if not name.startswith((".", "/", "~")) and hub.REPOSITORY.fullmatch(name):
        folder = hub.cached_folder(name)
        if folder is None or not is_complete(folder):
            folder = hub.download(name, float16, progress)
        return name, folder
    raise CheckpointNotFoundError(
        f"No checkpoint {name!r}: it is no folder on this disk, no hub id (organisation/name), and not one of the "
        f"embedded models ({', '.join(embedded_models())})."
    )
