"""OpenAI's /v1/images and /v1/models."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response, StreamingResponse

from ... import catalogue
from ...adapters.lora_recipe import first_recipe
from ...errors import SamplerError
from ...pictures.formats import BY_KEY, format_of
from ...pictures.inpainting import suitable_size
from ...pictures.reading import fit
from ...request import Request
from ...sampler import key_of, sampler_by_name
from .. import values
from ..jobs import Frame, Job, Picture, State
from ..preview import approximate_jpeg
from ..shared import the_worker
from . import bodies, links, models, options, painting
from .errors import ApiError, without_paths
from .fields import IGNORED, Field, read_fields
from .options import Options
from .painting import Finished

OWN_NAMES = ("gpt-image", "chatgpt-image", "dall-e")  # OpenAI's models, in whose place the chosen one paints
QUALITIES = {"low": 0.5, "auto": 1.0, "medium": 1.0, "standard": 1.0, "high": 1.5, "hd": 1.5}  # times the model's steps
MAX_N, MAX_PARTIAL = 10, 3
PULSE = 10.0  # seconds between signs of life in a stream
FIELDS = (
    Field("prompt", "string", required=True),
    Field("n", "integer", f"pictures, 1 to {MAX_N}"),
    Field("size", "string", "WIDTHxHEIGHT in multiples of 8, or auto: the model's, in edits of the picture's shape"),
    Field("model", "string", f"an id of /v1/models; names that begin with {', '.join(OWN_NAMES)}: the chosen model"),
    Field("quality", "string", "low: half of the model's steps; auto, medium, standard: all; high, hd: half more"),
    Field("response_format", "string", "b64_json or url; default: b64_json, for dall-e names url"),
    Field("output_format", "string", "png, jpeg or webp"),
    Field("output_compression", "integer", "the quality of jpeg and webp, 0 to 100"),
    Field("background", "string", "auto or opaque; transparent is refused"),
    Field("stream", "boolean", "true answers in server-sent events"),
    Field("partial_images", "integer", f"estimates to send in a stream, 0 to {MAX_PARTIAL}"),
    Field("user", "string", "", IGNORED),
    Field("moderation", "string", "nothing is moderated", IGNORED),
    Field("style", "string", "write it into the prompt", IGNORED),
    Field("negative_prompt", "string", "an extension, as those that follow; extra_body sends them"),
    Field("steps", "integer", "counts before quality"),
    Field("seed", "integer", "-1 draws one; picture i gets seed + i"),
    Field("cfg_scale", "number"),
    Field("sampler", "string", "a name or key, such as dpmpp_2m_karras"),
)  # fmt: skip
EDIT_FIELDS = (
    *FIELDS,
    Field("image", "string", "a file, also as image[]; with no mask its transparent part is repainted", required=True),
    Field("mask", "string", "a file; its transparent part is repainted"),
    Field("input_fidelity", "string", "", IGNORED),
    Field("strength", "number", "an extension: how much may change; default: 1 under a mask, else the model's"),
)  # fmt: skip


def error(status: int, detail: str) -> dict[str, Any]:
    """The form in which OpenAI answers errors."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {404: "not_found", 503: "overloaded"}.get(status)
    return {"error": {"message": detail, "type": kind, "param": None, "code": code}}


@dataclass(frozen=True)
class Asked:
    """A request, and how its pictures are answered."""

    request: Request
    name: str  # of the events
    form: str  # "b64_json" or "url"
    output: str  # a key of formats
    compression: int | None
    stream: bool
    partial: int
    quality: str


async def generations(http: HttpRequest) -> Any:
    """Paint from a text."""
    payload = await bodies.read_json(http)
    return await _answer(http, await bodies.in_thread(_read, payload, None, None))


async def edits(http: HttpRequest) -> Any:
    """Paint from a text and a picture, with a mask or without."""
    form = await bodies.read_form(http)
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    fields: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif (place := name.partition("[")[0]) in files:
                files[place].append(await value.read())
    finally:
        await form.close()
    for name, found in files.items():
        if len(found) > 1:
            raise ApiError(400, f"{name} has {len(found)} pictures and may have one.")
    if not files["image"]:
        raise ApiError(400, "image is missing.")
    return await _answer(
        http, await bodies.in_thread(_read, fields, files["image"][0], next(iter(files["mask"]), None))
    )


def list_models(_: HttpRequest) -> dict[str, Any]:
    """The models that can be loaded."""
    return {"object": "list", "data": [_model(model) for model in models.usable()]}


def get_model(http: HttpRequest) -> dict[str, Any]:
    """One model."""
    return _model(models.find(http.path_params["id"]))


def _model(model: catalogue.Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "local"}


def linked(http: HttpRequest) -> Response:
    """A finished picture, by the link that an answer with response_format url gave, for an hour."""
    path = links.find(http.path_params["token"])
    form = format_of(path) if path is not None else None
    if path is None or form is None or not path.is_file():
        raise ApiError(404, "There is no such picture, or its link has expired.")
    return FileResponse(path, media_type=form.mime, headers={"Cache-Control": "private, no-store"})


