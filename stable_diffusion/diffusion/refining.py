"""The second model of a generation, which takes over below a time: an ensemble of experts.

Balaji et al. 2022, arXiv:2211.01324; Podell et al. 2023, arXiv:2307.01952, section 2.5. Calls of the network at times
below round((1 - switch) n) are the refiner's, by which the reference splits its timesteps (`denoising_end` and
`denoising_start` of diffusers' SDXL pipelines) and A1111 its steps (modules/sd_samplers_common.py, apply_refiner). The
sampler is one: its history goes on across the switch, as in A1111, while the reference begins a second one without any.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import checks, families
from ..config import SchedulerConfig
from ..errors import InputError
from ..sampler import Sampler
from .schedule import NoiseSchedule, Plan

SWITCH = 0.8  # of the training times


class Expert(Protocol):
    """What one of the two models is checked by."""

    name: str
    family: str
    scheduler_config: SchedulerConfig

    @property
    def latent_space(self) -> Hashable:
        """Equal for models that understand each other's latents."""

    @property
    def inpainting(self) -> bool:
        """Whether its network takes picture and mask."""


@dataclass(frozen=True)
class Refinement:
    """Which model takes over, and from where on."""

    model: Any  # a StableDiffusion
    switch: float
    below: float  # the times, of the first model's training, at which it runs
    schedule: NoiseSchedule | None  # its own, if that is not the first model's


def check_refiner(
    model: Expert, refiner: Any, switch: float, sampler: Sampler, plan: Plan
) -> tuple[Refinement | None, list[str]]:
    """The refinement of a plan of the first model, and notes in words; None if there is no second one.

    Raises `InputError` for a `switch` outside [0, 1] and for a refiner that cannot read the first model's latents.
    """
    switch = checks.number("refiner_switch", switch, 0.0, 1.0)
    if refiner is None or refiner is model:
        return None, []
    if not hasattr(refiner, "latent_space"):
        raise InputError(f"refiner = {refiner!r} should be a loaded model, a StableDiffusion.")
    if refiner.latent_space != model.latent_space:
        raise InputError(
            f"{refiner.name!r} ({_title(refiner)}) cannot refine what {model.name!r} ({_title(model)}) begins: their "
            "latents differ. Choose a refiner with the same VAE."
        )
    if refiner.inpainting != model.inpainting:
        raise InputError(
            f"{refiner.name!r} cannot refine what {model.name!r} begins: one of them is an inpainting checkpoint. "
            "Choose two, or none."
        )
    below = float(round((1 - switch) * plan.config.num_train_timesteps))
    theirs = NoiseSchedule.from_config(sampler.resolve(refiner.scheduler_config), floored=True)
    same = np.array_equal(theirs.alpha_bars[:-1], plan.schedule.alpha_bars[:-1])
    levels = (*plan.levels, *plan.calls)[plan.first :]
    notes = []
    if not any(level.t < below for level in levels):
        notes.append(
            f"{refiner.name!r} refines nothing: no step begins after {switch:g} of the schedule. Take more steps, or "
            "let it take over earlier."
        )
    return Refinement(refiner, switch, below, None if same else theirs), notes


def _title(model: Expert) -> str:
    return families.get(model.family).title
