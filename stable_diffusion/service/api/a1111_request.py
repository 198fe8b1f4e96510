"""A1111's txt2img and img2img requests, by table, to a `Request`."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ... import catalogue
from ...adapters.lora_recipe import first_recipe
from ...compare.plan import MATRIX, PLOT
from ...errors import SamplerError
from ...pictures.reading import fit
from ...prompts import of_installation, with_default
from ...request import DEFAULTS, Request
from ...sampler import key_of, sampler_from_a1111, takes_eta
from ...schedules import AUTOMATIC, schedule_by_name
from .. import values
from . import a1111_grids, a1111_hires, a1111_upscale, bodies, models, painting
from . import options as options_module
from .errors import ApiError
from .fields import IGNORED, REFUSED, Field, read_fields
from .options import Options

DYNAMIC = "dynamic prompts"  # followed by its version
CONTROL = "controlnet"  # clients send its entry even where they want none
FIELDS = (
    Field("prompt", "string"),
    Field("negative_prompt", "string"),
    Field("steps", "integer", "default: the model's"),
    Field("cfg_scale", "number", "default: the model's"),
    Field("width", "integer", "pixels, a multiple of 8; default: the model's"),
    Field("height", "integer", "pixels, a multiple of 8; default: the model's"),
    Field("sampler_name", "string", "a name or alias that /sdapi/v1/samplers lists; default: the model's"),
    Field("sampler_index", "string", "the old name of sampler_name, which counts before it"),
    Field("scheduler", "string", "a name, label or alias that /sdapi/v1/schedulers lists; default: as the model says"),
    Field("seed", "integer", "-1 draws one; picture i gets seed + i"),
    Field("subseed", "integer", "the variation's seed; -1 draws one"),
    Field("subseed_strength", "number", "from 0 to 1; all pictures then have one seed, and picture i gets subseed + i"),
    Field("n_iter", "integer", "batches; n_iter x batch_size is at most 100"),
    Field("batch_size", "integer", "pictures in a batch"),
    Field("override_settings", "object", "options for this request; unknown ones are ignored"),
    Field("override_settings_restore_afterwards", "boolean", "false keeps them"),
    Field("send_images", "boolean", "false leaves the pictures out of the answer"),
    Field("do_not_save_samples", "boolean", "true keeps the pictures out of the gallery"),
    Field("save_images", "boolean", "true saves whatever do_not_save_samples says"),
    Field("styles", "array", "names that /sdapi/v1/prompt-styles lists; a name that is not there is refused"),
    Field("restore_faces", "boolean", "there is no face restoration", REFUSED),
    Field("tiling", "boolean", "true: copies meet without a seam along both axes"),
    Field("tiling_axes", "string", "the same along x, y or both alone, or off; not one of A1111's"),
    Field("refiner_checkpoint", "string", "a model that /sdapi/v1/sd-models lists; None for none"),
    Field("refiner_switch_at", "number", "the share of the noise schedule after which it takes over; default: 0.8"),
    Field("infotext", "string", "send the parameters as fields", REFUSED),
    Field("seed_resize_from_w", "integer", "", REFUSED, (-1,)),
    Field("seed_resize_from_h", "integer", "", REFUSED, (-1,)),
    Field("s_churn", "number", "", REFUSED),
    Field("s_noise", "number", "", REFUSED, (1,)),
    Field("s_min_uncond", "number", "no guidance below this sigma, in every step; default: the option's"),
    Field("deepcache_interval", "integer", "1 is off; not one of A1111's"),
    Field("deepcache_branch", "integer", "default: 0; not one of A1111's"),
    Field("guidance_end", "number", "no guidance after this share of the steps, from 0 to 1; not one of A1111's"),
    Field("eta", "number", "from 0 to 1, for samplers that add noise again; default: the sampler's own"),
    Field("s_tmin", "number", "counts with s_churn only", IGNORED),
    Field("s_tmax", "number", "counts with s_churn only", IGNORED),
    Field(
        "alwayson_scripts",
        "object",
        f"names are refused, but for {CONTROL} without enabled units, and Dynamic Prompts: its first three arguments "
        "switch them on, list all combinations, and how often",
    ),
    Field("do_not_save_grid", "boolean", "grids are answered, and never saved", IGNORED),
    Field("comments", "object", "", IGNORED),
    Field("force_task_id", "string", "", IGNORED),
    Field("disable_extra_networks", "boolean", "write no LoRA tags", REFUSED),
)
_STRENGTH = "how much may change"
_GRID_ARGS = f"of {PLOT} and {MATRIX}: as /sdapi/v1/script-info lists them; one picture a cell"
TEXT_FIELDS = (
    *FIELDS,
    *a1111_hires.FIELDS,
    Field("script_name", "string", f"{PLOT}, {MATRIX} or None; others are refused"),
    Field("script_args", "array", _GRID_ARGS),
)
PICTURE_FIELDS = (
    *FIELDS,
    Field("script_name", "string", f"{PLOT}, {MATRIX}, {a1111_upscale.NAME} or None; others are refused"),
    Field(
        "script_args",
        "array",
        f"{_GRID_ARGS}; of {a1111_upscale.NAME}: anything, overlap in pixels, upscaler (name or number), factor",
    ),
    Field("enable_hr", "boolean", "hires fix is for text to image", REFUSED),
    Field("init_images", "array", "one picture in base64", required=True),
    Field("denoising_strength", "number", f"{_STRENGTH}; default: 0.75"),
    Field("resize_mode", "integer", "0 distorts, 1 crops, 2 fills the sides with the edge's colours; 3 is refused"),
    Field("mask", "string", "a picture in base64; white, or where it has alpha opaque, is repainted"),
    Field("mask_blur", "number", "pixels; default: 4"),
    Field("mask_blur_x", "number", "", REFUSED, (4,)),
    Field("mask_blur_y", "number", "", REFUSED, (4,)),
    Field("mask_round", "boolean", "masks are rounded always", IGNORED),
    Field("inpainting_fill", "integer", "0 fill, 1 original, 2 noise; 3 is refused; default: 0"),
    Field("inpaint_full_res", "boolean", "true sees and paints the mask's surroundings alone; default: true"),
    Field("inpaint_full_res_padding", "integer", "pixels; default: 0"),
    Field("inpainting_mask_invert", "integer", "1 keeps the white"),
    Field("initial_noise_multiplier", "number", "", REFUSED, (1,)),
    Field("image_cfg_scale", "number", "for models that are not supported", IGNORED),
    Field("include_init_images", "boolean", "they are never sent back", IGNORED),
    Field("latent_mask", "string", "", REFUSED),
)
ECHOED_NOT = ("init_images", "mask")  # of the fields that answers repeat
_FITS = {0: "stretch", 1: "crop", 2: "fill"}
_CONTENTS = {0: "fill", 1: "original", 2: "noise"}


@dataclass(frozen=True)
class Asked:
    """A request, and what becomes of its pictures."""

    request: Request
    send: bool
    save: bool
    keep: Options | None  # options that stay
    grid: a1111_grids.Grid | None = None  # in place of the request


def read(payload: Mapping[str, Any], with_picture: bool) -> Asked:
    """What a payload asks for. Raises ApiError and InputError for what cannot be done."""
    found = read_fields(payload, PICTURE_FIELDS if with_picture else TEXT_FIELDS)
    _check_script(found.get("script_name", ""), with_picture)
    scripts = _read_scripts(found.get("alwayson_scripts", {}))
    options = options_module.current().changed(found.get("override_settings", {}))
    model = catalogue.find(options.model)
    defaults = catalogue.with_recipe(model.defaults, first_recipe((), found.get("prompt", "")))
    width, height = values.usual_size(model)
    strength = found.get("subseed_strength", 0.0)
    iterations, size = found.get("n_iter", 1), found.get("batch_size", 1)
    for name, count in (("n_iter", iterations), ("batch_size", size)):
        if count < 1:
            raise ApiError(422, f"{name} = {count} should be at least 1.")
    sampler = _sampler(found) or defaults.sampler
    given: dict[str, Any] = {
        "prompt": found.get("prompt", ""),
        # Clients say all of what they want; what is added is the installation's own.
        "negative": with_default(found.get("negative_prompt", ""), of_installation()),
        "default_negative": False,
        "styles": _styles(found.get("styles", [])),
        "steps": found.get("steps", defaults.steps),
        "cfg": found.get("cfg_scale", defaults.cfg),
        "width": found.get("width") or width,
        "height": found.get("height") or height,
        "sampler": sampler,
        "eta": found.get("eta") if takes_eta(sampler) else None,
        "seed": _seed(found.get("seed")),
        "variation_strength": strength,
        "variation_seed": _seed(found.get("subseed")) if strength else None,
        "n_images": min(iterations * size, 10_000),
        "batch_size": min(size, 256),
        "model": options.model,
        "refiner": _refiner(found),
        "refiner_switch": found.get("refiner_switch_at", DEFAULTS["refiner_switch"]),
        "vae": options.vae,
        "clip_skip": options.clip_skip,
        "guidance_start": options.guidance_start,
        "guidance_end": found.get("guidance_end", 1.0),
        "guidance_min_sigma": found.get("s_min_uncond", options.guidance_min_sigma),
        "deepcache_interval": found.get("deepcache_interval", 1),
        "deepcache_branch": found.get("deepcache_branch", 0),
        "tiling": found.get("tiling_axes", "both" if found.get("tiling") else "off"),
        "file_format": options.file_format,
        "no_record": options.no_record,
        "previews": ("fast",),
    }
    given |= a1111_hires.second_pass(found, given["width"], given["height"], _sampler)
    request = Request(**given | scripts)
    painting.check(request)  # before pictures are decoded, and brought to its size
    if with_picture:
        request = dataclasses.replace(request, **_inputs(found, given["width"], given["height"]))
        painting.check(request)
    keep = options if found.get("override_settings_restore_afterwards") is False else None
    save = found.get("save_images", False) or not found.get("do_not_save_samples", False)
    grid = a1111_grids.read(found, request, with_picture)
    return Asked(request, found.get("send_images", True), save, keep, grid)


def _check_script(name: str, with_picture: bool) -> None:
    known = (PLOT, MATRIX, a1111_upscale.NAME) if with_picture else (PLOT, MATRIX)
    if name.strip().lower() not in ("", "none", *map(str.lower, known)):
        raise ApiError(422, f"script_name = {name[:100]!r} is not supported: there are {', '.join(known)}.")


def _seed(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _refiner(found: Mapping[str, Any]) -> str | None:
    name = found.get("refiner_checkpoint", "")
    return None if name.strip().lower() in ("", "none") else models.find(name).name


def _sampler(found: Mapping[str, Any]) -> str | None:
    name = found.get("sampler_name") or found.get("sampler_index")
    scheduler = found.get("scheduler")
    try:
        if not name and scheduler and schedule_by_name(scheduler) != AUTOMATIC:
            name = "Euler"
        return key_of(sampler_from_a1111(name, scheduler)) if name else None
    except SamplerError as error:
        raise ApiError(404, f"Sampler not found: {error}") from None


def _styles(names: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in names):
        raise ApiError(422, f"styles = {reprlib.repr(names)} should be a list of names.")
    return tuple(names)


def _read_scripts(scripts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Request` that scripts set. Raises ApiError for scripts that are not here."""
    found: dict[str, Any] = {}
    for name, entry in scripts.items():
        args = entry.get("args", ()) if isinstance(entry, dict) else (True,)
        if name.lower().startswith(DYNAMIC) and isinstance(args, (list, tuple)):
            found |= _dynamic_prompts(list(args))
            continue
        idle = not args or all(isinstance(unit, dict) and unit.get("enabled") is False for unit in args)
        if name.lower() != CONTROL or not idle:
            raise ApiError(422, f"always on script {name[:100]} not found")
    return found