# --- Reading


def _read(payload: Mapping[str, Any], image: bytes | None, mask: bytes | None) -> Asked:
    fields = FIELDS if image is None else tuple(each for each in EDIT_FIELDS if each.name not in ("image", "mask"))
    found = read_fields(payload, fields)
    chosen = _options(found.get("model", ""))
    model = catalogue.find(chosen.model)
    defaults = catalogue.with_recipe(model.defaults, first_recipe((), found["prompt"]))
    quality = _choice(found, "quality", QUALITIES, "auto")
    output = _choice(found, "output_format", ("png", "jpeg", "webp"), "png")
    compression = _within(found, "output_compression", 0, 100) if "output_compression" in found else None
    _choice(found, "background", ("auto", "opaque"), "auto")
    form = _choice(found, "response_format", ("b64_json", "url"), _usual_form(found.get("model", "")))
    partial = _within(found, "partial_images", 0, MAX_PARTIAL)
    size = _size(found.get("size", "auto"))
    usual = values.usual_size(model)
    width, height = size or usual
    seed = found.get("seed", -1)
    request = Request(
        prompt=found["prompt"],
        negative=found.get("negative_prompt", ""),
        n_images=_within(found, "n", 1, MAX_N, 1),
        steps=found.get("steps") or max(1, round(defaults.steps * QUALITIES[quality])),
        cfg=found.get("cfg_scale", defaults.cfg),
        seed=None if seed < 0 else seed,
        sampler=_sampler(found.get("sampler", "")) or defaults.sampler,
        width=width,
        height=height,
        model=chosen.model,
        vae=chosen.vae,
        clip_skip=chosen.clip_skip,
        file_format=output if compression is None else "png",
        previews=("full",) if partial else ("fast",),
    )
    painting.check(request)
    if image is not None:
        request = _with_picture(request, image, mask, size, usual, found.get("strength"), defaults.strength)
        painting.check(request)
    name = "image_generation" if image is None else "image_edit"
    return Asked(request, name, form, output, compression, found.get("stream", False), partial, quality)


def _options(name: str) -> Options:
    current = options.current()
    if not name or name.lower().startswith(OWN_NAMES):
        return current
    return dataclasses.replace(current, model=models.find(name).name)


def _usual_form(model: str) -> str:
    return "url" if model.lower().startswith("dall-e") else "b64_json"


def _choice(found: Mapping[str, Any], name: str, known: Any, default: str) -> str:
    value = found.get(name) or default
    if value not in known:
        raise ApiError(400, f"{name} = {value[:100]!r} should be one of {', '.join(known)}.")
    return value


def _within(found: Mapping[str, Any], name: str, low: int, high: int, default: int = 0) -> int:
    value = found.get(name, default)
    if not low <= value <= high:
        raise ApiError(400, f"{name} = {value} should be from {low} to {high}.")
    return value


def _size(text: str) -> tuple[int, int] | None:
    if text.lower() in ("auto", ""):
        return None
    width, _, height = text.lower().partition("x")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 5 for part in (width, height)):
        raise ApiError(400, f"size = {text[:100]!r} should be like 512x768, or auto.")
    return int(width), int(height)


def _sampler(name: str) -> str | None:
    if not name:
        return None
    try:
        return key_of(sampler_by_name(name))
    except SamplerError as refused:
        raise ApiError(400, str(refused)) from None


def _with_picture(
    request: Request,
    image: bytes,
    mask: bytes | None,
    size: tuple[int, int] | None,
    usual: tuple[int, int],
    strength: float | None,
    default_strength: float,
) -> Request:
    picture, file = bodies.opened(image)
    if mask is not None:
        shown, _ = bodies.opened(mask, "mask")
        opaque = bodies.alpha(mask)
        if opaque is None:
            raise ApiError(400, "mask has no transparent part, which is what is repainted.")
        if shown.size != picture.size:
            raise ApiError(400, f"mask is {shown.size} pixels large and image {picture.size}: give both one size.")
    else:
        opaque = bodies.alpha(image)
    if opaque is None:
        painted = size or suitable_size(picture.size, usual)
        changes: dict[str, Any] = {"picture": fit(picture, *painted), "picture_file": file}
        strength = default_strength if strength is None else strength
        return dataclasses.replace(request, **changes, width=painted[0], height=painted[1], strength=strength)
    white = opaque.point(lambda value: 255 if value < 128 else 0)
    if not white.getbbox():
        raise ApiError(400, "mask has no transparent part, which is what is repainted.")
    if size is not None:
        picture = fit(picture, *size)
        white = fit(white.convert("RGB"), *size).convert("L").point(lambda value: 255 if value >= 128 else 0)
    width, height = size or (None, None)
    strength = 1.0 if strength is None else strength
    return dataclasses.replace(request, picture=picture, mask=white, width=width, height=height, strength=strength)


# --- Answering


