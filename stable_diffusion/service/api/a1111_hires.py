"""A1111's fields of a hires fix, by table, to those of a `Request`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import CheckpointNotFoundError
from ...hires_upscalers import upscaler_named
from .errors import ApiError
from .fields import REFUSED, Field

_SAME = "default: the first pass's"
SAME_CHECKPOINT, SAME_SAMPLER, SAME_SCHEDULE = "Use same checkpoint", "Use same sampler", "Use same scheduler"
FIELDS = (
    Field("enable_hr", "boolean", "true enlarges the picture, and paints over it in a second pass"),
    Field("denoising_strength", "number", "how much the second pass may change; default: 0.75"),
    Field("hr_scale", "number", "the factor for both sides; default: 2"),
    Field("hr_resize_x", "integer", "the width to enlarge to, in place of a factor"),
    Field("hr_resize_y", "integer", "the height to enlarge to; with both, what exceeds their shape is cropped"),
    Field("hr_upscaler", "string", "one that latent-upscale-modes or upscalers lists; default: Latent"),
    Field("hr_second_pass_steps", "integer", "default: 0, as many as in the first pass"),
    Field("hr_sampler_name", "string", _SAME),
    Field("hr_scheduler", "string", _SAME),
    Field("hr_prompt", "string", _SAME),
    Field("hr_negative_prompt", "string", _SAME),
    Field("hr_cfg", "number", f"Forge's; {_SAME}"),
    Field("hr_checkpoint_name", "string", "both passes have one model", REFUSED, (SAME_CHECKPOINT,)),
    Field("firstphase_width", "integer", "of old clients: the first pass's width; the target is then width x height"),
    Field("firstphase_height", "integer", "the first pass's height"),
)


def second_pass(
    found: Mapping[str, Any], width: int, height: int, sampler: Callable[[Mapping[str, Any]], str | None]
) -> dict[str, Any]:
    """The fields of `Request` for what a payload asks of a second pass, none unless it enables one.

    `width` and `height` are the payload's; `sampler` reads a sampler's name and schedule. Raises ApiError.
    """
    if not found.get("enable_hr"):
        return {}
    given: dict[str, Any] = {
        "hires_scale": found.get("hr_scale", 2.0),
        "hires_width": found.get("hr_resize_x") or None,
        "hires_height": found.get("hr_resize_y") or None,
        "hires_steps": found.get("hr_second_pass_steps", 0),
        "hires_strength": found.get("denoising_strength", 0.75),
        "hires_cfg": found.get("hr_cfg") or None,
        "hires_prompt": found.get("hr_prompt", ""),
        "hires_negative": found.get("hr_negative_prompt", ""),
    }
    first = found.get("firstphase_width", 0), found.get("firstphase_height", 0)
    if any(first):
        if not all(first):
            raise ApiError(422, f"firstphase_width = {first[0]} and firstphase_height = {first[1]}: give both.")
        given |= {"width": first[0], "height": first[1], "hires_width": width, "hires_height": height}
    if given["hires_width"] or given["hires_height"]:
        given["hires_scale"] = None
    try:
        given["hires_upscaler"] = upscaler_named(found.get("hr_upscaler") or "Latent")
    except CheckpointNotFoundError as error:
        raise ApiError(422, f"hr_upscaler: {error}") from None
    name, scheduler = found.get("hr_sampler_name"), found.get("hr_scheduler")
    own = {
        "sampler_name": None if name == SAME_SAMPLER else name,
        "scheduler": None if scheduler == SAME_SCHEDULE else scheduler,
    }
    if any(own.values()):
        firsts = {key: found.get(key) for key in ("sampler_name", "sampler_index", "scheduler")}
        given["hires_sampler"] = sampler(firsts | {key: value for key, value in own.items() if value})
    return given