def _dynamic_prompts(args: list[Any]) -> dict[str, Any]:
    """sd-dynamic-prompts' arguments: enabled, all combinations, how often; others ask for models that write prompts."""
    on, every, times = [*args, None, None, None][:3]
    if any(value is True for value in args[3:]):
        raise ApiError(422, f"Dynamic Prompts: {reprlib.repr(args[3:])} asks for what is not here; leave these false.")
    if not on:
        return {"dynamic_prompts": False}
    found: dict[str, Any] = {"dynamic_prompts": True, "combinations": bool(every)}
    return found | ({"n_images": times if isinstance(times, int) and times > 1 else 1} if every else {})


def _inputs(found: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """The fields of `Request` for an input picture and its mask."""
    pictures = found["init_images"]
    if len(pictures) != 1:
        raise ApiError(422, f"init_images has {len(pictures)} pictures and should have one.")
    picture, file = bodies.opened(bodies.decoded(pictures[0], "init_images[0]"), "init_images[0]")
    mode = found.get("resize_mode", 0)
    if mode not in _FITS:
        raise ApiError(422, f"resize_mode = {mode} is not supported: choose 0, 1 or 2.")
    given: dict[str, Any] = {"strength": found.get("denoising_strength", 0.75)}
    if larger := a1111_upscale.tiled(found, width, height):
        if found.get("mask"):
            raise ApiError(422, f"script_name = {a1111_upscale.NAME!r} takes no mask.")
        return given | larger | {"picture": picture, "picture_file": file}
    if not found.get("mask"):
        how = _FITS[mode]
        given["picture"] = _fitted(picture, width, height, how)  # now: what waits in the queue is small
        return given if how == "fill" else given | {"picture_file": file, "fit": how}
    content = found.get("inpainting_fill", 0)
    if content not in _CONTENTS:
        raise ApiError(422, f"inpainting_fill = {content} is not supported: choose 0, 1 or 2.")
    mask = read_mask(bodies.decoded(found["mask"], "mask"))
    only_masked = found.get("inpaint_full_res", True)
    if mask.size != picture.size:
        mask = mask.resize(picture.size, Image.Resampling.NEAREST)
    if not only_masked:  # the whole picture comes to the size that is painted, and stays there
        picture, mask = (_fitted(image, width, height, _FITS[mode]) for image in (picture, mask))
    invert = bool(found.get("inpainting_mask_invert", 0))
    if mask.getextrema() == ((255, 255) if invert else (0, 0)):
        raise ApiError(422, "The mask leaves nothing to repaint.")
    return given | {
        "picture": picture,
        "mask": mask,
        "mask_blur": found.get("mask_blur", 4.0),
        "masked_content": _CONTENTS[content],
        "only_masked": only_masked,
        "padding": found.get("inpaint_full_res_padding", 0) if only_masked else 0,
        "invert": invert,
    }


def read_mask(data: bytes) -> Image.Image:
    """A mask as A1111 reads it, "L" of 0 and 255: its alpha where that says something, else its grey."""
    picture, _ = bodies.opened(data, "mask")
    grey = bodies.alpha(data) or picture.convert("L")
    return grey.point(lambda value: 255 if value > 127 else 0)


def _fitted(image: Image.Image, width: int, height: int, how: str) -> Image.Image:
    """A picture or mask at the size that is painted; masks stay hard."""
    mask = image.mode == "L"
    rgb = image.convert("RGB")
    done = filled(rgb, width, height) if how == "fill" else fit(rgb, width, height, how)
    return done.convert("L").point(lambda value: 255 if value > 127 else 0) if mask else done


def filled(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The whole picture in the middle of (width, height), its sides filled with the colours of its edge."""
    scale = min(width / picture.width, height / picture.height)
    size = max(1, min(width, round(picture.width * scale))), max(1, min(height, round(picture.height * scale)))
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    sides = ((top, height - size[1] - top), (left, width - size[0] - left), (0, 0))
    return Image.fromarray(np.pad(pixels, sides, mode="edge"))
