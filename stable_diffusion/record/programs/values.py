"""Values as other programs write them: JSON texts, numbers in strings, names of samplers and of model files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .. import keys
from ..parameters import Parameters

SINGLE = ("parameters", "UserComment", "Comment", "Description")  # the keys of a record that is one text

# k-diffusion's names, which most programs use, and A1111's.
_SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_2_a": "DPM2 a",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "euler_ancestral_cfg_pp": "Euler a CFG++",
    "euler_a_cfg_pp": "Euler a CFG++",
    "restart": "Restart",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "uni_pc": "UniPC",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
    "plms": "PLMS",
    "pndm": "PLMS",
}
_SCHEDULES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "normal": "Normal",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
    "uniform": "Uniform",
    "native": None,
    "default": None,
    "": None,
}
_SUFFIXES = {"_karras": "karras", "_k": "karras", "_exponential": "exponential"}
_MODEL_SUFFIX = re.compile(r"\.(safetensors|ckpt|pth?|bin|gguf|sft)$", re.IGNORECASE)


def from_json(text: str | None) -> dict[str, Any] | None:
    """The object that a JSON text is, or None if it is anything else."""
    if text is None or not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return None
    try:
        found = json.loads(text.lstrip("\ufeff"), strict=False)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def objects(texts: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """The JSON objects among texts that can be a whole record."""
    for key in SINGLE:
        if (found := from_json(texts.get(key))) is not None:
            yield found


def integer(value: Any) -> int | None:
    """An integer, also from a string or a float without a fraction; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r" *-?\d{1,20} *", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """A finite number, also from a string; None for anything else."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def words(value: Any) -> str:
    """A string as it is, several strings one per line, "" for anything else."""
    if isinstance(value, (list, tuple)):
        return "\n".join(each for each in value if isinstance(each, str) and each)
    return value if isinstance(value, str) else ""


def model_name(value: Any) -> str | None:
    """The name of a model file, without folders and suffix."""
    name = _MODEL_SUFFIX.sub("", re.split(r"[/\\]", words(value))[-1].strip())
    return name or None


def sampler_names(sampler: Any, schedule: Any = None) -> tuple[str | None, str | None]:
    """(sampler, schedule type) as A1111 calls them; names that are not known stay as they are."""
    name, wanted = words(sampler).strip(), words(schedule).strip()
    plain = name.lower().removeprefix("k_").removesuffix("_gpu")
    for suffix, meant in _SUFFIXES.items():
        if plain.endswith(suffix) and plain.removesuffix(suffix) in _SAMPLERS:
            plain, wanted = plain.removesuffix(suffix), wanted or meant
    return _SAMPLERS.get(plain, name) or None, _SCHEDULES.get(wanted.lower(), wanted)


def loras(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """The entry of `extra` for (file, strength) of each LoRA."""
    named = [(model_name(name), number(strength)) for name, strength in pairs]
    said = ", ".join(f"{name}:{keys.plain(1.0 if strength is None else strength)}" for name, strength in named if name)
    return {keys.LORA: said} if said else {}


def parameters(values: Mapping[str, Any], names: Mapping[str, str]) -> Parameters:
    """Parameters from a flat object; `names` gives its key for each of our fields."""
    found = {field: values.get(key) for field, key in names.items()}
    sampler, schedule = sampler_names(found.get("sampler"), found.get("schedule"))
    return Parameters(
        prompt=words(found.get("prompt")),
        negative=words(found.get("negative")),
        steps=integer(found.get("steps")),
        sampler=sampler,
        schedule=schedule,
        cfg=number(found.get("cfg")),
        seed=integer(found.get("seed")),
        width=integer(found.get("width")),
        height=integer(found.get("height")),
        model=model_name(found.get("model")),
        strength=number(found.get("strength")),
    )
