"""Conversions between arrays and pictures, contact sheets, and previews of latents.

Needs numpy and Pillow only; anything that numpy can read (MLX arrays included) is accepted as an array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError, PictureError
from ..families import RGB_FACTORS

ONE_COLOUR = "Try another seed, the model's own settings, or another VAE."  # what helps against such a picture

# --- Arrays and pictures


def to_uint8(array: Any) -> np.ndarray:
    """Values in [0, 1], clipped to it, as uint8 of the same shape: rounded, not truncated; NaN is 0."""
    values = np.nan_to_num(np.asarray(array, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def to_picture(array: Any) -> Image.Image:
    """(H, W, 3) or grey (H, W), floats in [0, 1] or uint8, to a Pillow picture; other shapes raise `PictureError`."""
    values = np.asarray(array)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] != 3):
        raise PictureError(f"An array of shape {values.shape} is not a picture; (H, W, 3) is expected.")
    return Image.fromarray(values if values.dtype == np.uint8 else to_uint8(values))


def is_one_colour(picture: Image.Image) -> bool:
    """Whether all pixels are the same: what comes out if something went wrong."""
    pixels = np.asarray(picture)
    return bool((pixels == pixels[0, 0]).all())


def grid(pictures: Iterable[Any], columns: int | None = None, gap: int = 0) -> Image.Image:
    """Several pictures (Pillow, or what `to_picture` takes) on one sheet, row by row.

    Nearly square unless `columns` is given; `gap` is in pixels. Raises `InputError` without pictures or columns.
    """
    tiles = [p if isinstance(p, Image.Image) else to_picture(p) for p in pictures]
    if not tiles or (columns is not None and columns < 1):
        raise InputError(f"A grid needs at least one picture and one column, not {len(tiles)} and {columns!r}.")
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    rows = math.ceil(len(tiles) / columns)
    width, height = max(t.width for t in tiles) + gap, max(t.height for t in tiles) + gap
    mode = "L" if all(t.mode == "L" for t in tiles) else "RGB"
    sheet = Image.new(mode, (columns * width - gap, rows * height - gap))
    for i, tile in enumerate(tiles):
        sheet.paste(tile.convert(mode), (i % columns * width, i // columns * height))
    return sheet


# --- Previews of latents

LATENT_RANGE = 3.0  # 99.7 % of unit-variance noise; fixed for all steps, so that a sequence does not flicker


def latent_picture(latents: Any, scale: int = 4, columns: int | None = None) -> Image.Image:
    """The raw channels of latents (h, w, C) as grey tiles, in one row unless `columns` is given (2: a square of four).

    -LATENT_RANGE (-3) is black and +LATENT_RANGE white. Each latent becomes `scale` x `scale` pixels.
    """
    values = _latents(latents)
    grey = to_uint8(values / (2 * LATENT_RANGE) + 0.5).repeat(scale, axis=0).repeat(scale, axis=1)
    return grid(np.moveaxis(grey, -1, 0), columns or grey.shape[-1], gap=2)


def approximate_rgb(latents: Any, family_or_model: str | Sequence[str], scale: int = 8) -> Image.Image | None:
    """A rough preview of latents (h, w, C) without the VAE: latents @ factors + bias, enlarged by `scale`.

    `family_or_model` is a key of `RGB_FACTORS`, or several, of which the first known one is used, such as
    `(sd.name, sd.family)`. Returns None if none is known, or if the number of channels differs.
    """
    values = _latents(latents)
    names = [family_or_model] if isinstance(family_or_model, str) else family_or_model
    known = next(filter(None, map(RGB_FACTORS.get, names)), None)
    if known is None or len(known[0]) != values.shape[-1]:
        return None
    factors, bias = (np.asarray(part, dtype=np.float32) for part in known)
    picture = to_picture((values @ factors + bias) / 2 + 0.5)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def _latents(latents: Any) -> np.ndarray:
    values = np.asarray(latents, dtype=np.float32)
    if values.ndim != 3:
        raise InputError(
            f"Latents of shape {values.shape} cannot be shown; (h, w, C) of a single picture are expected."
        )
    return np.nan_to_num(values, nan=0.0, posinf=LATENT_RANGE, neginf=-LATENT_RANGE)
