"""A recorded step as small JPEGs. Any thread may call: no model is needed."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures import arrays
from .jobs import Frame, Picture

KINDS = {"auto": "Automatic", "fast": "Approximate colours", "latents": "Latents", "full": "Full decode"}
MAX_SIDE = 512  # pixels; larger previews cost bandwidth and memory, and show nothing more
LATENTS_SIDE, COLOURS_SIDE = 256, 384  # pixels: about the size at which the panel shows them
QUALITY = 85


def latents_jpeg(latents: np.ndarray) -> bytes:
    """Encode the channels of (h, w, C) latents, two in a row."""
    scale = max(1, LATENTS_SIDE // (2 * max(latents.shape[:2])))
    return jpeg(arrays.latent_picture(latents, scale, columns=2))


def approximate_jpeg(denoised: np.ndarray, latent_space: Sequence[str]) -> bytes | None:
    """Encode a linear map of an x_0 estimate (h, w, C) to colours, or None if the latent space has no known map."""
    scale = min(8, max(1, COLOURS_SIDE // max(denoised.shape[:2])))
    picture = arrays.approximate_rgb(denoised, latent_space, scale)
    return None if picture is None else jpeg(picture)


def frame_jpeg(frame: Frame, kind: str, latent_space: Sequence[str]) -> bytes | None:
    """A step as latents or in approximate colours, or as its full decode; None if that does not exist (yet)."""
    if kind == "latents":
        return latents_jpeg(frame.latents)
    return frame.decoded if kind == "full" else approximate_jpeg(frame.denoised, latent_space)


def knows_colours(latents: np.ndarray, latent_space: Sequence[str]) -> bool:
    """Whether there is a linear map from latents (h, w, C) of this space to colours."""
    return arrays.approximate_rgb(latents[:1, :1], latent_space, 1) is not None


def data_url(data: bytes) -> str:
    """A JPEG as a data URL, which a browser shows without another request (and so without blinking)."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def small_jpeg(picture: Picture, side: int) -> bytes:
    """A finished picture within this many pixels."""
    if picture.path is None:
        return _shrunk(picture.unsaved or b"", side)
    return _shrunk_file(picture.path, picture.path.stat().st_mtime_ns, side)


@lru_cache(maxsize=4096)
def _shrunk_file(path: Path, mtime_ns: int, side: int) -> bytes:
    return _shrunk(path.read_bytes(), side)


def _shrunk(data: bytes, side: int) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return jpeg(small)


def jpeg(picture: Image.Image) -> bytes:
    """Encode a picture small."""
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
