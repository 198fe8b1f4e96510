"""Samplers with two evaluations per step: Heun's method, and DPM-Solver++ SDE with its midpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import mx
from ...config import SchedulerConfig
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, Plan, ve_levels
from .base import KDiffusionSampler, Noise, Step, step_reached
from .euler import ancestral_sigmas

# The default betas of these two classes of the reference differ from the others'.
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}


@dataclass(frozen=True)
class HeunSampler(KDiffusionSampler):
    """Euler's step, then the mean of the slopes at both ends. Algorithm 2 of Karras et al. 2022, arXiv:2206.00364.

    The last step, to sigma 0, is Euler's alone (diffusers scheduling_heun_discrete.py).
    """

    key = "heun"
    title = "Heun"
    defaults: ClassVar[Mapping[str, Any]] = {**SD_BETAS, "timestep_spacing": "linspace", "steps_offset": 0}

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            x, x_0 = heun_step(denoiser, x, plan.levels[i], plan.ends[i], plan.number(i))
            yield step_reached(plan, i, x, x_0)


def heun_step(
    denoiser: Denoiser, x: mx.array, level: NoiseLevel, end: NoiseLevel, step: int
) -> tuple[mx.array, mx.array]:
    """x at `end` from x at `level`, and the newest estimate of x_0; to sigma 0 it is Euler's step."""
    prediction = denoiser(x, level, step)
    x, x_0 = end.noised(prediction.x_0, prediction.eps), prediction.x_0
    if end.sigma:
        second = denoiser(x, end, step)
        x_0 = second.x_0
        x = x + end.alpha * (end.ve_sigma - level.ve_sigma) / 2 * (second.eps - prediction.eps)
    return x, x_0


@dataclass(frozen=True)
class DPMSolverSDESampler(KDiffusionSampler):
    """DPM-Solver++ (2S) on the reverse SDE: an ancestral step to the geometric mean, then one over the whole step.

    Both noises of a step are increments of one Brownian motion in ve_sigma, so the second includes the first
    (k-diffusion sample_dpmpp_sde; diffusers scheduling_dpmsolver_sde.py).
    """

    s_noise: float = 1.0

    key = "dpmpp_sde"
    title = "DPM++ SDE"
    automatic = "karras"
    defaults: ClassVar[Mapping[str, Any]] = {**SD_BETAS, "timestep_spacing": "linspace", "steps_offset": 0}
    needs_distinct_levels = True
    time_type = np.float64

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        plan = super()._plan(config, num_steps)
        _, sigmas = self._times_and_sigmas(config, plan.schedule, num_steps)
        if plan.ends[-1].sigma:
            sigmas = np.append(sigmas, plan.ends[-1].ve_sigma)
        minus_log = -np.log(sigmas)
        middles = np.exp(-(minus_log[:-1] + np.diff(minus_log) * 0.5))
        return dataclasses.replace(plan, middles=ve_levels(plan.schedule.t_from_sigma(middles), middles))

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            prediction = denoiser(x, level, plan.number(i))
            if end.sigma:
                middle = plan.middles[i]
                motion, half_motion = _brownian(level, middle, end, noise)
                down, up = ancestral_sigmas(level, middle)
                x_middle = prediction.x_0 + down * prediction.eps + self.s_noise * up * half_motion
                x_0 = denoiser(middle.alpha * x_middle, middle, plan.number(i)).x_0
                down, up = ancestral_sigmas(level, end)
                share = down / level.ve_sigma
                x = end.alpha * (share / level.alpha * x + (1 - share) * x_0 + self.s_noise * up * motion)
                yield step_reached(plan, i, x, x_0)
            else:
                x = end.noised(prediction.x_0, prediction.eps)
                yield step_reached(plan, i, x, prediction.x_0)


def _brownian(level: NoiseLevel, middle: NoiseLevel, end: NoiseLevel, noise: Noise) -> tuple[mx.array, mx.array]:
    """Unit normal increments over level..end and level..middle of one motion whose time is ve_sigma."""
    to_middle, to_end = level.ve_sigma - middle.ve_sigma, middle.ve_sigma - end.ve_sigma
    half_motion, rest = noise(), noise()
    whole = to_middle + to_end
    return math.sqrt(to_middle / whole) * half_motion + math.sqrt(to_end / whole) * rest, half_motion
