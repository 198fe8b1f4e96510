"""From a checked request to finished pictures: queue it, wait, and give up when the client does."""

from __future__ import annotations

import asyncio
import io
import itertools
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from ... import catalogue
from ...adapters import files
from ...checks import MAX_TEXT
from ...compare.plan import Plan
from ...prompts import prepared
from ...record import picture_files
from ...request import GRID, Request
from ...text.prompt import parse
from .. import values
from ..jobs import Comparison, Job, Picture, State, Task, Work
from ..shared import the_worker
from . import closures
from .errors import ApiError, ClientGone

LOOK_EVERY = 0.005  # seconds, while something of ours runs
LOOK_WAITING = 0.05  # seconds, while it waits for others
MAX_IMAGES = 100  # in one request
MAX_PIXELS = 2048 * 2048  # of a painted picture; the page offers no more
MAX_PIXELS_IN_TILES = 4096 * 4096
MAX_NESTING = 100  # brackets in a prompt
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Finished:
    """A finished picture: its file's bytes, and the text of parameters in them."""

    picture: Picture
    data: bytes
    text: str


def check(request: Request) -> None:
    """Refuse at the door what would be refused, or would hurt, in the queue. Raises InputError, ApiError."""
    texts = {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "hr_prompt": request.hires_prompt,
        "hr_negative_prompt": request.hires_negative,
    }
    for name, text in texts.items():
        _check_prompt(name, text)
    if request.n_images > MAX_IMAGES:
        raise ApiError(422, f"{request.n_images} pictures are more than {MAX_IMAGES}, the most for one request.")
    size = request.painted_size(usual_size(request.model))
    sizes = [size] if request.hires is None else [size, *request.hires.sizes(size, GRID)]
    most = MAX_PIXELS if request.tile is None else MAX_PIXELS_IN_TILES
    for width, height in sizes:
        if width * height > most:
            raise ApiError(422, f"{width} x {height} pixels are more than {most}, the most for one picture.")
    n_images = prepared(request).n_images
    if n_images > MAX_IMAGES:
        raise ApiError(422, f"{n_images} combinations are more than {MAX_IMAGES} pictures, the most for one request.")


def _check_prompt(name: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ApiError(422, f"{name} has {len(text)} characters, more than {MAX_TEXT}.")
    steps = (1 if char in _OPENING else -1 for char in text if char in _OPENING + _CLOSING)
    if max(itertools.accumulate(steps), default=0) > MAX_NESTING:
        raise ApiError(422, f"{name} nests brackets more than {MAX_NESTING} deep.")
    known = files.listed(files.LORAS)
    named = {form.lower() for key, path in known.items() for form in (key, path.name)}
    for lora, _ in parse(text).loras:
        if lora.lower() not in named:
            raise ApiError(422, f"There is no LoRA {lora[:100]!r}.")


def usual_size(model: str) -> tuple[int, int]:
    """The width and height that a model of the catalogue paints best."""
    return values.usual_size(catalogue.find(model))


async def paint(http: HttpRequest, request: Request, save: bool = True) -> Job:
    """Queue a request and wait for its end; it is cancelled if the client goes. Raises QueueFullError, ClientGone."""
    job = the_worker().submit(request, save=save)
    await wait(http, job)
    return job


async def compare(http: HttpRequest, plan: Plan, save: bool = True) -> Comparison:
    """Queue a grid and wait for its end, as `paint` does."""
    job = the_worker().compare(plan, save=save)
    await wait(http, job)
    return job


def address_of(http: HttpRequest) -> str:
    """A client's address."""
    return http.client.host if http.client is not None else ""


async def wait(http: HttpRequest, work: Work) -> None:
    """Wait for the end of a job or task. If the client goes first, cancel it and raise ClientGone."""
    try:
        while work.active:
            await asyncio.sleep(LOOK_WAITING if work.state is State.QUEUED else LOOK_EVERY)
            if await http.is_disconnected():
                if isinstance(work, Job) and work.active and not work.cancelling:
                    closures.note(address_of(http))
                raise ClientGone
    except BaseException:  # also when the server stops
        the_worker().cancel(work)
        raise


async def keep_so_far(http: HttpRequest, job: Job) -> None:
    """Finish the batch in which a job was interrupted as far as it came, as A1111 does."""
    if job.state is not State.CANCELLED:
        return
    for picture in job.pictures:
        if picture.estimate is not None and not picture.finished and not picture.skipped:
            await wait(http, the_worker().keep(job, picture))


def raise_failure(work: Work) -> None:
    """Raise ApiError where a job or task failed: 422 if its request was at fault, else 500."""
    if work.state is State.FAILED:
        raise ApiError(422 if work.refused else 500, work.error)


def finished(job: Job) -> list[Finished]:
    """The finished pictures of a job, read from their files; one that was deleted meanwhile is left out."""
    return [found for picture in job.pictures if (found := read(picture)) is not None]


def read(picture: Picture) -> Finished | None:
    """A finished picture, read from its file; None where there is none (any more)."""
    try:
        data = picture.path.read_bytes() if picture.path is not None else picture.unsaved
    except OSError:
        return None
    return None if data is None else Finished(picture, data, text_of(data))


def text_of(data: bytes) -> str:
    """The text of parameters in a picture's bytes, or ""."""
    return picture_files.read_text(io.BytesIO(data)) or ""


async def load(http: HttpRequest, request: Request) -> Task:
    """Have the model of a request loaded, and wait for it. Raises ApiError, CheckpointNotFoundError."""
    task = the_worker().compute(object(), lambda model, report: None, request.model, options=request.to_load())
    await wait(http, task)
    raise_failure(task)
    return task