async def _answer(http: HttpRequest, asked: Asked) -> Any:
    if asked.stream:
        job = the_worker().submit(asked.request)
        return StreamingResponse(_events(http, asked, job), media_type="text/event-stream", headers=_UNBUFFERED)
    job = await painting.paint(http, asked.request)
    painting.raise_failure(job)
    found = await bodies.in_thread(painting.finished, job)
    if not found:
        raise ApiError(500, "The picture was cancelled before it was finished.")
    data = [await bodies.in_thread(_datum, http, asked, job, each) for each in found]
    return {"created": int(time.time()), "data": data, **_said(asked, found[0].picture)}


_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _said(asked: Asked, picture: Picture) -> dict[str, Any]:
    width, height = picture.size
    return {
        "background": "opaque",
        "output_format": asked.output,
        "quality": asked.quality,
        "size": f"{width}x{height}",
    }


def _datum(http: HttpRequest, asked: Asked, job: Job, found: Finished) -> dict[str, Any]:
    extra = {"seed": found.picture.seed}
    if asked.form == "url" and found.picture.path is not None:
        return {"url": str(http.base_url) + links.PREFIX + links.add(found.picture.path)} | extra
    return {"b64_json": _encoded(asked, found.data)} | extra


def _encoded(asked: Asked, data: bytes) -> str:
    """A finished picture's bytes in base64, written again where another quality is asked for."""
    if asked.compression is not None and asked.output != "png":
        with Image.open(io.BytesIO(data)) as image:
            data = _bytes(image.convert("RGB"), asked.output, asked.compression)
    return base64.b64encode(data).decode()


def _bytes(image: Image.Image, output: str, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, BY_KEY[output].pillow, **({} if output == "png" else {"quality": quality}))
    return buffer.getvalue()


async def _events(http: HttpRequest, asked: Asked, job: Job) -> AsyncIterator[str]:
    """The estimates while a job paints, then its pictures, then its end."""
    sent: set[tuple[int, int]] = set()  # places of pictures, and of their estimates
    completed: set[int] = set()
    pulse = time.monotonic()
    try:
        while True:
            active = job.active  # looked at first: what is done by then is seen below
            for place, picture in enumerate(list(job.pictures)):
                for index, frame in enumerate(_due(asked, picture)):
                    if (place, index) not in sent:
                        sent.add((place, index))
                        image = await bodies.in_thread(_estimate, asked, job, picture, frame)
                        if image is not None:
                            yield _event(asked, "partial_image", b64_json=image, partial_image_index=index)
                if picture.finished and place not in completed:
                    completed.add(place)
                    each = await bodies.in_thread(painting.read, picture)
                    if each is not None:
                        said = _said(asked, picture) | {"usage": _USAGE, "seed": picture.seed}
                        image = await bodies.in_thread(_encoded, asked, each.data)
                        yield _event(asked, "completed", b64_json=image, **said)
            if not active:
                break
            if time.monotonic() - pulse > PULSE:
                pulse = time.monotonic()
                yield ": working\n\n"
            if await http.is_disconnected():
                return
            await asyncio.sleep(painting.LOOK_WAITING if job.state is State.QUEUED else painting.LOOK_EVERY)
        if not completed:
            text = without_paths(job.error) or "The picture was cancelled before it was finished."
            status = 400 if job.refused else 500
            yield f"event: error\ndata: {json.dumps({'type': 'error', **error(status, text)})}\n\n"
    finally:
        the_worker().cancel(job)


_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def _due(asked: Asked, picture: Picture) -> list[Frame]:
    """The frames whose estimates are sent of a picture so far: evenly spread over its steps, the last one left out."""
    frames = [frame for frame in picture.frames if not frame.begins]
    if not frames or not asked.partial:
        return []
    total = frames[-1].total
    places = [round(total * (i + 1) / (asked.partial + 1)) for i in range(asked.partial)]
    return [frames[place - 1] for place in dict.fromkeys(places) if 0 < place <= len(frames) and place < total]


def _estimate(asked: Asked, job: Job, picture: Picture, frame: Frame) -> str | None:
    """The estimate of x_0 at a step in base64, at the size and in the format of the picture."""
    steps = [each for each in picture.frames if not each.begins]
    until = [each for each in steps if each.index <= frame.index and each.decoded is not None]
    jpeg = until[-1].decoded if until else approximate_jpeg(frame.denoised, job.latent_space)
    if jpeg is None:
        return None
    size = job.request.painted_size(painting.usual_size(job.request.model))
    with Image.open(io.BytesIO(jpeg)) as image:
        large = image.resize(size, Image.Resampling.BICUBIC)
    return base64.b64encode(_bytes(large, asked.output, asked.compression or 90)).decode()


def _event(asked: Asked, kind: str, **values: Any) -> str:
    name = f"{asked.name}.{kind}"
    said = {
        "type": name,
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": asked.output,
        "quality": asked.quality,
        "size": "auto",
    }
    return f"event: {name}\ndata: {json.dumps(said | values)}\n\n"
