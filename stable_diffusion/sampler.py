"""The registry of samplers: their keys, the names that users know, and the pairs that A1111 writes into pictures."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Any, cast

from .diffusion.samplers.base import Noise, Sampler, Step
from .diffusion.samplers.ddim import DDIMSampler, DDPMSampler, LCMSampler
from .diffusion.samplers.dpm import DPMSolverMultistepSDESampler, DPMSolverSampler
from .diffusion.samplers.dpm2 import DPM2AncestralSampler, DPM2Sampler, DPMSolver2SAncestralSampler
from .diffusion.samplers.dpm3 import DPMSolver3MSDESampler
from .diffusion.samplers.euler import EulerAncestralCFGPPSampler, EulerAncestralSampler, SimpleEulerSampler
from .diffusion.samplers.heun import DPMSolverSDESampler, HeunSampler
from .diffusion.samplers.lms import LMSSampler
from .diffusion.samplers.pndm import PNDMSampler
from .diffusion.samplers.restart import RestartSampler
from .diffusion.samplers.tcd import TCDSampler
from .diffusion.samplers.unipc import UniPCSampler
from .errors import SamplerError
from .schedules import AUTOMATIC, TITLES, schedule_by_name

__all__ = [
    "DEFAULT_SAMPLER",
    "SAMPLERS",
    "DDIMSampler",
    "DDPMSampler",
    "DPM2AncestralSampler",
    "DPM2Sampler",
    "DPMSolver2SAncestralSampler",
    "DPMSolver3MSDESampler",
    "DPMSolverMultistepSDESampler",
    "DPMSolverSDESampler",
    "DPMSolverSampler",
    "EulerAncestralCFGPPSampler",
    "EulerAncestralSampler",
    "HeunSampler",
    "LCMSampler",
    "LMSSampler",
    "Noise",
    "PNDMSampler",
    "RestartSampler",
    "Sampler",
    "SamplerName",
    "SimpleEulerSampler",
    "Step",
    "TCDSampler",
    "UniPCSampler",
    "a1111_name",
    "automatic_of",
    "eta_of",
    "key_of",
    "name_of",
    "sampler_by_name",
    "sampler_from_a1111",
    "sampler_names",
    "samplers",
    "takes_eta",
    "with_eta",
]

DEFAULT_SAMPLER = "euler"

# Further names of each class, in addition to key and title: A1111's, ComfyUI's, InvokeAI's, diffusers'.
_KNOWN_AS: dict[type[Sampler], tuple[str, ...]] = {
    SimpleEulerSampler: ("k_euler", "EulerDiscreteScheduler", "SimpleEulerSampler"),
    EulerAncestralSampler: (
        "euler ancestral",
        "k_euler_a",
        "k_euler_ancestral",
        "EulerAncestralDiscreteScheduler",
    ),
    EulerAncestralCFGPPSampler: ("euler ancestral cfg++", "k_euler_a_cfg_pp", "k_euler_ancestral_cfg_pp"),
    HeunSampler: ("k_heun", "HeunDiscreteScheduler"),
    LMSSampler: ("k_lms", "LMSDiscreteScheduler"),
    DPM2Sampler: ("dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"),
    DPM2AncestralSampler: ("dpm_2_ancestral", "k_dpm_2_a", "k_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    DPMSolver2SAncestralSampler: ("dpmpp_2s_ancestral", "k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
    DPMSolverSampler: ("k_dpmpp_2m", "DPMSolverMultistepScheduler"),
    DPMSolverSDESampler: ("k_dpmpp_sde", "DPMSolverSDEScheduler"),
    DPMSolverMultistepSDESampler: ("k_dpmpp_2m_sde",),
    DPMSolver3MSDESampler: ("k_dpmpp_3m_sde",),
    RestartSampler: ("k_restart",),
    UniPCSampler: ("uni_pc", "UniPCMultistepScheduler"),
    DDIMSampler: ("DDIMScheduler",),
    DDPMSampler: ("DDPMScheduler",),
    PNDMSampler: ("PLMS", "PNDMScheduler"),
    LCMSampler: ("k_lcm", "LCMScheduler"),
    TCDSampler: ("k_tcd", "TCDScheduler"),
}
# The suffixes of samplers' names that mean a schedule.
_SUFFIXES = {**{key: (key,) for key in (*TITLES, AUTOMATIC)}, "karras": ("karras", "k", "ka")}
_A1111_SAMPLERS: dict[type[Sampler], str] = {PNDMSampler: "PLMS"}  # where A1111's name is not our title


@dataclass(frozen=True)
class SamplerName:
    """One sampler for a dropdown: its key, the name to show, and the sigma schedules that it offers."""

    key: str
    title: str
    schedules: tuple[str, ...]
    aliases: tuple[str, ...] = ()  # A1111's


SAMPLERS: tuple[SamplerName, ...] = tuple(
    SamplerName(cls.key, cls.title, cls.schedules, tuple(name for name in names if name.startswith("k_")))
    for cls, names in _KNOWN_AS.items()
)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold().replace("++", "pp"))


_BY_NAME: dict[str, tuple[type[Sampler], str | None]] = {
    _plain(name + suffix): (cls, schedule)
    for schedule, suffixes in ((None, ("",)), *_SUFFIXES.items())
    for suffix in suffixes
    for cls, names in _KNOWN_AS.items()
    for name in (cls.key, cls.title, *names)
}


def sampler_by_name(name: str | Sampler, schedule: str | None = None) -> Sampler:
    """The sampler of a key or of a name that users know ("DPM++ 2M Karras"), in any case; samplers are returned as is.

    `schedule` is one of stable_diffusion.schedules, by any name: "karras", or "automatic" for the one that A1111 takes
    for this sampler. Raises `SamplerError` for an unknown name, with similar ones, for a schedule that the sampler
    lacks, and for one beside a name that has another.
    """
    if schedule is not None:
        return _with_schedule(sampler_by_name(name), schedule_by_name(schedule))
    if isinstance(name, Sampler):
        return name
    if not isinstance(name, str):
        raise SamplerError(f"sampler = {name!r} should be a name such as {DEFAULT_SAMPLER!r}, or a sampler.")
    if _plain(name) not in _BY_NAME:
        raise SamplerError(_unknown(name))
    cls, schedule = _BY_NAME[_plain(name)]
    return cls() if schedule is None else _with_schedule(cls(), schedule)


def _with_schedule(sampler: Sampler, schedule: str) -> Sampler:
    """The sampler with a schedule of this key; with `AUTOMATIC`, the one that it takes by itself, if any."""
    if sampler.sigma_schedule in sampler.schedules:
        if schedule in (AUTOMATIC, sampler.sigma_schedule):
            return sampler
        raise SamplerError(
            f"{name_of(sampler)} has a schedule in its name, and {schedule} is another: give one of them, such as "
            f"{sampler.key} with {schedule}."
        )
    if schedule != AUTOMATIC and schedule not in sampler.schedules:
        with_schedule = ", ".join(f"{known.key}_{schedule}" for known in SAMPLERS if schedule in known.schedules)
        raise SamplerError(
            f"{sampler.title} has no {schedule} sigmas, because its times come from the checkpoint's training: choose "
            f"{sampler.key} without it, or one of {with_schedule}."
        )
    return dataclasses.replace(sampler, sigma_schedule=schedule)


def automatic_of(sampler: str | Sampler) -> str | None:
    """The key of the schedule that A1111 takes for a sampler by itself; None: what the checkpoint says."""
    return sampler_by_name(sampler).automatic


def takes_eta(sampler: str | Sampler) -> bool:
    """Whether a sampler has an `eta`: a share of noise that it adds again at each step."""
    return any(field.name == "eta" for field in dataclasses.fields(sampler_by_name(sampler)))


def with_eta(sampler: Sampler, eta: float | None) -> Sampler:
    """The sampler with another `eta`; None is its own. Raises `SamplerError` outside [0, 1], and if it has none."""
    if eta is None:
        return sampler
    if not takes_eta(sampler):
        known = ", ".join(each.key for each in SAMPLERS if takes_eta(each.key))
        raise SamplerError(f"{sampler.title} takes no eta (eta = {eta!r}); these do: {known}.")
    return dataclasses.replace(sampler, **cast(Any, {"eta": eta}))


def eta_of(sampler: Sampler) -> float | None:
    """A sampler's `eta` where that is not the one of its class; None as well if it has none."""
    eta = getattr(sampler, "eta", None)
    return None if eta == getattr(type(sampler), "eta", None) else eta


