"""Training a classifier of noisy latents (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4).

    x_0 ~ data with labels y,  t ~ uniform,  eps ~ N(0, 1),  loss = -log p(y | x_t, t),  summed over the attributes

x_t is as in diffusion.py, so that the classifier can read what the diffusion has made at any of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..backend import mx, nn
from ..guides.classifier import ClassifierConfig, LatentClassifier, probe_of, probe_picture, save
from ..places import packaged
from ..vae import Autoencoder
from .attributes import Attributed
from .latents import SHARD, LatentCache
from .loop import Inputs, Loss
from .networks import SCHEDULER, load_autoencoder
from .recipe import Recipe
from .runs import STATES
from .sheets import save_sheet

FIRST_SHARDS, STEPS_PER_SHARD, MOST_SHARDS = 8, 500, 40  # of latents, as in diffusion.py
WATCHED = 250  # examples that are kept from the training, to be looked at
WATCHED_TIMES = (0, 200, 400, 600, 800, 999)
CELL = 12  # pixels of a sheet's cell


class ClassifierTask:
    """The task of the module's docstring. `folder` gets the model."""

    name = "classifier"

    def __init__(
        self, cache: LatentCache, data: Attributed, model: LatentClassifier, folder: Path, batch: int, seed: int = 0
    ):
        self.cache, self.data, self.model, self.folder = cache, data, model, folder
        self.batch_size, self.seed = batch, seed
        self.alpha_bars = model.config.schedule().alpha_bars
        self.watched = WATCHED if cache.limit is None else min(WATCHED, cache.limit // 10)  # the first ones

    def prepare(self, step: int) -> None:
        self.cache.grow(self.available(step))

    def batch(self, examples: Sequence[int]) -> Inputs:
        """x_0 and eps (B, h, w, C), t (B,), and labels (B, attributes)."""
        step = examples[0] // self.batch_size
        rows = []
        for number in examples:
            rng = np.random.default_rng((self.seed, number))
            index = int(rng.integers(self.watched, self.available(step)))
            mean, deviation = self.cache.posterior(index)
            x_0 = mean + deviation * rng.standard_normal(mean.shape, np.float32)
            eps = rng.standard_normal(mean.shape, np.float32)
            rows.append((x_0, eps, rng.integers(len(self.alpha_bars)), self.data.labels(index)))
        return tuple(np.stack(each) for each in zip(*rows, strict=True))

    def loss(self, x_0: mx.array, eps: mx.array, t: mx.array, labels: mx.array) -> Loss:
        logits = self._logits(x_0, eps, t)
        losses = {
            name: nn.losses.cross_entropy(logits[name], labels[:, i], reduction="mean") for i, name in enumerate(logits)
        }
        return sum(losses.values(), mx.array(0.0)), losses

    def look(self, path: Path) -> dict[str, float]:
        """Write how often each attribute is read correctly at several times, of examples that are not learnt from.

        A row for each attribute, a column for each time, white where all are right. The figures are of t = 0 and 400.
        """
        rng = np.random.default_rng((self.seed, 3))
        count = self.watched
        if not count:
            return {}
        means = np.stack([self.cache.posterior(i)[0] for i in range(count)])
        labels = np.array([self.data.labels(i) for i in range(count)])
        eps = rng.standard_normal(means.shape, np.float32)
        shares = np.zeros((len(self.data.heads), len(WATCHED_TIMES)))
        figures = {}
        for column, t in enumerate(WATCHED_TIMES):
            logits = self._logits(mx.array(means), mx.array(eps), mx.full((count,), t))
            for row, (name, values) in enumerate(logits.items()):
                shares[row, column] = (np.array(values).argmax(-1) == labels[:, row]).mean()
                if t in (0, 400):
                    figures[f"{name}_at_{t}"] = float(shares[row, column])
        cells = np.kron(shares, np.ones((CELL, CELL)))
        save_sheet(path, [np.repeat(cells[None, :, :, None], 3, axis=3)])
        return figures

    def export(self) -> None:
        save(self.model, self.folder)

    def available(self, step: int) -> int:
        """How many examples there are at a step: the cache grows on a fixed schedule, the same in every run."""
        count = SHARD * min(MOST_SHARDS, FIRST_SHARDS + step // STEPS_PER_SHARD)
        return min(count, self.cache.limit or count)

    def _logits(self, x_0: mx.array, eps: mx.array, t: mx.array) -> dict[str, mx.array]:
        alpha_bar = mx.array(self.alpha_bars)[t][:, None, None, None]
        x_t = mx.sqrt(alpha_bar) * x_0 + mx.sqrt(1 - alpha_bar) * eps
        return self.model(x_t.astype(self.model.conv_in.weight.dtype), t.astype(mx.float32))


def new_task(
    data: Attributed,
    output: Path,
    recipe: Recipe,
    vae: str | Path | None = None,
    widths: Sequence[int] = ClassifierConfig.widths,
) -> ClassifierTask:
    """Train a new classifier of the latents of a VAE: `output` gets its weights and configuration.

    `vae` is a vae/ folder, by default the embedded model's. Raises `CheckpointNotFoundError` where there is none.
    """
    autoencoder = load_autoencoder(Path(vae or packaged("checkpoints", "postcards-tiny", "vae")))
    config = ClassifierConfig(
        data.heads, autoencoder.config.latent_channels, tuple(widths), SCHEDULER, _probe(autoencoder)
    )
    cache = LatentCache(data, autoencoder, None, output / STATES / "latents")
    mx.random.seed(recipe.seed)
    return ClassifierTask(cache, data, LatentClassifier(config), output, recipe.batch, recipe.seed)


def _probe(vae: Autoencoder) -> tuple[float, ...]:
    mean, _ = vae.moments(mx.array(probe_picture())[None])
    return probe_of(np.array(mean[0].astype(mx.float32)) * vae.config.scaling_factor)
