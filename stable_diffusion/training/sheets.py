"""Sample sheets, which show what a model makes of a few examples, and loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .. import atomic


def save_sheet(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write rows of pictures, (N, H, W, 3) in [0, 1] each, as a PNG."""
    lines = [np.concatenate(list(row), axis=1) for row in rows]
    _save(Image.fromarray((np.concatenate(lines).clip(0, 1) * 255).round().astype(np.uint8)), path)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """The mean peak signal-to-noise ratio in dB of pictures (N, H, W, 3) in [0, 1]: mean of -10 log10 MSE."""
    errors = np.square(a.clip(0, 1) - b.clip(0, 1)).mean(axis=(1, 2, 3))
    return float(-10 * np.log10(errors).mean())


def save_curve(path: Path, steps: Sequence[float], values: Sequence[float], title: str) -> None:
    """Write a curve over steps as a PNG: each value, and a moving mean over a twentieth of the steps; log scale."""
    width, height, left, margin = 640, 240, 56, 28
    y = np.log10(np.maximum(values, 1e-12))
    low, high = y.min(), max(y.max(), y.min() + 1e-3)
    x = np.asarray(steps, float) / max(steps[-1], 1)

    def points(y: np.ndarray) -> list[tuple[float, float]]:
        right, bottom = left + x * (width - left - margin), height - margin
        return list(zip(right.tolist(), (bottom - (y - low) / (high - low) * (bottom - margin)).tolist(), strict=True))

    reach = max(1, len(y) // 40)
    smooth = np.array([y[max(0, i - reach) : i + reach + 1].mean() for i in range(len(y))])
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, margin, width - margin, height - margin), outline=(200, 200, 200))
    draw.line(points(y), fill=(180, 200, 230), width=1)
    draw.line(points(smooth), fill=(30, 80, 160), width=2)
    draw.text((left, 8), title, fill="black")
    draw.text((4, margin - 5), f"{10**high:.3g}", fill="black")
    draw.text((4, height - margin - 6), f"{10**low:.3g}", fill="black")
    draw.text((left, height - margin + 6), "0", fill="black")
    draw.text((width - margin - 60, height - margin + 6), f"step {steps[-1]:.0f}", fill="black")
    _save(picture, path)


def _save(picture: Image.Image, path: Path) -> None:
    with atomic.written(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)
