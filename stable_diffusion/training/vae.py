"""Training the autoencoder: Auto-Encoding Variational Bayes (Kingma and Welling 2014), algorithm 1.

    z = mean + deviation * noise        (equation 10: noise is a separate input, so that gradients exist)
    loss = |x - D(z)|^2 + c |grad x - grad D(z)| + kl_weight * KL(N(mean, deviation^2) || N(0, 1))

KL is appendix B's -1/2 (1 + log s^2 - mean^2 - s^2). Its weight is so small that it only keeps the latents from
drifting apart (Rombach et al. 2022, section 3.1). The middle term compares neighbouring pixels, for sharp edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..backend import mx
from ..config import AutoencoderConfig
from ..vae import Autoencoder
from .data import Data
from .loop import Inputs, Loss
from .networks import VAE, load_autoencoder, new_autoencoder, write_part
from .recipe import Recipe
from .sheets import psnr, save_sheet

CROP = 64  # pixels per side
WHOLE_EVERY = 4  # every 4th step sees whole pictures, as in use, but a quarter as many
HELD_BACK = 10_000_000  # number of the first held-out example: measured, never trained on


class AutoencoderTask:
    """The task of the module's docstring. `folder` gets the checkpoint's vae/."""

    name = "vae"

    def __init__(
        self,
        data: Data,
        model: Autoencoder,
        folder: Path,
        batch: int,
        seed: int = 0,
        kl_weight: float = 2e-4,
        edge_weight: float = 0.1,
    ):
        self.data, self.folder, self.step_size, self.seed = data, folder, batch, seed
        self.kl_weight, self.edge_weight = kl_weight, edge_weight
        self.model = model

    def prepare(self, step: int) -> None:
        """No other network is needed."""

    def batch(self, examples: Sequence[int]) -> Inputs:
        """Crops (B, 64, 64, 3) in [-1, 1], or a quarter as many whole pictures, and the noise for their latents."""
        whole = examples[0] // self.step_size % WHOLE_EVERY == 0
        pictures, noise = [], []
        for number in examples[: max(1, len(examples) // 4)] if whole else examples:
            rng = np.random.default_rng((self.seed, number))
            picture, _ = self.data.example(number)
            if not whole and self.data.size > CROP:
                top, left = rng.integers(0, self.data.size - CROP + 1, 2)
                picture = picture[top : top + CROP, left : left + CROP]
            h = picture.shape[0] // self.model.config.downscale
            pictures.append(_to_range(picture))
            noise.append(rng.standard_normal((h, h, self.model.config.latent_channels), np.float32))
        return np.stack(pictures), np.stack(noise)

    def loss(self, x: mx.array, noise: mx.array) -> Loss:
        mean, deviation = self.model.moments(x)
        z = mean + deviation * noise
        y = self.model.decode(self.model._scale(z))
        error = (y - x).astype(mx.float32)
        squares = mx.square(error).mean()
        edges = mx.abs(error[:, 1:] - error[:, :-1]).mean() + mx.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
        variance = mx.square(deviation)
        kl = 0.5 * (mx.square(mean) + variance - 1 - mx.log(variance)).mean()
        loss = squares + self.edge_weight * edges + self.kl_weight * kl
        return loss, {"squares": squares, "edges": edges, "kl": kl}

    def look(self, path: Path) -> dict[str, float]:
        """Eight held-out pictures above their reconstructions, twice; `measured` over 64 of them."""
        pictures = self.held_back(64)
        back = np.concatenate([self._there_and_back(pictures[i : i + 8]) for i in range(0, len(pictures), 8)])
        pictures = pictures / 2 + 0.5
        save_sheet(path, [pictures[:8], back[:8], pictures[8:16], back[8:16]])
        return self.measured(pictures, back)

    def measured(self, pictures: np.ndarray, back: np.ndarray) -> dict[str, float]:
        """Figures of reconstructions of pictures, both (N, H, W, 3) in [0, 1]: PSNR in dB."""
        return {"psnr": psnr(pictures, back)}

    def export(self) -> None:
        write_part(self.folder, "vae", self.model, scaling_factor=self.scaling_factor(), sample_size=self.data.size)

    def scaling_factor(self) -> float:
        """1 / the deviation of the data's latents, which gives them unit variance (Rombach et al. 2022, appendix G)."""
        means = [self.model.moments(mx.array(self.held_back(8, i)))[0] for i in range(0, 128, 8)]
        return round(1 / float(np.concatenate([np.array(mean) for mean in means]).std()), 5)

    def held_back(self, count: int, start: int = 0) -> np.ndarray:
        """Pictures (N, H, W, 3) in [-1, 1] that are never trained on."""
        first = HELD_BACK + start
        return np.stack([_to_range(self.data.example(i)[0]) for i in range(first, first + count)])

    def _there_and_back(self, pictures: np.ndarray) -> np.ndarray:
        """Reconstruct pictures (N, H, W, 3) in [-1, 1] from the posterior's mean; returns them in [0, 1]."""
        mean, _ = self.model.moments(mx.array(pictures))
        return np.array(self.model.decode(self.model._scale(mean)).astype(mx.float32)) / 2 + 0.5


class DecoderTask(AutoencoderTask):
    """The decoder alone; the latents stay as they are, because a diffusion may have been trained on them."""

    name = "decoder"

    def __init__(self, data: Data, model: Autoencoder, folder: Path, batch: int, seed: int = 0):
        super().__init__(data, model, folder, batch, seed, kl_weight=0.0)
        model.encoder.freeze()
        if "quant_conv" in model:
            model.quant_conv.freeze()

    def scaling_factor(self) -> float:
        return self.model.config.scaling_factor


def new_task(data: Data, output: Path, recipe: Recipe, config: AutoencoderConfig = VAE) -> AutoencoderTask:
    """Train a new autoencoder of this configuration: `output` gets vae/."""
    return AutoencoderTask(data, new_autoencoder(config, recipe.seed), output, recipe.batch, recipe.seed)


def decoder_task(data: Data, output: Path, recipe: Recipe) -> DecoderTask:
    """Train the decoder of `output` further. Raises `CheckpointNotFoundError` where there is no vae/."""
    return DecoderTask(data, load_autoencoder(output / "vae"), output, recipe.batch, recipe.seed)


def _to_range(picture: np.ndarray) -> np.ndarray:
    """uint8 -> [-1, 1]."""
    return picture.astype(np.float32) / 127.5 - 1
