"""What a step looks like, as small JPEGs: the latents' channels, and the x_0 estimate decoded or mapped to RGB."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

import utils

MAX_SIDE = 512  # pixels; larger previews cost bandwidth and memory, and show nothing more
FULL_DECODE_SIDE = 160  # pixels; up to here a full decode takes a moment even on a CPU, about as long as a step
QUALITY = 85


def latents_jpeg(latents: np.ndarray) -> bytes:
    """Encode the channels of (h, w, C) latents side by side."""
    scale = max(1, MAX_SIDE // (latents.shape[1] * latents.shape[2]))
    return _jpeg(utils.latent_picture(latents, scale))


def estimate_jpeg(model: Any, denoised: Any, kind: str = "auto", finished: Image.Image | None = None) -> bytes:
    """Encode the x_0 estimate (1, h, w, C): the finished picture where there is one, else a decode or a linear map.

    kind: "full" (decode), "fast" (linear map to RGB), or "auto": full for small pictures. A full decode, too, where no
    linear map is known for the model.
    """
    if finished is not None:
        return _jpeg(finished)
    height, width = denoised.shape[1:3]
    if kind == "fast" or (kind == "auto" and max(height, width) * 8 > FULL_DECODE_SIDE):
        picture = utils.approximate_rgb(np.asarray(denoised, dtype=np.float32)[0], (model.name, model.family), 8)
        if picture is not None:
            return _jpeg(picture)
    return _jpeg(utils.to_picture(np.asarray(model.decode(denoised), dtype=np.float32)[0]))


def data_url(jpeg: bytes) -> str:
    """Put a JPEG into a URL, which a browser shows without asking the server again (and so without blinking)."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _jpeg(picture: Image.Image) -> bytes:
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
