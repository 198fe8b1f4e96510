"""What can go wrong, as a tree of exceptions.

Every message quotes the refused value and says how to fix it, so that a caller can show it unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class StableDiffusionError(Exception):
    """The base class: anything that this package refuses or cannot do."""


class BackendError(StableDiffusionError, ImportError):
    """MLX cannot be imported, or two of its libraries conflict."""


class InputError(StableDiffusionError, ValueError):
    """An argument is out of range, of the wrong type, or contradicts another."""


class SamplerError(InputError):
    """An unknown sampler, or an option that the sampler does not have."""


class PictureError(InputError):
    """A file or array is not a picture, or not one that can be used."""


class NotFiniteError(StableDiffusionError):
    """A network gave NaN or infinite numbers, so that there is no picture.

    `part` is "unet", "text" (a text encoder), "lora" or "vae". If some pictures of a batch are whole, `pictures`
    is the batch, (B, H, W, 3), with NaN in the others.
    """

    def __init__(self, message: str, part: str, pictures: Any = None):
        super().__init__(message)
        self.part = part
        self.pictures = pictures


class TrainingError(StableDiffusionError):
    """A training run cannot go on; its state is the one before, and the message says what to change."""


class CheckpointError(StableDiffusionError):
    """A checkpoint cannot be loaded. The classes below say why."""


class CheckpointNotFoundError(CheckpointError):
    """No embedded model, folder, file or hub repository of this name, or it is not downloaded yet."""


class UnsupportedCheckpointError(CheckpointError):
    """The checkpoint has another architecture, or its configuration asks for something unsupported."""


class ConfigError(CheckpointError):
    """A configuration file is missing, is not JSON, or holds an invalid value."""


class WeightsError(CheckpointError):
    """A weights file is truncated, corrupt, or lacks tensors that its configuration requires."""


class TokenizerError(CheckpointError):
    """The tokenizer's files are missing or inconsistent."""


class DownloadError(CheckpointError):
    """The hub cannot be reached, or refuses."""
