"""/events: what the worker does, as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from ..jobs import Job
from ..preview import approximate_jpeg
from ..shared import the_worker
from .errors import ApiError

LOOK_EVERY = 0.1  # seconds
PULSE = 10.0  # seconds between signs of life
MOST = 16  # streams at a time
_open = 0


async def events(http: HttpRequest) -> StreamingResponse:
    """A stream of server-sent events: `queue` whenever it changes, `step` with a preview, `end` of each job."""
    if _open >= MOST:
        raise ApiError(503, f"{MOST} clients are listening already.")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(http), media_type="text/event-stream", headers=headers)


async def _events(http: HttpRequest) -> AsyncIterator[str]:
    global _open
    _open += 1
    try:
        before: list[str] | None = None
        watched: Job | None = None
        seen: Any = None
        pulse = time.monotonic()
        while not await http.is_disconnected():
            works = the_worker().queue()
            names = [work.id for work in works]
            if names != before:
                before = names
                yield _event("queue", {"jobs": names})
            running = works[0] if works and isinstance(works[0], Job) else None
            for job in dict.fromkeys(filter(None, (watched, running))):
                if job.frame is not None and job.frame is not seen:
                    seen = job.frame
                    yield _event("step", _step(job))
            if watched is not None and watched is not running and not watched.active:
                yield _event("end", {"job": watched.id, "state": watched.state.value})
            watched = running
            if time.monotonic() - pulse > PULSE:
                pulse = time.monotonic()
                yield ": listening\n\n"
            await asyncio.sleep(LOOK_EVERY)
    finally:
        _open -= 1


def _step(job: Job) -> dict[str, Any]:
    frame = job.frame
    assert frame is not None
    image = frame.decoded or frame.draft or approximate_jpeg(frame.denoised, job.latent_space)
    return {
        "job": job.id,
        "picture": len(job.pictures),
        "pictures": job.n_images,
        "step": frame.index,
        "steps": frame.total,
        "sigma": frame.sigma,
        "progress": job.fraction,
        "seconds_left": job.seconds_left,
        "preview": None if image is None else base64.b64encode(image).decode(),
    }


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
