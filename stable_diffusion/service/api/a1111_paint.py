"""/sdapi/v1/txt2img and img2img."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest

from ...record.keys import VAE, VAE_HASH, VERSION
from ...record.parameters import Parameters
from ...sampler import a1111_name
from ..jobs import Comparison, Job
from . import a1111_grids, a1111_request, bodies, options, painting
from .a1111_request import ECHOED_NOT, Asked
from .painting import Finished


async def txt2img(http: HttpRequest) -> dict[str, Any]:
    """Paint from a text."""
    return await _paint(http, with_picture=False)


async def img2img(http: HttpRequest) -> dict[str, Any]:
    """Paint from a text and a picture, with a mask or without."""
    return await _paint(http, with_picture=True)


async def _paint(http: HttpRequest, with_picture: bool) -> dict[str, Any]:
    payload = await bodies.read_json(http)
    asked = await bodies.in_thread(a1111_request.read, payload, with_picture)
    if asked.grid is not None:
        job: Job = await painting.compare(http, asked.grid.plan, asked.save)
        painting.raise_failure(job)
    else:
        job = await painting.paint(http, asked.request, asked.save)
        painting.raise_failure(job)
        await painting.keep_so_far(http, job)
    if asked.keep is not None:
        options.replace(asked.keep)
    return await bodies.in_thread(_answer, payload, asked, job)


def _answer(payload: Mapping[str, Any], asked: Asked, job: Job) -> dict[str, Any]:
    sheets: list[bytes] = []
    if asked.grid is not None and isinstance(job, Comparison):
        sheets, found = a1111_grids.answer(job, asked.grid)
    else:
        found = painting.finished(job)
    shown = found if asked.grid is None or asked.grid.cells else []
    images = [*sheets, *(each.data for each in shown)]
    fields = a1111_request.PICTURE_FIELDS if job.request.picture is not None else a1111_request.TEXT_FIELDS
    return {
        "images": [base64.b64encode(each).decode() for each in images] if asked.send else [],
        "parameters": {field.name: None if field.name in ECHOED_NOT else payload.get(field.name) for field in fields},
        "info": json.dumps(info(job, found, sheets)),
    }


def info(job: Job, found: Sequence[Finished], sheets: Sequence[bytes] = ()) -> dict[str, Any]:
    """What A1111 tells of a request's pictures, as its clients demand it in full; `sheets` come before them."""
    drawn = job.drawn
    own = [job.request_of(each.picture) for each in found]
    seeds = [each.seeds_of(0) for each in own]
    first = seeds[0] if seeds else drawn.seeds_of(0)
    said = Parameters.from_text(found[0].text) if found else Parameters(extra={})
    sampler, _ = a1111_name(drawn.sampler)
    return {
        "prompt": own[0].prompt if own else drawn.prompt,
        "all_prompts": [each.prompt for each in own],
        "negative_prompt": own[0].negative if own else drawn.negative,
        "all_negative_prompts": [each.negative for each in own],
        "seed": first["seed"],
        "all_seeds": [each["seed"] for each in seeds],
        "subseed": first.get("variation_seed", -1),
        "all_subseeds": [each.get("variation_seed", -1) for each in seeds],
        "subseed_strength": drawn.variation_strength,
        "width": said.width or drawn.width,
        "height": said.height or drawn.height,
        "sampler_name": sampler,
        "cfg_scale": drawn.cfg,
        "steps": drawn.steps,
        "batch_size": drawn.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": said.model or drawn.model,
        "sd_model_hash": said.model_hash or "",
        "sd_vae_name": said.extra.get(VAE),
        "sd_vae_hash": said.extra.get(VAE_HASH),
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": said.strength,
        "extra_generation_params": said.extra,
        "index_of_first_image": len(sheets),
        "infotexts": [*(painting.text_of(each) for each in sheets), *(each.text for each in found)],
        "styles": list(job.request.styles),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.started)),
        "clip_skip": drawn.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "version": said.extra.get(VERSION, ""),
    }
