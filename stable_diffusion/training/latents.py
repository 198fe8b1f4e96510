"""What the diffusion is trained on: captions, and the autoencoder's posteriors of pictures, computed once and cached.

They come in shards of 500, one file each. Shards are added while the training runs, so that it starts soon.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import atomic
from ..backend import mx
from ..text.tokenizer import Tokenizer
from ..vae import Autoencoder

SHARD = 500
TOGETHER = 4  # pictures per call of the autoencoder


class Pictures(Protocol):
    """Pictures with captions, by number, as data.py and attributes.py have them."""

    size: int

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]: ...


class LatentCache:
    """Cached examples; shard i holds those from 500 i on. Captions are kept only with a tokenizer."""

    def __init__(self, data: Pictures, vae: Autoencoder, tokenizer: Tokenizer | None, folder: Path):
        self.data, self.vae, self.folder = data, vae, folder
        self.tokenizer: Any = tokenizer  # None where no task reads captions
        self._shards: list[dict[str, np.ndarray]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def limit(self) -> int | None:
        """How many examples there are; None for endless data."""
        return len(self.data) if isinstance(self.data, Sized) else None

    def grow(self, count: int) -> None:
        """Make at least the first `count` examples available."""
        while SHARD * len(self._shards) < count:
            self._shards.append(self._shard(len(self._shards)))

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scaled posterior's mean and deviation, (h, w, C) float32 each, and the caption's ids (77,)."""
        return *self.posterior(index), self._shards[index // SHARD]["ids"][index % SHARD]

    def posterior(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The scaled posterior's mean and deviation, (h, w, C) float32 each."""
        shard, i = self._shards[index // SHARD], index % SHARD
        scale = self.vae.config.scaling_factor
        return shard["mean"][i] * scale, shard["deviation"][i].astype(np.float32) * scale

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        path = self.folder / f"{number:04d}.npz"
        if not path.is_file():
            first = SHARD * number
            past = first + SHARD if self.limit is None else min(first + SHARD, self.limit)
            posteriors, captions = [], []
            for i in range(first, past, TOGETHER):
                pictures, texts = self.data.batch(range(i, min(i + TOGETHER, past)))
                moments = self.vae.moments(mx.array(pictures.astype(np.float32) / 127.5 - 1))
                posteriors.append([np.array(part.astype(mx.float32)) for part in moments])
                captions += texts
            mean, deviation = (np.concatenate(part) for part in zip(*posteriors, strict=True))
            ids: dict[str, Any] = {} if self.tokenizer is None else {"ids": self.tokenizer(captions)[0]}
            with atomic.written(path) as temporary:
                np.savez(temporary, mean=mean, deviation=deviation.astype(np.float16), **ids)
        with np.load(path) as file:
            return dict(file)
