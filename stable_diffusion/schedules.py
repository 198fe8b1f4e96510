"""How noise levels may be spread over a generation's steps, under A1111's names (its modules/sd_schedulers.py).

diffusion/spacing.py has their formulas, each class of samplers says which it offers. Needs neither MLX nor numpy.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from .errors import SamplerError

AUTOMATIC = "automatic"  # what A1111 takes for a sampler; where it takes none of these, what the checkpoint says


@dataclass(frozen=True)
class ScheduleType:
    """One schedule: its key, A1111's label, its further names there, and what its API tells besides."""

    key: str
    title: str
    aliases: tuple[str, ...] = ()
    rho: float = -1.0  # of its formula; -1 if that has none
    of_model: bool = False  # whether it is made from the checkpoint's own training times


SCHEDULES: tuple[ScheduleType, ...] = (
    ScheduleType("uniform", "Uniform", of_model=True),
    ScheduleType("karras", "Karras", rho=7.0),
    ScheduleType("exponential", "Exponential"),
    ScheduleType("polyexponential", "Polyexponential", rho=1.0),
    ScheduleType("sgm_uniform", "SGM Uniform", ("SGMUniform",), of_model=True),
    ScheduleType("kl_optimal", "KL Optimal"),
    ScheduleType("align_your_steps", "Align Your Steps"),
    ScheduleType("simple", "Simple", of_model=True),
    ScheduleType("normal", "Normal", of_model=True),
    ScheduleType("ddim", "DDIM", of_model=True),
    ScheduleType("beta", "Beta", of_model=True),
)
TITLES: dict[str, str] = {each.key: each.title for each in SCHEDULES}


def schedule_by_name(name: str) -> str:
    """The key of a schedule, or `AUTOMATIC`, by any of its names in any case.

    Raises `SamplerError` for another name, with similar ones.
    """
    if not isinstance(name, str):
        raise SamplerError(f"schedule = {name!r} should be a name such as 'karras'.")
    known = {_plain(AUTOMATIC): AUTOMATIC}
    known |= {_plain(each): row.key for row in SCHEDULES for each in (row.key, row.title, *row.aliases)}
    if _plain(name) in known:
        return known[_plain(name)]
    near = dict.fromkeys(known[each] for each in difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.5))
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join((AUTOMATIC, *TITLES))}."
    raise SamplerError(f"schedule = {name!r} is not known. {hint}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
