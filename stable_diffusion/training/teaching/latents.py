"""The pictures' latents, computed when a step first needs them and kept next to the run's state."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ... import atomic, ops
from ...backend import mx
from ...vae import Autoencoder
from .pictures import Size, TaughtPicture

FOLDER = "latents"


class PictureLatents:
    """The autoencoder's posteriors of pictures at bucket sizes; a mirrored picture has its own."""

    def __init__(self, vae: Autoencoder, model: str, folder: Path):
        self.vae, self.model, self.folder = vae, model, folder / FOLDER
        self._held: dict[tuple[TaughtPicture, Size, bool], tuple[np.ndarray, np.ndarray]] = {}

    def prepare(self, picture: TaughtPicture, size: Size, mirrored: bool) -> None:
        """Compute a picture's posterior, or read what an earlier session wrote. Raises `PictureError` and OSError."""
        wanted = picture, size, mirrored
        if wanted in self._held:
            return
        text = f"{self.model}|{picture.path.name}|{picture.stamp}|{size}|{mirrored}"
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
        if path.is_file():
            with np.load(path) as file:
                self._held[wanted] = file["mean"], file["deviation"]
            return
        with ops.use("usual"):
            moments = self.vae.moments(mx.array(picture.pixels(size, mirrored))[None])
            mean, deviation = (np.array(each[0]) for each in moments)
        with atomic.written(path) as temporary:
            np.savez(temporary, mean=mean, deviation=deviation)
        self._held[wanted] = mean, deviation

    def sample(self, picture: TaughtPicture, size: Size, mirrored: bool, noise: np.ndarray) -> np.ndarray:
        """Scaled latents (h, w, C) of a prepared picture: a sample of the posterior with unit noise. No MLX."""
        mean, deviation = self._held[picture, size, mirrored]
        return self.scaled(mean + deviation * noise)

    def scaled(self, z: np.ndarray) -> np.ndarray:
        """`Autoencoder._scale` without MLX."""
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            z = (z - np.array(config.latents_mean, np.float32)) / np.array(config.latents_std, np.float32)
        else:
            z = z - np.float32(config.shift_factor or 0.0)
        return (z * np.float32(config.scaling_factor)).astype(np.float32)

    def shape(self, size: Size) -> tuple[int, int, int]:
        """(h, w, C) of a bucket's latents."""
        width, height = size
        return height // self.vae.config.downscale, width // self.vae.config.downscale, self.vae.config.latent_channels
