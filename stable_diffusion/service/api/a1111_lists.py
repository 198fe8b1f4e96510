"""What there is to choose from, as A1111 lists it: models, VAEs, LoRAs, embeddings, samplers, and what is not here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest

from ... import __version__, catalogue
from ...adapters import files
from ...errors import StableDiffusionError
from ...hires import LATENT_MODES
from ...model_io.tensor_file import open_tensors
from ...sampler import SAMPLERS, a1111_name
from ...schedules import AUTOMATIC, SCHEDULES, ScheduleType
from ...text import styles
from ...upscaling.upscalers import all as known_upscalers
from . import models
from .a1111_grids import MATRIX, PLOT, described
from .a1111_upscale import NAME as SD_UPSCALE


def samplers(_: HttpRequest) -> list[dict[str, Any]]:
    """The samplers by A1111's names."""
    return [{"name": a1111_name(each.key)[0], "aliases": [each.key, *each.aliases], "options": {}} for each in SAMPLERS]


def schedulers(_: HttpRequest) -> list[dict[str, Any]]:
    """The schedules of noise levels by A1111's names."""
    return [
        {
            "name": each.key,
            "label": each.title,
            "aliases": list(each.aliases) or None,
            "default_rho": each.rho,
            "need_inner_model": each.of_model,
        }
        for each in (ScheduleType(AUTOMATIC, AUTOMATIC.title()), *SCHEDULES)
    ]


def upscalers(_: HttpRequest) -> list[dict[str, Any]]:
    """The ways to enlarge a picture; clients count on "None" being the first."""
    return [
        {
            "name": each.name,
            "model_name": each.architecture or None,
            "model_path": None,
            "model_url": None,
            "scale": each.scale or 4,
        }
        for each in known_upscalers()
        if not each.problem
    ]


def latent_modes(_: HttpRequest) -> list[dict[str, Any]]:
    """The ways to enlarge latents in a hires fix."""
    return [{"name": name} for name in LATENT_MODES]


def sd_models(_: HttpRequest) -> list[dict[str, Any]]:
    """The models that can be loaded; file names are relative to their folder."""
    return [
        {
            "title": models.title(model),
            "model_name": models.stem(model),
            "hash": catalogue.known_hash(model.source) if model.kind == catalogue.LOCAL else None,
            "sha256": None,
            "filename": model.name,
            "config": None,
        }
        for model in models.usable()
    ]


def sd_vae(_: HttpRequest) -> list[dict[str, Any]]:
    """The VAEs to use in place of a model's own."""
    return [{"model_name": name, "filename": name} for name in catalogue.vaes()]


def loras(_: HttpRequest) -> list[dict[str, Any]]:
    """The LoRAs; a prompt names one by `<lora:NAME:STRENGTH>`."""
    return [
        {"name": name, "alias": name, "path": _relative(path, files.LORAS), "metadata": {}}
        for name, path in files.listed(files.LORAS).items()
    ]


def embeddings(_: HttpRequest) -> dict[str, Any]:
    """The textual inversions; a prompt names one by its name."""
    found: dict[str, dict[str, Any]] = {"loaded": {}, "skipped": {}}
    for name, path in files.listed(files.EMBEDDINGS).items():
        entry = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
        try:
            with open_tensors(path) as file:
                shape = next((each.shape for each in file.tensors.values() if each.shape), (0,))
        except (StableDiffusionError, OSError):
            found["skipped"][name] = entry
        else:
            found["loaded"][name] = entry | {"shape": shape[-1], "vectors": shape[0] if len(shape) > 1 else 1}
    return found


def prompt_styles(_: HttpRequest) -> list[dict[str, Any]]:
    """The styles."""
    return [
        {"name": each.name, "prompt": each.prompt, "negative_prompt": each.negative, "path": each.path.name}
        for each in styles.listed().values()
    ]


def _relative(path: Path, kind: str) -> str:
    folder = next((each for each in files.folders(kind) if path.is_relative_to(each)), None)
    return path.relative_to(folder).as_posix() if folder else path.name


def memory(_: HttpRequest) -> dict[str, Any]:
    """The machine's memory in bytes, and this process's share of it."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "ram": {"free": max(0, total - used), "used": used, "total": total},
        "cuda": {"error": "not measured: MLX shares the machine's memory"},
    }


def nothing(_: HttpRequest) -> list[Any]:
    """An empty list."""
    return []


def scripts(_: HttpRequest) -> dict[str, Any]:
    """The scripts that are understood."""
    return {"txt2img": [MATRIX, PLOT], "img2img": [MATRIX, SD_UPSCALE.lower(), PLOT]}


def script_info(_: HttpRequest) -> list[dict[str, Any]]:
    """The arguments of the scripts for grids."""
    return described()


def flags(_: HttpRequest) -> dict[str, Any]:
    """How the server was started, as far as clients ask."""
    return {"api": True}


def system(_: HttpRequest) -> dict[str, Any]:
    """What this is."""
    return {"Platform": sys.platform, "Version": __version__, "Extensions": []}


def control_version(_: HttpRequest) -> dict[str, Any]:
    """The version of the interface for control networks, of which there are none yet."""
    return {"version": 2}


def control_models(_: HttpRequest) -> dict[str, Any]:
    """No control networks."""
    return {"model_list": []}


def control_modules(_: HttpRequest) -> dict[str, Any]:
    """No preprocessors."""
    return {"module_list": [], "module_detail": {}}


def control_types(_: HttpRequest) -> dict[str, Any]:
    """No kinds of control."""
    return {"control_types": {}}


def control_settings(_: HttpRequest) -> dict[str, Any]:
    """No units."""
    return {"control_net_unit_count": 0}
