"""Reading pictures: any file or PIL image -> RGB of the right size -> an array in [-1, 1]."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import PictureError
from . import FITS, exif
from .colour import PROFILE, to_srgb
from .formats import BY_KEY, FORMATS, titles

MAX_PIXELS = 64_000_000  # more than phone cameras take, far less than a forged header can claim
_TURNS = {  # by EXIF's Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: str | os.PathLike | bytes | IO[bytes], under: str | None = "white") -> Image.Image:
    """Open a picture file as upright RGB, alpha over the colour `under` (black for masks; None keeps it, as RGBA).

    `source` is a path, the file's bytes, or an open binary file. Raises `PictureError` if it is not a picture, is
    truncated, or has more than `MAX_PIXELS` pixels; the size is checked in the header, before decoding.
    """
    name = "the picture"
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        name = repr(str(source))
        if not Path(source).is_file():
            raise PictureError(f"No picture file at {name}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=pillow_formats())
        _check_size(image, name)
        image.load()
        return to_rgb_or_rgba(image) if under is None else to_rgb(image, under)
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture that can be read: {titles()}.") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: {error}") from None
    except PictureError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds
        raise PictureError(f"{name} cannot be read, it may be truncated or damaged: {error}") from None


def pillow_formats() -> list[str]:
    """Pillow's names of the formats that are read; registers the optional one."""
    if "heic" in BY_KEY:
        import pi_heif

        pi_heif.register_heif_opener()
    return [each.pillow for each in FORMATS]


def to_rgb(image: Image.Image, under: str = "white") -> Image.Image:
    """Any PIL image as 8-bit sRGB: turned upright, ICC profile and alpha (over `under`) applied, 16 bits scaled to 8.

    It is a new image without metadata.
    """
    image = to_rgb_or_rgba(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, under), image).convert("RGB")
    return image


def to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    """As `to_rgb`, but transparency of any kind is kept, as RGBA."""
    image.load()  # a PNG may have metadata after its pixels
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        profile = image.info.get(PROFILE)
        image = Image.fromarray(_eight_bits(np.asarray(image)))
        image.info = {} if profile is None else {PROFILE: profile}
    image = to_srgb(image)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")  # a copy if it is that already
    image.info = {}
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned as its metadata says; how it is turned must not be read twice."""
    method = _TURNS.get(exif.orientation(image.info))
    if method is None:
        return image
    turned = image.transpose(method)
    for key in exif.KEYS:
        turned.info.pop(key, None)
    return turned


def from_array(array: np.ndarray, alpha: bool = False) -> Image.Image:
    """A uint8 array (H, W, 3), (H, W, 4), (H, W, 1) or (H, W) as RGB, or with `alpha` four channels as RGBA.

    Raises `PictureError` for anything else.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise PictureError(
            f"An input picture should be a PIL image or a uint8 array (H, W, 3); "
            f"this is an array of {array.dtype} and shape {array.shape}."
        )
    if 0 in array.shape:
        raise PictureError(f"The input picture is empty: its shape is {array.shape}.")
    image = Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    return to_rgb_or_rgba(image) if alpha else to_rgb(image)


def fit(image: Image.Image, width: int, height: int, how: str = "crop") -> Image.Image:
    """Bring an RGB image to (width, height) with Lanczos' filter.

    `how`: "crop" fills the size and crops the rest, "pad" shows all of it on white, "stretch" distorts it.
    """
    if how not in FITS:
        raise PictureError(f"how = {how!r} should be one of {', '.join(FITS)}.")
    if image.size == (width, height):
        return image
    if how == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if how == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color="white")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def as_picture(image: Any, alpha: bool = False) -> Image.Image:
    """A PIL image or uint8 array as RGB, or with `alpha` as RGBA where it has transparency.

    Raises `PictureError` for anything else.
    """
    if isinstance(image, Image.Image):
        _check_size(image, "the input picture")
        try:
            return to_rgb_or_rgba(image) if alpha else to_rgb(image)
        except Exception as error:
            raise PictureError(f"The input picture cannot be read: {error}") from None
    if isinstance(image, np.ndarray):
        return from_array(image, alpha)
    raise PictureError(
        f"An input picture should be a PIL image or a uint8 array (H, W, 3), not {type(image).__name__}. "
        "stable_diffusion.open_picture opens a file."
    )


def as_input(image: Any, width: int, height: int, how: str = "crop") -> np.ndarray:
    """A PIL image or uint8 array as input for the autoencoder: (height, width, 3) float32 in [-1, 1]."""
    return np.asarray(fit(as_picture(image), width, height, how), np.float32) / 127.5 - 1.0


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million; make it smaller."
        )
    if not width or not height:
        raise PictureError(f"{name} is empty: {width} x {height} pixels.")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit integers (Pillow's modes I;16 and I) and floats in [0, 1] (mode F) to 8 bits, rounded."""
    scaled = values * 255.0 if values.dtype.kind == "f" else values / 257.0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