def sampler_names() -> dict[str, str]:
    """Every key, including those with a sigma schedule, and its title: {"dpmpp_2m_karras": "DPM++ 2M Karras", ...}."""
    return {
        known.key + (f"_{schedule}" if schedule else ""): known.title + (f" {TITLES[schedule]}" if schedule else "")
        for known in SAMPLERS
        for schedule in (None, *known.schedules)
    }


def samplers() -> list[SamplerName]:
    """All samplers: keys, titles, and the sigma schedules that each offers; "dpmpp_2m_karras" is a key with one."""
    return list(SAMPLERS)


def name_of(sampler: str | Sampler) -> str:
    """The title of a sampler or key: "DPM++ 2M Karras"."""
    return sampler_names()[key_of(sampler)]


def key_of(sampler: str | Sampler) -> str:
    """The registry's key of a sampler or of any of its names: "dpmpp_2m_karras"."""
    found = sampler_by_name(sampler)
    return f"{found.key}_{found.sigma_schedule}" if found.sigma_schedule in found.schedules else found.key


def a1111_name(sampler: str | Sampler) -> tuple[str, str | None]:
    """(Sampler, Schedule type) as A1111 writes them into pictures; None if Schedule type is left out."""
    found = sampler_by_name(sampler)
    schedule = found.sigma_schedule if found.sigma_schedule in found.schedules else None
    return _A1111_SAMPLERS.get(type(found), found.title), TITLES[schedule] if schedule else None


def sampler_from_a1111(sampler: str, schedule_type: str | None = None) -> Sampler:
    """The sampler of A1111's pair, also of its older single names ("DPM++ 2M Karras", no schedule type).

    A schedule type counts before the suffix of a name; one that the sampler does not have is left out, since A1111
    writes one for samplers that ignore it, too. No schedule type leaves the schedule to the checkpoint. Raises
    `SamplerError` for a name that is not known here.
    """
    found = sampler_by_name(sampler)
    if schedule_type is None or not schedule_type.strip():
        return found
    schedule = schedule_by_name(schedule_type)
    if schedule == AUTOMATIC:
        return _with_schedule(found, schedule)
    return _with_schedule(type(found)(), schedule) if schedule in found.schedules else found


def _unknown(name: str) -> str:
    keys = {_plain(known): key for key, title in sampler_names().items() for known in (key, title)}
    near = dict.fromkeys(keys[match] for match in difflib.get_close_matches(_plain(name), keys, n=4, cutoff=0.5))
    return f"sampler = {name!r} is not known. " + (
        f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(known.key for known in SAMPLERS)}."
    )
