"""k-diffusion's second-order samplers of one step: DPM2 and its ancestral form, DPM++ 2S a."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...backend import mx
from ...config import SchedulerConfig
from ..denoiser import Denoiser, Prediction
from ..schedule import NoiseLevel, Plan, ve_levels
from .base import KDiffusionSampler, Noise, Step, step_reached
from .euler import EULER_DEFAULTS, ancestral_sigmas, check_eta


class MidpointSampler(KDiffusionSampler):
    """Samplers that ask a second time at the geometric mean of where a step starts and where it goes down to.

    k-diffusion knows no configuration files: their Karras and exponential sigmas span the whole schedule. A step to
    sigma 0 is Euler's, with one evaluation.
    """

    defaults = EULER_DEFAULTS
    honoured = frozenset({"rescale_betas_zero_snr"})
    whole_range = True

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        plan = super()._plan(config, num_steps)
        steps = [(level, end) for level, end in zip(plan.levels, plan.ends, strict=True) if end.sigma]
        sigmas = np.array([math.sqrt(level.ve_sigma * self._target(level, end)) for level, end in steps])
        return dataclasses.replace(plan, middles=ve_levels(plan.schedule.t_from_sigma(sigmas), sigmas))

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            first = denoiser(x, level, plan.number(i))
            if not end.sigma:
                yield step_reached(plan, i, end.noised(first.x_0, first.eps), first.x_0)
                return
            middle = plan.middles[i]
            second = denoiser(middle.noised(first.x_0, first.eps), middle, plan.number(i))
            x_ve = self._moved(x / level.alpha, second, level.ve_sigma, self._target(level, end))
            x = end.alpha * self._stirred(x_ve, level, end, noise)
            yield step_reached(plan, i, x, second.x_0)

    def _target(self, level: NoiseLevel, end: NoiseLevel) -> float:
        """The ve_sigma that the deterministic part of a step goes down to."""
        return end.ve_sigma

    def _moved(self, x_ve: mx.array, middle: Prediction, start: float, target: float) -> mx.array:
        """x_ve carried from one ve_sigma to another by what was answered in the middle: along its slope."""
        return x_ve + (target - start) * middle.eps

    def _stirred(self, x_ve: mx.array, level: NoiseLevel, end: NoiseLevel, noise: Noise) -> mx.array:
        return x_ve


@dataclass(frozen=True)
class DPM2Sampler(MidpointSampler):
    """The midpoint method in log sigma: DPM-Solver-2 of Lu et al. 2022, arXiv:2206.00927, algorithm 1.

    k-diffusion sample_dpm_2. As in A1111 the last level above 0 of one step more is left out.
    """

    key = "dpm2"
    title = "DPM2"
    automatic = "karras"
    drops_penultimate = True


@dataclass(frozen=True)
class DPM2AncestralSampler(MidpointSampler):
    """DPM2 to below the next level, then fresh noise up to it; `eta` from 0, none of it, to 1. One draw a step.

    k-diffusion sample_dpm_2_ancestral. As in A1111 the last level above 0 of one step more is left out.
    """

    eta: float = 1.0

    key = "dpm2_a"
    title = "DPM2 a"
    automatic = "karras"
    drops_penultimate = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def _target(self, level: NoiseLevel, end: NoiseLevel) -> float:
        return ancestral_sigmas(level, end, self.eta)[0]

    def _stirred(self, x_ve: mx.array, level: NoiseLevel, end: NoiseLevel, noise: Noise) -> mx.array:
        up = ancestral_sigmas(level, end, self.eta)[1]
        return x_ve + up * noise() if up else x_ve


@dataclass(frozen=True)
class DPMSolver2SAncestralSampler(DPM2AncestralSampler):
    """DPM-Solver++(2S) to below the next level, then fresh noise up to it. One draw a step.

    Lu et al. 2022, arXiv:2211.01095, algorithm 1 (k-diffusion sample_dpmpp_2s_ancestral).
    """

    key = "dpmpp_2s_a"
    title = "DPM++ 2S a"
    automatic = "karras"
    drops_penultimate = False

    def _moved(self, x_ve: mx.array, middle: Prediction, start: float, target: float) -> mx.array:
        share = target / start
        return share * x_ve + (1 - share) * middle.x_0
