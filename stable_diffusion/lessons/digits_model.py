"""The small model of digits that the lessons run: trained with `train ddpm`, 0.8 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..places import packaged
from ..training.ddpm import DDPMConfig
from ..training.digits import draw

if TYPE_CHECKING:
    from ..training.ddpm import PixelUNet

FOLDER = packaged("checkpoints", "digits")
CONFIG = DDPMConfig(labels=tuple("0123456789"))  # what it was trained with


def load() -> PixelUNet:
    """The model, in the thread that asks for it."""
    from ..backend import prepare
    from ..training.ddpm_run import load

    prepare()
    return load(FOLDER)


def a_digit(label: int, seed: int = 1) -> np.ndarray:
    """A drawn digit that the training never saw, (28, 28, 1) in [-1, 1]."""
    return draw(label, CONFIG.size, np.random.default_rng((seed, label, 1))).astype(np.float64) / 127.5 - 1
