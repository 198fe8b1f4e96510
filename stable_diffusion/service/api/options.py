"""A1111's options, as far as they mean something here: which model, VAE, file format and so on requests get."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ... import catalogue, checks
from . import models
from .fields import IGNORED, Field, read_fields

FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}  # A1111's names of ours
FIELDS = (
    Field("sd_model_checkpoint", "string", "the model, by its title, name or hash; POST loads it before it answers"),
    Field("sd_checkpoint_hash", "string", "follows the model", IGNORED),
    Field("sd_vae", "string", "a VAE that /sdapi/v1/sd-vae lists; Automatic is the model's own"),
    Field("CLIP_stop_at_last_layers", "integer", "clip skip; 1 is what the model was trained with"),
    Field("skip_early_cond", "number", "no guidance in this share of the steps at the beginning"),
    Field("s_min_uncond", "number", "no guidance below this sigma"),
    Field("s_min_uncond_all", "boolean", "always true: not in every second step below it, but in all", IGNORED),
    Field("samples_format", "string", "png, jpg or webp: the files, and the pictures in answers"),
    Field("enable_pnginfo", "boolean", "false keeps out of pictures, of any format, how they were made"),
)


@dataclass(frozen=True)
class Options:
    """What requests get that do not say otherwise; names are the catalogue's."""

    model: str = catalogue.DEFAULT
    vae: str | None = None
    clip_skip: int | None = None
    guidance_start: float = 0.0
    guidance_min_sigma: float = 0.0
    file_format: str = "png"
    no_record: bool = False

    def changed(self, values: Mapping[str, Any]) -> Options:
        """With A1111's values by name over it; unknown names are ignored. Raises ApiError 404 and 422."""
        found = read_fields(values, FIELDS)
        changes: dict[str, Any] = {}
        if found.get("sd_model_checkpoint"):
            changes["model"] = models.find(found["sd_model_checkpoint"]).name
        if "sd_vae" in found:
            changes["vae"] = models.find_vae(found["sd_vae"])
        if "CLIP_stop_at_last_layers" in found:
            layers = found["CLIP_stop_at_last_layers"]
            changes["clip_skip"] = layers if layers > 1 else None
        if "skip_early_cond" in found:
            changes["guidance_start"] = checks.number("skip_early_cond", found["skip_early_cond"], 0, 1)
        if "s_min_uncond" in found:
            changes["guidance_min_sigma"] = checks.number("s_min_uncond", found["s_min_uncond"], 0, math.inf)
        if "samples_format" in found:
            changes["file_format"] = FORMATS.get(found["samples_format"].lower(), "png")
        if "enable_pnginfo" in found:
            changes["no_record"] = not found["enable_pnginfo"]
        return dataclasses.replace(self, **changes)

    def shown(self) -> dict[str, Any]:
        """As A1111 shows them."""
        model = catalogue.find(self.model)
        return {
            "samples_format": "jpg" if self.file_format == "jpeg" else self.file_format,
            "enable_pnginfo": not self.no_record,
            "sd_model_checkpoint": models.title(model),
            "sd_checkpoint_hash": "",
            "sd_vae": self.vae or "Automatic",
            "CLIP_stop_at_last_layers": self.clip_skip or 1,
            "skip_early_cond": self.guidance_start,
            "s_min_uncond": self.guidance_min_sigma,
            "s_min_uncond_all": True,
        }


_lock = threading.Lock()
_current = Options()


def current() -> Options:
    """The options of this process."""
    return _current


def replace(options: Options) -> None:
    """Make these the options of this process."""
    global _current
    with _lock:
        _current = options
