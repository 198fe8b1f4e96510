"""Samplers on the training times themselves: DDIM, DDPM, and LCM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import mx
from ...config import SchedulerConfig
from ...errors import ConfigError, InputError, SamplerError, UnsupportedCheckpointError
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, NoiseSchedule, Plan
from ..spacing import TIME_SCHEDULES, spaced_times
from .base import Noise, Sampler, Step, step_reached
from .euler import LINEAR_BETAS, check_eta


@dataclass(frozen=True)
class DDIMSampler(Sampler):
    """Denoising diffusion implicit models; `eta` 0 adds no noise, 1 as much as DDPM.

    Equations 12 and 16 of Song et al. 2021, arXiv:2010.02502 (diffusers scheduling_ddim.py).
    """

    eta: float = 0.0
    set_alpha_to_one: bool | None = None

    key = "ddim"
    title = "DDIM"
    schedules = TIME_SCHEDULES
    defaults: ClassVar[Mapping[str, Any]] = {
        **LINEAR_BETAS,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }
    honoured = frozenset({"rescale_betas_zero_snr"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        schedule = NoiseSchedule.from_config(config, final_is_clean=bool(config.set_alpha_to_one))
        times = [int(t) for t in spaced_times(config, num_steps)]
        # The reference always steps down by num_train_timesteps // num_steps, whatever the distance of its times: with
        # linspace and trailing spacing a step may end a little off the level at which the next one begins.
        stride = config.num_train_timesteps // num_steps
        levels = tuple(schedule.level(t) for t in times)
        if config.timestep_spacing in TIME_SCHEDULES:  # not the reference's
            return Plan(config, schedule, levels, (*levels[1:], schedule.final))
        return Plan(config, schedule, levels, tuple(schedule.level(t - stride) for t in times))

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            prediction = denoiser(x, level, plan.number(i))
            std = self.eta * math.sqrt(_posterior_variance(level, end))
            x = end.alpha * prediction.x_0 + math.sqrt(max(0.0, end.sigma**2 - std**2)) * prediction.eps
            if self.eta:
                x = x + std * noise()
            yield step_reached(plan, i, x, prediction.x_0)


@dataclass(frozen=True)
class DDPMSampler(Sampler):
    """Ancestral sampling from the posterior q(x_{t-1} | x_t, x_0).

    Equation 7 of Ho et al. 2020, arXiv:2006.11239 (diffusers scheduling_ddpm.py).
    """

    variance_type: str | None = None

    key = "ddpm"
    title = "DDPM"
    schedules = TIME_SCHEDULES
    defaults: ClassVar[Mapping[str, Any]] = {
        **LINEAR_BETAS,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "variance_type": "fixed_small",
    }
    honoured = frozenset({"rescale_betas_zero_snr", "beta_schedule", "variance_type"})

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        if config.variance_type not in ("fixed_small", "fixed_small_log", "fixed_large"):
            # fixed_large_log takes the square root of a logarithm below 0 in the reference: every picture is NaN.
            raise UnsupportedCheckpointError(
                f"variance_type = {config.variance_type!r} is not supported, only fixed_small, fixed_small_log or "
                "fixed_large: DDPMSampler(variance_type='fixed_small') overrides the checkpoint's."
            )
        schedule = NoiseSchedule.from_config(config)
        levels = tuple(schedule.level(int(t)) for t in spaced_times(config, num_steps))
        return Plan(config, schedule, levels, (*levels[1:], schedule.final))

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            prediction = denoiser(x, level, plan.number(i))
            # the paper's alpha_t = alpha-bar_t / alpha-bar_{t-1} and beta_t, over the whole step
            alpha = level.alpha**2 / end.alpha**2
            beta = 1 - alpha
            x = (end.alpha * beta / level.sigma**2) * prediction.x_0 + (
                math.sqrt(alpha) * end.sigma**2 / level.sigma**2
            ) * x
            if level.t > 0:
                variance = beta if plan.config.variance_type == "fixed_large" else _posterior_variance(level, end)
                x = x + math.sqrt(max(variance, 1e-20)) * noise()
            yield step_reached(plan, i, x, prediction.x_0)


@dataclass(frozen=True)
class LCMSampler(Sampler):
    """Latent consistency: jump to x_0, add noise for the next level, jump again.

    The times are selected from the `original_inference_steps` that the network was distilled on. Algorithm 3 of
    Luo et al. 2023, arXiv:2310.04378 (diffusers scheduling_lcm.py).

    A `strength` below 1 spreads all steps over the lower part of those times, as the reference's
    LatentConsistencyModelImg2ImgPipeline does; its StableDiffusionImg2ImgPipeline (an ordinary checkpoint with an
    LCM-LoRA) takes the tail of the whole plan instead, `Plan.tail`.
    """

    original_inference_steps: int | None = None
    timestep_scaling: float | None = None
    strength: float = 1.0

    key = "lcm"
    title = "LCM"
    defaults: ClassVar[Mapping[str, Any]] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    }
    honoured = frozenset({"rescale_betas_zero_snr"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise SamplerError(f"strength = {self.strength!r} should lie above 0 and not above 1.")

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        schedule = NoiseSchedule.from_config(config)
        times = distilled_times(self.title, config, num_steps, self.strength)
        levels = tuple(schedule.level(int(t)) for t in times)
        return Plan(config, schedule, levels, (*levels[1:], schedule.final))

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            # The consistency model's boundary condition, so that time 0 gives back x: appendix C, sigma_data = 0.5
            time = level.t * (plan.config.timestep_scaling or 0.0)
            skip, out = 0.25 / (time**2 + 0.25), time / math.sqrt(time**2 + 0.25)
            x_0 = out * denoiser(x, level, plan.number(i)).x_0 + skip * x
            x = end.noised(x_0, noise()) if i + 1 < len(plan.levels) else x_0
            yield step_reached(plan, i, x, x_0)


def distilled_times(title: str, config: SchedulerConfig, num_steps: int, strength: float = 1.0) -> np.ndarray:
    """`num_steps` falling times of those that a network was distilled on, evenly chosen; integers (num_steps,).

    Raises `ConfigError` and `InputError` where there are not as many; `title` is the sampler's, for that.
    """
    distilled, train_steps = config.original_inference_steps or 0, config.num_train_timesteps
    if not 1 <= distilled <= train_steps:
        raise ConfigError(f"original_inference_steps = {distilled!r} should lie between 1 and {train_steps}.")
    times = np.arange(1, int(distilled * strength) + 1) * (train_steps // distilled) - 1
    if len(times) < num_steps:
        raise InputError(
            f"num_steps = {num_steps} is more than the {len(times)} times that {title} chooses from "
            f"(original_inference_steps = {distilled}, strength {strength}): take fewer steps."
        )
    chosen: np.ndarray = times[::-1][np.floor(np.linspace(0, len(times), num_steps, endpoint=False)).astype(int)]
    return chosen


def _posterior_variance(level: NoiseLevel, end: NoiseLevel) -> float:
    """Variance of q(x_end | x_level, x_0), from alpha-bars: equation 7 of arXiv:2006.11239."""
    return max(0.0, end.sigma**2 / level.sigma**2 * (1 - level.alpha**2 / end.alpha**2))
