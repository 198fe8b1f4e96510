"""The noise of a picture in a safetensors file, with what it was found with: see diffusion/inversion.py."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .. import atomic
from ..errors import InputError

KEY, METADATA = "latents", "inversion"


@dataclass(frozen=True)
class NoiseFile:
    """Unit normal noise (1, h, w, C), float32, and the text, model and steps of the inversion that found it."""

    latents: np.ndarray
    text: str
    model: str
    steps: int

    def save(self, path: str | os.PathLike) -> Path:
        """Write it whole, replacing an existing file."""
        about = {key: value for key, value in asdict(self).items() if key != KEY}
        data = save({KEY: np.asarray(self.latents, np.float32)}, {METADATA: json.dumps(about)})
        atomic.write_whole(Path(path), data)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> NoiseFile:
        """Read what `save` wrote. Raises `InputError` for any other file."""
        try:
            with safe_open(path, framework="numpy") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
                return cls(file.get_tensor(KEY), str(about["text"]), str(about["model"]), int(about["steps"]))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{os.fspath(path)!r} is not the noise of a picture ({error}): make it with "
                f"`stable-diffusion invert PICTURE CAPTION --output FILE`."
            ) from None
