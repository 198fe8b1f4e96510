"""Pictures without a diffusion model, as A1111 has them: their parameters, and enlarging them."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest

from ...errors import PictureError
from ...record.parameters import Parameters
from ...upscaling.settings import Upscaling
from ...upscaling.upscalers import NONE, find
from ..shared import the_worker
from ..upscaling import Enlarging, Source
from . import bodies, painting
from .errors import ApiError
from .fields import IGNORED, REFUSED, Field, read_fields

INFO_FIELDS = (Field("image", "string", "a picture in base64", required=True),)
_SIZE_FIELDS = (
    Field("resize_mode", "integer", "0 by upscaling_resize, 1 to upscaling_resize_w x upscaling_resize_h"),
    Field("upscaling_resize", "number", "the factor; default: 2"),
    Field("upscaling_resize_w", "integer", "pixels; default: 512"),
    Field("upscaling_resize_h", "integer", "pixels; default: 512"),
    Field("upscaling_crop", "boolean", "mode 1: true crops to that size, false covers it in the picture's shape"),
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
    """Enlarge one picture; the result is in the gallery."""
    payload = await bodies.read_json(http)
    sources, settings = await bodies.in_thread(_single, payload)
    (image,) = await _enlarged(http, sources, settings)
    return {"html_info": _html(settings), "image": image}


async def extra_batch(http: HttpRequest) -> dict[str, Any]:
    """Enlarge several pictures; the results are in the gallery."""
    payload = await bodies.read_json(http)
    sources, settings = await bodies.in_thread(_batch, payload)
    return {"html_info": _html(settings), "images": await _enlarged(http, sources, settings)}


def _single(payload: Mapping[str, Any]) -> tuple[list[Source], Upscaling]:
    asked = read_fields(payload, EXTRA_FIELDS)
    return [_source(asked["image"], "image")], _settings(asked)


def _batch(payload: Mapping[str, Any]) -> tuple[list[Source], Upscaling]:
    asked = read_fields(payload, BATCH_FIELDS)
    entries = asked["imageList"]
    if not 0 < len(entries) <= bodies.MAX_PICTURES:
        raise ApiError(422, f"imageList has {len(entries)} pictures and should have 1 to {bodies.MAX_PICTURES}.")
    data = [entry.get("data") if isinstance(entry, dict) else None for entry in entries]
    return [_source(each, f"imageList[{i}].data") for i, each in enumerate(data)], _settings(asked)


def _source(value: Any, name: str) -> Source:
    return Source(name, bodies.decoded(value, name))


def _settings(asked: Mapping[str, Any]) -> Upscaling:
    """As A1111 reads them. Raises ApiError, InputError, CheckpointNotFoundError."""
    mode = asked.get("resize_mode", 0)
    if mode not in (0, 1):
        raise ApiError(422, f"resize_mode = {mode} should be 0 or 1.")
    size: dict[str, Any] = {"by": asked.get("upscaling_resize", 2.0)}
    if mode == 1:
        to = asked.get("upscaling_resize_w", 512), asked.get("upscaling_resize_h", 512)
        size = {"to": to, "crop": asked.get("upscaling_crop", True)}
    visibility = asked.get("extras_upscaler_2_visibility", 0.0)
    first, second = (find(asked.get(f"upscaler_{i}") or NONE, names_only=True) for i in (1, 2))
    if second.name == NONE and 0 <= visibility <= 1:
        visibility = 0.0
    return Upscaling(first.name, **size, second=second.name, visibility=visibility)


async def _enlarged(http: HttpRequest, sources: list[Source], settings: Upscaling) -> list[str]:
    """The results as PNGs in base64. Raises ApiError, QueueFullError, ClientGone."""
    work = await bodies.in_thread(Enlarging, the_worker(), sources, settings)
    await painting.wait(http, work.task)
    painting.raise_failure(work.task)
    for name, why in work.failures:
        raise ApiError(422, f"{name}: {why}")
    return await bodies.in_thread(_encoded, work)


def _encoded(work: Enlarging) -> list[str]:
    found = [each.read() for each in work.results]
    return [base64.b64encode(data).decode() for data in found if data is not None]


def _html(settings: Upscaling) -> str:
    said = ", ".join(f"{key}: {value}" for key, value in settings.record().items())
    return f"<p>{html.escape(said)}</p>" if said else ""


async def interrogate(http: HttpRequest) -> None:
    """Refused: no model here describes pictures."""
    raise ApiError(404, "There is no interrogator.")


async def detect(http: HttpRequest) -> None:
    """Refused: there are no preprocessors."""
    raise ApiError(404, "There are no ControlNet preprocessors.")
