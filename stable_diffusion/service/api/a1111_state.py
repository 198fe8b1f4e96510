"""What goes on, and how to change it: progress, interrupt, skip, options, the model in memory."""

from __future__ import annotations

import base64
import time
from typing import Any

from starlette.requests import Request as HttpRequest

from ...request import Request
from ..jobs import Frame, Job, State, Work
from ..preview import approximate_jpeg
from ..shared import the_worker
from . import bodies, closures, options, painting


def progress(http: HttpRequest) -> dict[str, Any]:
    """How far what runs is, whoever asked for it, and how much waits."""
    works = the_worker().queue()
    work = works[0] if works else None
    job = work if isinstance(work, Job) else None
    frame = job.frame if job is not None else None
    hidden = http.query_params.get("skip_current_image", "").lower() in ("true", "1")
    image = None if job is None or frame is None or hidden else _preview(job, frame)
    return {
        "progress": 0.0 if work is None else max(0.01, work.fraction),
        "eta_relative": 0.0 if work is None else work.seconds_left or 0.0,
        "state": {
            "skipped": job is not None and job.skip_event.is_set(),
            "interrupted": work is not None and work.cancelling,
            "stopping_generation": work is not None and work.cancelling,
            "job": work.id if work is not None else "",
            "job_count": len(works),
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(work.started)) if work is not None else "0",
            "job_no": max(0, len(job.pictures) - 1) if job is not None else 0,
            "sampling_step": frame.index if frame is not None else 0,
            "sampling_steps": frame.total if frame is not None else 0,
        },
        "current_image": base64.b64encode(image).decode() if image is not None else None,
        "textinfo": (work.note or None) if work is not None else None,
    }


def _preview(job: Job, frame: Frame) -> bytes | None:
    """The newest estimate as a small JPEG."""
    return frame.decoded or frame.draft or approximate_jpeg(frame.denoised, job.latent_space)


async def interrupt(http: HttpRequest) -> dict[str, Any]:
    """Stop what runs; a job's pictures so far are answered, and the queue goes on.

    Not if it comes with a socket that the same client has just closed, which has stopped its own job.
    """
    if not closures.explains(painting.address_of(http)) and (work := _running()) is not None:
        the_worker().cancel(work)
    return {}


async def skip(http: HttpRequest) -> dict[str, Any]:
    """Abandon the picture that is painted, and go on with the job's next one."""
    if isinstance(job := _running(), Job):
        the_worker().skip(job)
    return {}


def _running() -> Work | None:
    works = the_worker().queue()
    return works[0] if works and works[0].state is not State.QUEUED else None


def get_options(http: HttpRequest) -> dict[str, Any]:
    """The options."""
    return options.current().shown()


async def set_options(http: HttpRequest) -> dict[str, Any]:
    """Change options; another model or VAE is loaded first, and where that fails nothing changes."""
    values = await bodies.read_json(http)
    before = options.current()
    after = await bodies.in_thread(before.changed, values)
    if (after.model, after.vae) != (before.model, before.vae):
        await painting.load(http, Request(model=after.model, vae=after.vae))
    options.replace(await bodies.in_thread(options.current().changed, values))
    return {}


def refresh(http: HttpRequest) -> dict[str, Any]:
    """Nothing to do: folders are read whenever they are listed."""
    return {}


async def unload(http: HttpRequest) -> dict[str, Any]:
    """Drop the model in memory; the next request loads one."""
    await painting.wait(http, the_worker().unload())
    return {}


async def reload(http: HttpRequest) -> dict[str, Any]:
    """Load the chosen model."""
    chosen = options.current()
    await painting.load(http, Request(model=chosen.model, vae=chosen.vae))
    return {}
