"""Maps of numbers over a picture: resized as the reference does, and shown as a glow. Needs no MLX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# From no heat to the most; luminance rises evenly, so that it reads without colours too.
GLOW = ((12, 8, 38), (92, 22, 110), (190, 55, 82), (246, 135, 40), (252, 222, 120), (255, 252, 226))
DIMMED = 0.55  # the picture's own brightness where there is no heat
STRENGTH = 0.85  # how much of the glow covers the picture where the heat is greatest
LABEL = 18  # pixels of a caption's height
GAP = 6  # pixels between the pictures of a sheet
ROW = 5  # pictures in a row of a sheet


def resized(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps (..., h, w) at another size by bicubic interpolation (Keys 1981, a = -0.75), float32.

    As torch.nn.functional.interpolate(mode="bicubic"): corners not aligned, edges repeated, no antialiasing.
    """
    rows, columns = _weights(maps.shape[-2], height), _weights(maps.shape[-1], width)
    return (rows @ maps.astype(np.float64) @ columns.T).astype(np.float32)


def _weights(n: int, wanted: int) -> np.ndarray:
    """The matrix (wanted, n) that interpolates n samples."""
    if n == wanted:
        return np.eye(n)
    at = (np.arange(wanted) + 0.5) * n / wanted - 0.5
    first = np.floor(at).astype(int)
    matrix = np.zeros((wanted, n))
    for tap in range(-1, 3):
        distance = np.abs(at - first - tap)
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(matrix, (np.arange(wanted), np.clip(first + tap, 0, n - 1)), np.where(distance <= 1, near, far))
    return matrix


def pooled(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (..., h, w) of at most `side` numbers along each side, each the mean of a square of the given ones."""
    height, width = maps.shape[-2:]
    n = -(-max(height, width) // side)
    if n == 1:
        return maps
    edges = [(0, 0)] * (maps.ndim - 2) + [(0, -height % n), (0, -width % n)]
    whole = np.pad(maps, edges, mode="edge")
    return whole.reshape(*maps.shape[:-2], whole.shape[-2] // n, n, whole.shape[-1] // n, n).mean(axis=(-3, -1))


def levels(heat: np.ndarray) -> np.ndarray:
    """A map as 0 .. 255, from where it is weakest to where it is strongest, as the reference shows it."""
    low, high = float(heat.min()), float(heat.max())
    return np.rint((heat - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A picture, dimmed and grey, that glows where a map (h, w) is strong; relative to its range."""
    strength = levels(resized(heat, picture.height, picture.width)).astype(np.float32)[..., None] / 255
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] * DIMMED
    stops = np.linspace(0, 1, len(GLOW))
    colours = [np.interp(strength[..., 0], stops, channel) for channel in zip(*GLOW, strict=True)]
    glow, share = np.stack(colours, axis=-1), STRENGTH * strength
    return Image.fromarray(np.rint(grey * (1 - share) + glow * share).astype(np.uint8))


def sheet(picture: Image.Image, maps: Sequence[tuple[str, np.ndarray]], side: int = 256) -> Image.Image:
    """The picture, then its overlay with each of the named maps, each at most `side` pixels wide or high."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    cells = [("", small), *((name, overlay(small, heat)) for name, heat in maps)]
    columns = min(ROW, len(cells))
    wide, high = small.width + GAP, small.height + LABEL + GAP
    whole = Image.new("RGB", (columns * wide + GAP, math.ceil(len(cells) / columns) * high + GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(LABEL - 5)
    for i, (name, cell) in enumerate(cells):
        x, y = GAP + i % columns * wide, GAP + i // columns * high
        draw.text((x, y), _fitting(name, font, small.width), fill="black", font=font)
        whole.paste(cell, (x, y + LABEL))
    return whole


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    shown = name = name[:100]
    while name and font.getlength(shown) > width:
        name = name[:-1]
        shown = f"{name}…"
    return shown
