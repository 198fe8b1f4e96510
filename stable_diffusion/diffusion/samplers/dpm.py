"""DPM-Solver++ (multistep): exact in the linear part, a polynomial in log-SNR for x_0; as an ODE and as an SDE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import mx
from ...config import SchedulerConfig
from ...errors import SamplerError, UnsupportedCheckpointError
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, NoiseSchedule, Plan, ve_levels
from ..spacing import OWN_SCHEDULES, SIGMA_SCHEDULES, named_sigmas, sigmas_by_name, spaced_times
from .base import ALL_SCHEDULES, Noise, Sampler, Step, step_reached
from .euler import LINEAR_BETAS

SOLVER_DEFAULTS = {
    **LINEAR_BETAS,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "solver_order": 2,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
}


class LogSNRSampler(Sampler):
    """What DPM-Solver++ and UniPC share: integer times, and named sigmas over the whole schedule."""

    schedules = ALL_SCHEDULES
    needs_distinct_levels = True

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        schedule = NoiseSchedule.from_config(config, floored=True)
        sigmas = named_sigmas(config, schedule.ve_sigmas[::-1], num_steps)
        by_name = config.timestep_spacing in OWN_SCHEDULES
        if config.timestep_spacing in SIGMA_SCHEDULES:
            sigmas = sigmas_by_name(config, schedule, num_steps)
            times = schedule.t_from_sigma(sigmas)
        elif sigmas is None:
            times = spaced_times(config, num_steps, rounded=not by_name, one_more=True)
            sigmas = schedule.sigma_from_t(times, by_name)
        else:
            times = schedule.t_from_sigma(sigmas)
            if config.use_karras_sigmas and self._rounds_karras_times(config):
                times = times.round()
        # The reference casts times to integers, which truncates exponential and beta ones instead of rounding them.
        levels = ve_levels(times if by_name else np.trunc(times), sigmas)
        last = self._last_sigma(config, schedule, sigmas) if config.final_sigmas_type == "sigma_min" else 0.0
        return Plan(config, schedule, levels, (*levels[1:], NoiseLevel.from_ve_sigma(0.0, float(np.float32(last)))))

    def _rounds_karras_times(self, config: SchedulerConfig) -> bool:
        return True

    def _last_sigma(self, config: SchedulerConfig, schedule: NoiseSchedule, sigmas: np.ndarray) -> float:
        """The last step's end with final_sigmas_type = "sigma_min"."""
        return float(schedule.ve_sigmas[0])


@dataclass(frozen=True)
class DPMSolverSampler(LogSNRSampler):
    """DPM-Solver++ 2M of `solver_order` 1 to 3; the file's algorithm_type is ignored.

    Lu et al. 2022, arXiv:2211.01095, algorithm 2 (diffusers scheduling_dpmsolver_multistep.py).
    """

    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None

    key = "dpmpp_2m"
    title = "DPM++ 2M"
    automatic = "karras"
    defaults: ClassVar[Mapping[str, Any]] = {**SOLVER_DEFAULTS, "solver_type": "midpoint", "euler_at_final": False}
    honoured = frozenset({"rescale_betas_zero_snr", "variance_type"})
    stochastic: ClassVar[bool] = False

    def resolve(self, config: SchedulerConfig) -> SchedulerConfig:
        resolved = super().resolve(config)
        # bh1, bh2 and logrho belong to UniPC and DEIS; the reference takes midpoint for them.
        if resolved.solver_type not in ("midpoint", "heun", "bh1", "bh2", "logrho"):
            raise UnsupportedCheckpointError(f"solver_type = {resolved.solver_type!r} should be midpoint or heun.")
        if resolved.solver_order not in (1, 2, 3):
            raise SamplerError(f"solver_order = {resolved.solver_order!r} should be 1, 2 or 3 for {self.title}.")
        return resolved

    def _rounds_karras_times(self, config: SchedulerConfig) -> bool:
        return config.beta_schedule != "squaredcos_cap_v2"

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        past: list[mx.array] = []  # x_0 estimates, newest first
        for i in range(plan.first, len(plan.levels)):
            x_0 = denoiser(x, plan.levels[i], plan.number(i)).x_0
            past = [x_0, *past][:3]
            levels = [plan.ends[i], *plan.levels[i::-1]][:4]  # the step's end, its start, and the levels before
            order = min(_order(plan, i), len(past))
            kept, weights, std = self._weights(levels, order, plan.config.solver_type == "heun")
            x = kept * x
            for weight, estimate in zip(weights, past, strict=False):
                x = x + weight * estimate
            if self.stochastic and plan.ends[i].sigma:
                x = x + std * noise()
            yield step_reached(plan, i, x, x_0)

    def _weights(self, levels: Sequence[NoiseLevel], order: int, heun: bool) -> tuple[float, list[float], float]:
        """The weights of x, of past x_0 (newest first) and of fresh noise in the next x."""
        end, start = levels[:2]
        log_snr = [level.log_snr for level in levels]
        h = log_snr[0] - log_snr[1]
        if h == 0:  # Karras sigmas with final_sigmas_type = "sigma_min": the last step stays where it is
            return 1.0, [], 0.0
        k = 2 * h if self.stochastic else h
        phi = -math.expm1(-k)  # 1 - exp(-k)
        kept = end.sigma / start.sigma * (math.exp(-h) if self.stochastic else 1.0)
        std = end.sigma * math.sqrt(max(0.0, phi)) if self.stochastic else 0.0
        if order == 1:
            return kept, [end.alpha * phi], std
        first = (log_snr[1] - log_snr[2]) / h
        slope = np.array([1, -1, 0]) / first
        linear = 1 - phi / k
        if order == 2:
            share = linear if heun else phi / 2
            return kept, (end.alpha * (np.array([phi, 0, 0]) + share * slope)).tolist(), std
        second = (log_snr[2] - log_snr[3]) / h
        older_slope = np.array([0, 1, -1]) / second
        curve = (slope - older_slope) / (first + second)
        # The reference's SDE form subtracts the half that its ODE form adds.
        quadratic = -(k - phi) / k**2 + (-0.5 if self.stochastic else 0.5)
        shares = np.array([phi, 0, 0]) + linear * (slope + first * curve) + quadratic * curve
        return kept, (end.alpha * shares).tolist(), std


@dataclass(frozen=True)
class DPMSolverMultistepSDESampler(DPMSolverSampler):
    """DPM-Solver++ 2M on the reverse SDE: every step replaces some of the noise (algorithm sde-dpmsolver++)."""

    key = "dpmpp_2m_sde"
    title = "DPM++ 2M SDE"
    automatic = "exponential"
    stochastic = True


def _order(plan: Plan, i: int) -> int:
    """The order of step i, if there is enough history."""
    config, left = plan.config, len(plan.levels) - i
    few = config.lower_order_final and len(plan.levels) < 15
    if left == 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
        return 1
    return min(config.solver_order or 2, 2) if left == 2 and few else config.solver_order or 2
