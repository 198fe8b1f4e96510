"""Sample sheets: what a model makes of a few examples, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_sheet(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write rows of pictures, (N, H, W, 3) in [0, 1] each, as a PNG."""
    lines = [np.concatenate(list(row), axis=1) for row in rows]
    Image.fromarray((np.concatenate(lines).clip(0, 1) * 255).round().astype(np.uint8)).save(path, optimize=True)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """The mean peak signal-to-noise ratio in dB of pictures (N, H, W, 3) in [0, 1]: mean of -10 log10 MSE."""
    errors = np.square(a.clip(0, 1) - b.clip(0, 1)).mean(axis=(1, 2, 3))
    return float(-10 * np.log10(errors).mean())
