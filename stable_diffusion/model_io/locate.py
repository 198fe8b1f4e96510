"""Where a checkpoint comes from: the embedded model, a folder, a single file, or the hub."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

from .. import backend
from ..backend import mx
from ..config import UNET_PREDICTIONS
from ..errors import CheckpointNotFoundError, InputError, UnsupportedCheckpointError
from ..places import expanded, packaged
from . import hub, moved
from .checkpoint import Checkpoint
from .load_file import load_single_file
from .load_folder import load_folder, read_index

EMBEDDED = packaged("checkpoints")


def load(
    path: Path,
    dtype: mx.Dtype,
    progress: hub.Progress | None = None,
    check_values: bool = False,
    prediction_type: str | None = None,
    half_unet: bool = False,
    other_vae: bool = False,
) -> Checkpoint:
    """Load a folder or a single file; `prediction_type` overrides the file's.

    `half_unet` keeps in float16 those weights of the U-Net that are float16 in the file, whatever the `dtype`. With
    `other_vae` the caller has another VAE: the checkpoint's own gets no weights, and may be missing.

    Raises `InputError` for an unknown prediction type, and subclasses of `CheckpointError`.
    """
    if prediction_type not in (None, *UNET_PREDICTIONS):
        raise InputError(
            f"prediction_type = {prediction_type!r} should be one of {', '.join(UNET_PREDICTIONS)}, or None."
        )
    backend.prepare()
    if not path.is_dir():
        return load_single_file(path, dtype, progress, check_values, prediction_type, half_unet, other_vae)
    checkpoint = load_folder(path, dtype, progress, check_values, half_unet, other_vae)
    if prediction_type:
        scheduler = dataclasses.replace(checkpoint.scheduler, prediction_type=prediction_type)
        checkpoint = dataclasses.replace(checkpoint, scheduler=scheduler)
    return checkpoint


def embedded_models() -> list[str]:
    """The names of the checkpoints that come with this package."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/model_index.json"))


def locate(model: str | os.PathLike, float16: bool, progress: hub.Progress | None = None) -> tuple[str, Path]:
    """A checkpoint's name and its folder or file on this disk, fetched from the hub if necessary.

    `model` is an embedded model's name, a folder, a single file, or a hub id "organisation/name". Raises
    `CheckpointNotFoundError`, `UnsupportedCheckpointError` or `DownloadError`.
    """
    name = os.fspath(model)
    path = expanded(name)
    if name in embedded_models():
        return name, EMBEDDED / name
    if name and path.is_dir():
        return path.resolve().name, path
    if path.suffix in hub.SINGLE_FILES:
        if not path.exists():
            raise CheckpointNotFoundError(f"No checkpoint file at {name!r}.")
        return path.stem, path
    if name and path.exists():
        raise UnsupportedCheckpointError(
            f"{name!r} is not a checkpoint: give a folder in diffusers' form, a file ending in "
            f"{', '.join(hub.SINGLE_FILES)}, or a hub id."
        )
    if not name.startswith((".", "/", "~")) and hub.REPOSITORY.fullmatch(name):
        folder = hub.cached_folder(name)
        if folder is not None and hub.is_complete(folder):
            return name, folder
        if new := moved.now_at(name):
            warnings.warn(moved.note(name), stacklevel=3)
            return locate(new, float16, progress)
        return name, hub.download(name, float16, progress, read_index)
    raise CheckpointNotFoundError(
        f"No checkpoint {name!r}: it is neither a folder on this disk, nor a hub id (organisation/name), nor one of "
        f"the embedded models ({', '.join(embedded_models())})."
    )
