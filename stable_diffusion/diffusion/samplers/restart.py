"""Restart: Heun's method that goes back to a higher noise level on its way, and down again."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...backend import mx
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, Plan, ve_levels
from ..spacing import karras_sigmas
from .base import KDiffusionSampler, Noise, Step, step_reached
from .euler import EULER_DEFAULTS
from .heun import heun_step

FEWEST, MANY = 20, 36  # steps from which there is one restart, and from which there are two
FROM, BACK_TO = 0.1, 2.0  # ve_sigmas


@dataclass(frozen=True)
class RestartSampler(KDiffusionSampler):
    """Heun's method; near ve_sigma 0.1 noise is added up to 2, and the way from there is gone again.

    Xu et al. 2023, arXiv:2306.14878, algorithm 1, with A1111's choices (its modules/sd_samplers_extra.py): with less
    than 20 steps there is no restart and this is Heun's method; from 20 on, 9 of the steps are those of one restart,
    from 36 on a quarter is that of each of two, and all lie on Karras sigmas between the ends of the schedule. Each
    restart draws once. What image to image leaves of the steps counts.
    """

    key = "restart"
    title = "Restart"
    automatic = "karras"
    defaults = EULER_DEFAULTS
    honoured = frozenset({"rescale_betas_zero_snr"})
    whole_range = True

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        way = with_restarts(plan)
        before: NoiseLevel | None = None
        for i in range(way.first, len(way.levels)):
            level, end = way.levels[i], way.ends[i]
            if before is not None and before.ve_sigma < level.ve_sigma:
                up = math.sqrt(level.ve_sigma**2 - before.ve_sigma**2)
                x = level.alpha * (x / before.alpha + up * noise())
            x, x_0 = heun_step(denoiser, x, level, end, way.number(i))
            before = end
            yield step_reached(way, i, x, x_0)


def with_restarts(plan: Plan) -> Plan:
    """The plan of as many steps with A1111's restarts, or the same plan where it has none."""
    total = len(plan)
    levels, last = plan.levels[plan.first :], plan.ends[-1]
    if total < FEWEST:
        return plan
    steps, times = (total // 4, 2) if total >= MANY else (9, 1)
    sigmas = karras_sigmas(levels[-1].ve_sigma, levels[0].ve_sigma, total - steps * times)
    sigmas = np.append(sigmas, last.ve_sigma)
    low, high = (int(np.abs(sigmas[:-1] - each).argmin()) for each in (FROM, BACK_TO))
    if high >= low:  # image to image begins below: all that is left is gone once
        return plan
    again = karras_sigmas(sigmas[low], sigmas[high], steps + 1)
    pairs = list(itertools.pairwise(sigmas))
    pairs[low:low] = [*itertools.pairwise(again)] * times
    starts, ends = (np.array(each) for each in zip(*pairs, strict=True))
    reached = (*ve_levels(plan.schedule.t_from_sigma(ends[:-1]), ends[:-1]), last)
    return dataclasses.replace(
        plan, levels=ve_levels(plan.schedule.t_from_sigma(starts), starts), ends=reached, first=0
    )
