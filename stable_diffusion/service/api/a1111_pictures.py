"""Pictures without a model, as A1111 has them: their parameters, and enlarging them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps
from starlette.requests import Request as HttpRequest

from ...errors import PictureError
from ...record.parameters import Parameters
from . import bodies, painting
from .a1111_lists import RESIZING
from .errors import ApiError
from .fields import IGNORED, REFUSED, Field, read_fields

MAX_PIXELS = 8192 * 8192 // 2  # of an enlarged picture
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
INFO_FIELDS = (Field("image", "string", "a picture in base64", required=True),)
_SIZE_FIELDS = (
    Field("resize_mode", "integer", "0 by upscaling_resize, 1 to upscaling_resize_w x upscaling_resize_h"),
    Field("upscaling_resize", "number", "the factor; default: 2"),
    Field("upscaling_resize_w", "integer", "pixels; default: 512"),
    Field("upscaling_resize_h", "integer", "pixels; default: 512"),
    Field("upscaling_crop", "boolean", "with resize_mode 1: true crops to that size, false keeps the whole picture"),
    Field("upscaler_1", "string", "one that /sdapi/v1/upscalers lists; None leaves the picture as it is"),
    Field("upscaler_2", "string", "another one to mix in"),
    Field("extras_upscaler_2_visibility", "number", "how much of that, from 0 to 1"),
    Field("gfpgan_visibility", "number", "there is no face restoration", REFUSED),
    Field("codeformer_visibility", "number", "there is no face restoration", REFUSED),
    Field("codeformer_weight", "number", "", IGNORED),
    Field("upscale_first", "boolean", "", IGNORED),
    Field("show_extras_results", "boolean", "", IGNORED),
)
EXTRA_FIELDS = (Field("image", "string", "a picture in base64", required=True), *_SIZE_FIELDS)
BATCH_FIELDS = (Field("imageList", "array", "objects with data, a picture in base64, and name", required=True),
                *_SIZE_FIELDS)  # fmt: skip


async def png_info(http: HttpRequest) -> dict[str, Any]:
    """The parameters inside a picture."""
    payload = await bodies.read_json(http)
    return await bodies.in_thread(_png_info, payload)


def _png_info(payload: Mapping[str, Any]) -> dict[str, Any]:
    data = bodies.decoded(read_fields(payload, INFO_FIELDS)["image"])
    bodies.opened(data)
    try:
        text = painting.text_of(data)
    except PictureError:
        text = ""
    return {"info": text, "items": {"parameters": text} if text else {}, "parameters": _named(text) if text else {}}


def _named(text: str) -> dict[str, str]:
    """Parameters by A1111's names."""
    said = Parameters.from_text(text)
    pairs = {
        "Prompt": said.prompt,
        "Negative prompt": said.negative,
        "Steps": said.steps,
        "Sampler": said.sampler,
        "Schedule type": said.schedule,
        "CFG scale": said.cfg,
        "Seed": said.seed,
        "Size-1": said.width,
        "Size-2": said.height,
        "Model hash": said.model_hash,
        "Model": said.model,
        "Denoising strength": said.strength,
    }
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in pairs.items()
            if value is not None} | said.extra  # fmt: skip


async def extra_single(http: HttpRequest) -> dict[str, Any]:
    """Enlarge one picture."""
    payload = await bodies.read_json(http)
    return await bodies.in_thread(_extra_single, payload)


async def extra_batch(http: HttpRequest) -> dict[str, Any]:
    """Enlarge several pictures."""
    payload = await bodies.read_json(http)
    return await bodies.in_thread(_extra_batch, payload)


def _extra_single(payload: Mapping[str, Any]) -> dict[str, Any]:
    asked = read_fields(payload, EXTRA_FIELDS)
    return {"html_info": "", "image": _enlarged(asked["image"], "image", asked)}


def _extra_batch(payload: Mapping[str, Any]) -> dict[str, Any]:
    asked = read_fields(payload, BATCH_FIELDS)
    if len(asked["imageList"]) > bodies.MAX_PICTURES:
        raise ApiError(422, f"imageList has more than {bodies.MAX_PICTURES} pictures.")
    pictures = []
    for i, entry in enumerate(asked["imageList"]):
        data = entry.get("data") if isinstance(entry, dict) else None
        pictures.append(_enlarged(data, f"imageList[{i}].data", asked))
    return {"html_info": "", "images": pictures}


def _enlarged(value: Any, name: str, asked: Mapping[str, Any]) -> str:
    picture, _ = bodies.opened(bodies.decoded(value, name), name)
    first = _by(picture, asked.get("upscaler_1", "None"), asked)
    share = asked.get("extras_upscaler_2_visibility", 0.0)
    if not 0 <= share <= 1:
        raise ApiError(422, f"extras_upscaler_2_visibility = {share:g} should be from 0 to 1.")
    second = asked.get("upscaler_2", "None")
    if share and second != "None":
        first = Image.blend(first, _by(picture, second, asked).resize(first.size), share)
    buffer = io.BytesIO()
    first.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _by(picture: Image.Image, upscaler: str, asked: Mapping[str, Any]) -> Image.Image:
    if upscaler not in RESIZING:
        raise ApiError(404, f"Upscaler not found: {upscaler[:100]!r}. There are {', '.join(RESIZING)}.")
    if upscaler == "None":
        return picture
    width, height, crop = _size(picture, asked)
    if not 1 <= width <= 16384 or not 1 <= height <= 16384 or width * height > MAX_PIXELS:
        raise ApiError(422, f"{width} x {height} pixels are not possible: choose from 1 x 1 to {MAX_PIXELS} in all.")
    how = FILTERS[upscaler.lower()]
    return ImageOps.fit(picture, (width, height), how) if crop else picture.resize((width, height), how)


def _size(picture: Image.Image, asked: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Width and height to come to, and whether the picture is cropped to that shape."""
    mode = asked.get("resize_mode", 0)
    if mode not in (0, 1):
        raise ApiError(422, f"resize_mode = {mode} should be 0 or 1.")
    if mode == 0:
        factor = asked.get("upscaling_resize", 2.0)
        if not 0 < factor <= 32:
            raise ApiError(422, f"upscaling_resize = {factor:g} should be above 0, up to 32.")
        return round(picture.width * factor), round(picture.height * factor), False
    width, height = asked.get("upscaling_resize_w", 512), asked.get("upscaling_resize_h", 512)
    if asked.get("upscaling_crop", True) or not (0 < width <= 16384 and 0 < height <= 16384):
        return width, height, True
    factor = min(width / picture.width, height / picture.height)
    return max(1, round(picture.width * factor)), max(1, round(picture.height * factor)), False


async def interrogate(http: HttpRequest) -> None:
    """Refused: no model here describes pictures."""
    raise ApiError(404, "There is no interrogator.")


async def detect(http: HttpRequest) -> None:
    """Refused: there are no preprocessors."""
    raise ApiError(404, "There are no ControlNet preprocessors.")
