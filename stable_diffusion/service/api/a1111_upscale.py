"""A1111's script "SD upscale", a picture enlarged and painted over in tiles: its arguments to a `Request`'s fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointNotFoundError
from ...request import GRID
from ...upscaling import upscalers
from .errors import ApiError

NAME = "SD upscale"


def tiled(found: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """The fields of `Request` for the script; tiles have the payload's size. Raises ApiError."""
    if found.get("script_name", "").strip().lower() != NAME.lower():
        return {}
    args = found.get("script_args", [])
    if len(args) != 4 or not all(isinstance(each, int | float) for each in (args[1], args[3])):
        raise ApiError(422, f"script_args of {NAME} should be [null, overlap, upscaler, factor].")
    if not 1 <= args[3] <= 8:
        raise ApiError(422, f"script_args: the factor {args[3]} should be from 1 to 8.")
    if not 0 <= args[1] <= max(width, height) // 2:
        raise ApiError(422, f"script_args: the overlap {args[1]} should be at most half of the tile's side.")
    return {
        "by": float(args[3]),
        "upscaler": _upscaler(args[2]),
        "tile": max(width, height),
        "tile_overlap": max(GRID, int(args[1]) // GRID * GRID),
        "width": None,
        "height": None,
    }


def _upscaler(asked: Any) -> str:
    listed = [each.name for each in upscalers.all()]
    if isinstance(asked, int) and 0 <= asked < len(listed):
        return listed[asked]
    try:
        return upscalers.find(asked if isinstance(asked, str) else "").name
    except CheckpointNotFoundError as error:
        raise ApiError(422, f"script_args: {error}") from None
