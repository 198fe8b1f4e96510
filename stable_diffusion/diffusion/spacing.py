"""Where the steps of a generation lie: times by spacing, and times or sigmas by the schedules of schedules.py.

All give falling times or ve_sigmas, float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..config import SchedulerConfig
from .schedule import NoiseSchedule, linspace

# Schedules that files may ask for (use_karras_sigmas and so on): sigmas between the ends of the spacing.
FILE_SCHEDULES = ("karras", "exponential", "beta")
# Those that take the place of the spacing: by times, which samplers on the training times have as well, or by sigmas.
TIME_SCHEDULES = ("uniform", "sgm_uniform", "simple", "normal", "ddim")
SIGMA_SCHEDULES = ("polyexponential", "kl_optimal", "align_your_steps")
OWN_SCHEDULES = (*TIME_SCHEDULES, *SIGMA_SCHEDULES)
# Sabour et al. 2024, arXiv:2404.14507: the levels for Stable Diffusion 1.5 that its authors published.
ALIGNED_SIGMAS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
BETA = 0.6  # both of the beta distribution's parameters


def spaced_times(config: SchedulerConfig, num_steps: int, rounded: bool = True, one_more: bool = False) -> np.ndarray:
    """Times of `num_steps` steps, falling, float64; `timestep_spacing` and `steps_offset` of the configuration.

    `timestep_spacing` may also be one of TIME_SCHEDULES. `rounded` makes linspace and these give integers. With
    `one_more`, leading and linspace make room for one more step at the end, which is dropped (DPM-Solver, UniPC).
    Table 2 of Lin et al. 2023, arXiv:2305.08891.
    """
    train_steps = config.num_train_timesteps
    if config.timestep_spacing in TIME_SCHEDULES:
        times = _times_by_name(config.timestep_spacing, train_steps, num_steps)
        return times.round() if rounded else times
    count = num_steps + one_more
    if config.timestep_spacing == "linspace":
        times = np.linspace(0, train_steps - 1, count)[::-1][:num_steps]
        return times.round() if rounded else times
    if config.timestep_spacing == "leading":
        stride, offset = train_steps // count, config.steps_offset or 0
        return (np.arange(count)[::-1] * stride + offset)[:num_steps].astype(np.float64)
    # For some step counts rounding gives the reference's range one more step, at time -1. It is dropped here.
    return np.arange(train_steps, 0, -train_steps / num_steps).round()[:num_steps] - 1


def _times_by_name(name: str, train_steps: int, num_steps: int) -> np.ndarray:
    last = train_steps - 1
    if name in ("uniform", "normal"):  # both ends included; A1111 comes to the same by two ways
        return np.linspace(last, 0, num_steps)
    if name == "sgm_uniform":
        return np.linspace(last, 0, num_steps + 1)[:-1]
    if name == "ddim":  # where this leaves room for a step more at the top, A1111 runs one more
        return np.minimum(np.arange(num_steps)[::-1] * max(train_steps // num_steps, 1) + 1, last).astype(np.float64)
    return last - np.floor(np.arange(num_steps) * (train_steps / num_steps))  # simple


def karras_sigmas(sigma_min: float, sigma_max: float, num_steps: int, rho: float = 7.0) -> np.ndarray:
    """Falling ve_sigmas, evenly spaced in sigma^(1 / rho). Equation 5 of Karras et al. 2022, arXiv:2206.00364."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + np.linspace(0, 1, num_steps) * (low - high)) ** rho


def exponential_sigmas(sigma_min: float, sigma_max: float, num_steps: int) -> np.ndarray:
    """Falling ve_sigmas, evenly spaced in log sigma (k-diffusion's get_sigmas_exponential)."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_steps))


def log_linear_sigmas(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """`num_steps` + 1 falling ve_sigmas over the whole schedule (the Euler scheduler's interpolation_type)."""
    low, high = np.log(schedule.ve_sigmas[[0, -1]])
    return np.exp(linspace(high, low, num_steps + 1)).astype(np.float64)


def named_sigmas(config: SchedulerConfig, sigmas: np.ndarray, num_steps: int) -> np.ndarray | None:
    """Karras, exponential or beta sigmas between the ends of falling `sigmas`; None if neither is wanted."""
    sigma_min = sigmas[-1].item() if config.sigma_min is None else config.sigma_min
    sigma_max = sigmas[0].item() if config.sigma_max is None else config.sigma_max
    if config.use_karras_sigmas:
        return karras_sigmas(sigma_min, sigma_max, num_steps)
    if config.use_exponential_sigmas:
        return exponential_sigmas(sigma_min, sigma_max, num_steps)
    if config.use_beta_sigmas:
        return beta_sigmas(sigma_min, sigma_max, num_steps)
    return None


def sigmas_by_name(config: SchedulerConfig, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """ve_sigmas (num_steps,) of one of SIGMA_SCHEDULES, which stands in `timestep_spacing`, over the whole schedule."""
    low, high = schedule.ve_sigmas[[0, -1]].tolist()
    if config.timestep_spacing == "kl_optimal":
        return kl_optimal_sigmas(low, high, num_steps)
    if config.timestep_spacing == "align_your_steps":
        return aligned_sigmas(config.aligned_sigmas or ALIGNED_SIGMAS, num_steps)
    return exponential_sigmas(low, high, num_steps)  # k-diffusion's get_sigmas_polyexponential at A1111's rho, 1


def kl_optimal_sigmas(sigma_min: float, sigma_max: float, num_steps: int) -> np.ndarray:
    """Evenly spaced in arctan(sigma); the last step, which ends at `sigma_min` instead of 0, is one of them.

    Sabour et al. 2024, arXiv:2404.14507, equation 14.
    """
    share = np.arange(num_steps) / num_steps
    return np.tan(share * math.atan(sigma_min) + (1 - share) * math.atan(sigma_max))


def aligned_sigmas(table: Sequence[float], num_steps: int) -> np.ndarray:
    """Align Your Steps: a table of falling ve_sigmas for its own number of steps, and log-linear between for others."""
    return np.exp(np.interp(np.linspace(0, 1, num_steps), np.linspace(0, 1, len(table)), np.log(table)))


def beta_sigmas(sigma_min: float, sigma_max: float, num_steps: int) -> np.ndarray:
    """sigma as the quantiles of a beta distribution: many levels near both ends.

    Lee et al. 2024, arXiv:2407.12173 (diffusers' _convert_to_beta).
    """
    return sigma_min + (sigma_max - sigma_min) * _beta_quantiles(1 - np.linspace(0, 1, num_steps))


def _beta_quantiles(shares: np.ndarray) -> np.ndarray:
    """x of I_x(a, a) = share for a = BETA, by bisection in x^a of the series of the incomplete beta function.

    DLMF 8.17.8 and 8.17.22, for x up to a half; above, by symmetry.
    """
    lower = np.minimum(shares, 1 - shares)
    k = np.arange(60)
    terms = np.cumprod([1.0, *((k[1:] - BETA) / k[1:])]) / (BETA + k)  # (1 - a)_k / k! / (a + k)
    whole = math.gamma(BETA) ** 2 / math.gamma(2 * BETA)
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5**BETA)
    for _ in range(60):
        y = (low + high) / 2
        below = y * (((y ** (1 / BETA))[:, None] ** k) @ terms) / whole < lower
        low, high = np.where(below, y, low), np.where(below, high, y)
    x = low ** (1 / BETA)
    return np.where(shares <= 0.5, x, 1 - x)
