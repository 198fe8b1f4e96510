"""Colour profiles: pixels under an embedded ICC profile (Display P3, Adobe RGB, a press's CMYK) become sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

PROFILE = "icc_profile"  # its key in `Image.info`
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the profile's colour space
_SAME = 2  # of 255; profiles called sRGB differ that much by rounding


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, alpha unchanged, without its profile; the image itself if it has none.

    The pixels stay as they are if the profile is sRGB, is damaged, or is for another kind of image.
    """
    profile = image.info.get(PROFILE)
    if profile is None:
        return image
    image = image.copy()
    del image.info[PROFILE]
    if image.mode in ("PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    mode, transform = _transform(profile) if isinstance(profile, bytes) else ("", None)
    grey, alpha = image.mode in ("1", "L", "LA"), image.mode in ("LA", "RGBA")
    if transform is None or (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not grey):
        return image
    changed = transform.apply(image.convert(mode))
    changed.info = dict(image.info)
    if alpha:
        changed.putalpha(image.getchannel("A"))
    return changed


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[str, Any]:
    """(the mode that it takes, the way to sRGB), None for the latter if there is nothing to do."""
    from PIL import ImageCms  # few pictures need it

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space.strip(), "")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError, ImportError):
        return "", None
    if mode == "CMYK":
        return mode, transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    before = Image.fromarray(colours).convert(mode)
    change = np.asarray(transform.apply(before), np.int16) - np.asarray(before.convert("RGB"), np.int16)
    return mode, transform if np.abs(change).max() > _SAME else None
