"""Every route in one table, and as Starlette's routes."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from . import a1111_lists as lists
from . import a1111_paint, a1111_pictures, a1111_request, a1111_state, document, events, openai, options
from .endpoint import Endpoint
from .errors import Handler, answered
from .fields import Field


def _a1111(method: str, name: str, handle: Handler, fields: tuple[Field, ...] = ()) -> Endpoint:
    return Endpoint(method, f"/sdapi/v1/{name}", handle, fields)


def _openai(
    method: str, name: str, handle: Handler, fields: tuple[Field, ...] = (), multipart: bool = False
) -> Endpoint:
    return Endpoint(method, f"/v1/{name}", handle, fields, openai.error, multipart)


def described(_: Request) -> dict[str, Any]:
    """This API as an OpenAPI document."""
    return document.openapi(ENDPOINTS)


ENDPOINTS: tuple[Endpoint, ...] = (
    _a1111("POST", "txt2img", a1111_paint.txt2img, a1111_request.TEXT_FIELDS),
    _a1111("POST", "img2img", a1111_paint.img2img, a1111_request.PICTURE_FIELDS),
    _a1111("GET", "progress", a1111_state.progress),
    _a1111("POST", "interrupt", a1111_state.interrupt),
    _a1111("POST", "skip", a1111_state.skip),
    _a1111("GET", "options", a1111_state.get_options),
    _a1111("POST", "options", a1111_state.set_options, options.FIELDS),
    _a1111("POST", "png-info", a1111_pictures.png_info, a1111_pictures.INFO_FIELDS),
    _a1111("POST", "extra-single-image", a1111_pictures.extra_single, a1111_pictures.EXTRA_FIELDS),
    _a1111("POST", "extra-batch-images", a1111_pictures.extra_batch, a1111_pictures.BATCH_FIELDS),
    _a1111("GET", "sd-models", lists.sd_models),
    _a1111("GET", "sd-vae", lists.sd_vae),
    _a1111("GET", "loras", lists.loras),
    _a1111("GET", "embeddings", lists.embeddings),
    _a1111("GET", "prompt-styles", lists.prompt_styles),
    _a1111("GET", "samplers", lists.samplers),
    _a1111("GET", "schedulers", lists.schedulers),
    _a1111("GET", "upscalers", lists.upscalers),
    _a1111("GET", "latent-upscale-modes", lists.latent_modes),
    _a1111("GET", "memory", lists.memory),
    _a1111("GET", "cmd-flags", lists.flags),
    _a1111("GET", "system-info", lists.system),
    _a1111("GET", "scripts", lists.scripts),
    _a1111("GET", "script-info", lists.script_info),
    *(
        _a1111("GET", name, lists.nothing)
        for name in (
            "lycos", "hypernetworks", "face-restorers", "realesrgan-models",
            "extensions", "artists", "artist-categories",
        )
    ),
    *(
        _a1111("POST", name, a1111_state.refresh)
        for name in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")
    ),
    _a1111("POST", "unload-checkpoint", a1111_state.unload),
    _a1111("POST", "reload-checkpoint", a1111_state.reload),
    _a1111("POST", "interrogate", a1111_pictures.interrogate),
    _a1111("GET", "interrogate", a1111_pictures.interrogate),  # clients look here whether there is one
    Endpoint("GET", "/controlnet/version", lists.control_version),
    Endpoint("GET", "/controlnet/model_list", lists.control_models),
    Endpoint("GET", "/controlnet/module_list", lists.control_modules),
    Endpoint("GET", "/controlnet/control_types", lists.control_types),
    Endpoint("GET", "/controlnet/settings", lists.control_settings),
    Endpoint("POST", "/controlnet/detect", a1111_pictures.detect),
    _openai("POST", "images/generations", openai.generations, openai.FIELDS),
    _openai("POST", "images/edits", openai.edits, openai.EDIT_FIELDS, multipart=True),
    _openai("GET", "images/files/{token}", openai.linked),
    _openai("GET", "models", openai.list_models),
    _openai("GET", "models/{id:path}", openai.get_model),
    Endpoint("GET", "/events", events.events),
    Endpoint("GET", "/openapi.json", described),
)  # fmt: skip


def routes() -> list[Route]:
    """For `Starlette(routes=...)` and Streamlit's `App`: one route for each path."""
    methods: dict[str, list[Endpoint]] = {}
    for each in ENDPOINTS:
        methods.setdefault(each.path, []).append(each)
    return [_route(path, found) for path, found in methods.items()]


def _route(path: str, endpoints: list[Endpoint]) -> Route:
    handlers = {each.method: answered(each.handle, each.error) for each in endpoints}

    async def endpoint(request: Any) -> Any:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, endpoint, methods=list(handlers))
