"""Bodies of requests: read whole, within limits of type, bytes, time, nesting and pixels."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, TypeVar

from PIL import Image
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect, Request

from ...errors import PictureError
from ...pictures.reading import open_picture
from ...record.inputs import InputFile
from .errors import ApiError, ClientGone

MAX_BYTES = 64 << 20  # of one body
MAX_PICTURES = 32  # in one body
MAX_FORM_FIELDS = 64
PATIENCE = 30.0  # seconds between two pieces of a body
MAX_HELD = 256 << 20  # bytes of all bodies that are arriving
MAX_DECODING = 4  # bodies that are decoded at a time: pictures take much memory
_decoders = ThreadPoolExecutor(MAX_DECODING, "api")
_held = 0  # bytes; touched by the event loop alone
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.ASCII)


T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that takes time or memory in a thread, a few of them at once."""
    return await asyncio.get_running_loop().run_in_executor(_decoders, partial(function, *arguments))


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in a body; an empty body is an empty object. Raises ApiError 400, 408, 413 or 415."""
    body = await _read(request)
    if not body:
        return {}
    if _type(request) != "application/json":
        raise ApiError(415, "The body should be application/json.")
    try:
        values = await in_thread(partial(json.loads, parse_constant=_no_constant), body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.") from None
    if not isinstance(values, dict):
        raise ApiError(422, "The body should be a JSON object.")
    return values


async def read_form(request: Request) -> FormData:
    """The fields of a multipart body. Raises ApiError 400, 408, 413 or 415."""
    if _type(request) != "multipart/form-data":
        raise ApiError(415, "The body should be multipart/form-data.")
    body = await _read(request)
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Any:
        return next(given)

    whole = Request(request.scope, replay)
    return await whole.form(max_files=MAX_PICTURES, max_fields=MAX_FORM_FIELDS)


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or len(declared) > 18:
        raise ApiError(400, "The content-length is not a number.")
    if int(declared) > MAX_BYTES:
        _too_large()
    global _held
    parts: list[bytes] = []
    size = 0
    stream = request.stream()
    try:
        while True:
            part = await asyncio.wait_for(anext(stream, None), PATIENCE)
            if part is None:
                return b"".join(parts)
            size += len(part)
            _held += len(part)
            if size > MAX_BYTES:
                _too_large()
            if _held > MAX_HELD:
                raise ApiError(503, "Too much is being sent at once.")
            parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"The body stopped arriving for {PATIENCE:.0f} seconds.") from None
    except ClientDisconnect:
        raise ClientGone from None
    finally:
        _held -= size


def decoded(value: Any, name: str = "image") -> bytes:
    """The bytes of a picture as base64, plain or as a data URL. Raises ApiError 422; a URL is never fetched."""
    if not isinstance(value, str) or not value:
        raise ApiError(422, f"{name} should be a picture in base64.")
    if re.match(r"\w+://", value):
        raise ApiError(422, f"{name} should be a picture in base64; URLs are not fetched.")
    if start := _DATA_URL.match(value[:200]):
        value = value[start.end() :]
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, f"{name} is not valid base64.") from None


def opened(data: bytes, name: str = "image") -> tuple[Image.Image, InputFile]:
    """A picture's bytes decoded (RGB), and as a file that a record can name. Raises ApiError 422."""
    try:
        return open_picture(data), InputFile("input", data)
    except PictureError as error:
        raise ApiError(422, f"{name}: {error}") from None


def alpha(data: bytes) -> Image.Image | None:
    """How opaque a picture's pixels are ("L"), or None where all are; `data` has been `opened`, so its size is fine."""
    with Image.open(io.BytesIO(data)) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        channel = image.convert("RGBA").getchannel("A")
    return None if channel.getextrema() == (255, 255) else channel


def _type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large() -> NoReturn:
    raise ApiError(413, f"The body is larger than {MAX_BYTES >> 20} MB.")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
