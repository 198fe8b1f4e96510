"""Betas, alpha-bars and sigmas; times to sigmas and back; the noise levels of one generation (spacing.py spreads them).

There are two forms: x_t = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1 ("variance preserving", what the
engine keeps), and x_0 + ve_sigma eps with ve_sigma = sigma / alpha ("variance exploding", k-diffusion's form).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..backend import mx
from ..config import SchedulerConfig
from ..errors import ConfigError, InputError

# The reference's stand-in for an alpha-bar of 0, so that ve_sigma stays finite (4096).
TERMINAL_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True)
class NoiseLevel:
    """A point of the diffusion: the U-Net's time, and x_t = alpha x_0 + sigma eps."""

    t: float
    alpha: float
    sigma: float

    @classmethod
    def from_ve_sigma(cls, t: float, ve_sigma: float) -> NoiseLevel:
        """The level whose sigma / alpha is `ve_sigma`."""
        alpha = 1 / math.sqrt(ve_sigma**2 + 1)
        return cls(t, alpha, ve_sigma * alpha)

    @classmethod
    def from_alpha_bar(cls, t: float, alpha_bar: float) -> NoiseLevel:
        """The level whose alpha^2 is `alpha_bar`."""
        return cls(t, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @property
    def ve_sigma(self) -> float:
        """k-diffusion's sigma: noise to signal, infinite for pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """DPM-Solver's lambda = log(alpha / sigma), infinite without noise."""
        return math.log(self.alpha) - math.log(self.sigma) if self.sigma else math.inf

    def noised(self, x_0: mx.array, eps: mx.array) -> mx.array:
        """x_t = alpha x_0 + sigma eps."""
        return self.alpha * x_0 + self.sigma * eps


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Alpha-bar of every training time of a checkpoint."""

    alpha_bars: np.ndarray  # (num_train_timesteps,) float32; of flow matching float64
    final: NoiseLevel = NoiseLevel(0.0, 1.0, 0.0)  # below time 0

    @classmethod
    def from_config(cls, config: SchedulerConfig, floored: bool = False, final_is_clean: bool = True) -> NoiseSchedule:
        """Build the schedule from a resolved configuration (see `Sampler.resolve`).

        `floored` replaces an alpha-bar of 0 (zero terminal SNR, flow matching) by 2^-24; without `final_is_clean` the
        level below time 0 is that of time 0 (`set_alpha_to_one`).
        """
        if config.prediction_type == "flow":
            alpha_bars = _flow_alpha_bars(config)
            if floored:  # a shift may bring the times before the last one nearer to 0 than that
                alpha_bars[-1] = min(TERMINAL_ALPHA_BAR, alpha_bars[-2] / 4)
            return cls(alpha_bars)
        betas = _betas(config)
        if config.rescale_betas_zero_snr:
            betas = _rescale_to_zero_terminal_snr(betas)
        alpha_bars = _cumprod(np.float32(1) - betas)
        if not (np.isfinite(alpha_bars).all() and (alpha_bars >= 0).all() and (alpha_bars[:-1] > 0).all()):
            raise ConfigError("The scheduler's betas should lie between 0 and 1: some alpha-bar is zero or negative.")
        if config.rescale_betas_zero_snr and floored:
            alpha_bars[-1] = TERMINAL_ALPHA_BAR
        final = NoiseLevel(0.0, 1.0, 0.0)
        return cls(alpha_bars, final if final_is_clean else NoiseLevel.from_alpha_bar(0.0, float(alpha_bars[0])))

    def __len__(self) -> int:
        return len(self.alpha_bars)

    @cached_property
    def ve_sigmas(self) -> np.ndarray:
        """(num_train_timesteps,) float32, increasing with time."""
        return np.sqrt((np.float32(1) - self.alpha_bars) / self.alpha_bars)

    def level(self, t: int) -> NoiseLevel:
        """The level of an integer time; `final` below 0. Raises `InputError` beyond the last time."""
        if t >= len(self):
            raise InputError(
                f"The schedule would start at time {t}, but the checkpoint was trained on 0 to {len(self) - 1}: "
                "take fewer steps or another spacing."
            )
        return NoiseLevel.from_alpha_bar(float(t), float(self.alpha_bars[t])) if t >= 0 else self.final

    def sigma_from_t(self, times: np.ndarray, by_log: bool = False) -> np.ndarray:
        """ve_sigma of times, interpolated between training times and constant outside, float64.

        Linear in sigma as in the reference, or with `by_log` in log sigma as in k-diffusion (t_to_sigma).
        """
        values = np.log(self.ve_sigmas.astype(np.float64)) if by_log else self.ve_sigmas
        found = np.interp(times, np.arange(len(self)), values)
        return np.exp(found) if by_log else found

    def t_from_sigma(self, ve_sigmas: np.ndarray) -> np.ndarray:
        """Times of ve_sigmas, interpolated in log sigma, float64 (k-diffusion's sigma_to_t)."""
        table = np.log(self.ve_sigmas)
        log_sigma = np.log(np.maximum(np.asarray(ve_sigmas, dtype=np.float64), 1e-10))
        below = np.clip(np.searchsorted(table.astype(np.float64), log_sigma, side="right") - 1, 0, len(table) - 2)
        # The difference of neighbours stays float32, as in the reference, which truncates some of these times.
        w = np.clip((table[below] - log_sigma) / (table[below] - table[below + 1]), 0, 1)
        return (1 - w) * below + w * (below + 1)

    def t_from_ve_sigma(self, ve_sigma: float) -> float:
        """The same of one ve_sigma; the last time for infinity."""
        return float(self.t_from_sigma(np.array([min(ve_sigma, float(self.ve_sigmas[-1]))]))[0])


@dataclass(frozen=True, eq=False)
class Plan:
    """The levels of one generation: step i goes from `levels[i]`, where the U-Net runs, to `ends[i]`.

    `config` is resolved: class defaults and the sampler's own options are filled in. `first` is the step that the
    generation begins with, 0 except for image to image. `prior_std` is the standard deviation of the first latents.
    """

    config: SchedulerConfig
    schedule: NoiseSchedule
    levels: tuple[NoiseLevel, ...]
    ends: tuple[NoiseLevel, ...]
    middles: tuple[NoiseLevel, ...] = ()  # where DPM++ SDE and others ask again, in each step that ends above 0
    calls: tuple[NoiseLevel, ...] = ()  # PNDM's evaluations; a step may have two
    first: int = 0
    prior_std: float = 1.0
    indivisible: str = ""  # why the plan cannot begin midway, if it cannot

    def __len__(self) -> int:
        """The number of steps that the user sees."""
        return len(self.levels) - self.first

    @property
    def start(self) -> NoiseLevel:
        """The level of the first latents."""
        return self.levels[self.first]

    def number(self, i: int) -> int:
        """Number step i of the whole plan among the steps that are run, from 1."""
        return i - self.first + 1

    def tail(self, steps: int) -> Plan:
        """The plan's last `steps` steps; image to image takes int(num_steps * strength) of them.

        Raises `InputError` unless 1 <= steps <= len(self), and if the sampler cannot begin midway.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= len(self):
            raise InputError(
                f"{steps!r} of {len(self)} steps cannot be run: raise the denoising strength or the number of steps "
                "so that at least one step is left, and at most all of them."
            )
        if steps < len(self) and self.indivisible:
            raise InputError(self.indivisible)
        return dataclasses.replace(self, first=len(self.levels) - steps)

    def prior(self, noise: mx.array) -> mx.array:
        """Scale unit normal noise (B, h, w, C) to the first latents of text to image (init_noise_sigma)."""
        return self.prior_std * noise

    def renoise(self, x_0: mx.array, noise: mx.array) -> mx.array:
        """Noise clean latents (B, h, w, C) to the first level (the reference's add_noise)."""
        return self.start.noised(x_0, noise)


def with_zero_terminal_snr(config: SchedulerConfig, wanted: bool) -> SchedulerConfig:
    """The configuration with or without zero terminal SNR, which needs steps from the very last time on."""
    spacing = "trailing" if wanted else config.timestep_spacing
    return dataclasses.replace(config, rescale_betas_zero_snr=wanted, timestep_spacing=spacing)


def contradictions(config: SchedulerConfig) -> list[str]:
    """What of a checkpoint's prediction type, zero terminal SNR and spacing does not go together, with the remedy."""
    found = []
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        found.append(
            "The model is marked with zero terminal SNR and predicts epsilon, which says nothing about a picture where "
            "all is noise. One is wrong: set prediction_type='v_prediction' (--prediction-type v_prediction) or "
            "zero_terminal_snr=False (--no-zero-terminal-snr)."
        )
    if config.rescale_betas_zero_snr and config.timestep_spacing == "leading":
        found.append(
            "The model is marked with zero terminal SNR, but with leading spacing no step begins at pure noise, and "
            "pictures may be grey: take a sampler such as euler_sgm_uniform, or set zero_terminal_snr=True "
            "(--zero-terminal-snr), which changes the spacing."
        )
    return found


def ve_levels(times: Sequence[float] | np.ndarray, ve_sigmas: np.ndarray) -> tuple[NoiseLevel, ...]:
    """Levels of times and their ve_sigmas, rounded to float32 as in the reference."""
    return tuple(
        NoiseLevel.from_ve_sigma(float(t), float(np.float32(s))) for t, s in zip(times, ve_sigmas, strict=True)
    )


def _betas(config: SchedulerConfig) -> np.ndarray:
    """(num_train_timesteps,) float32."""
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas, dtype=np.float32)
    if config.beta_schedule == "squaredcos_cap_v2":
        # Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17
        alpha_bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return np.array([min(1 - alpha_bar[i + 1] / alpha_bar[i], 0.999) for i in range(count)], dtype=np.float32)
    if config.beta_start is None or config.beta_end is None:
        raise ConfigError(f"beta_start = {config.beta_start!r} and beta_end = {config.beta_end!r} should be given.")
    start, end = config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return linspace(start, end, count)
    if config.beta_schedule == "scaled_linear":
        return linspace(start**0.5, end**0.5, count) ** 2
    if config.beta_schedule == "sigmoid":
        return 1 / (1 + np.exp(-linspace(-6, 6, count))) * np.float32(end - start) + np.float32(start)
    raise ConfigError(f"beta_schedule = {config.beta_schedule!r} is not known.")


def _flow_alpha_bars(config: SchedulerConfig) -> np.ndarray:
    """(num_train_timesteps,) float64, the last one 0: alpha-bars of the same signal-to-noise ratios as x_s has.

    x_s = (1 - s) x_0 + s eps at s = (i + 1) / n, then `shift`ed towards the noise (Esser et al. 2024, arXiv:2403.03206,
    equation 23).
    """
    s = np.arange(1, config.num_train_timesteps + 1) / config.num_train_timesteps
    s = config.shift * s / (1 + (config.shift - 1) * s)
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


def linspace(start: float, end: float, count: int) -> np.ndarray:
    """float32 with torch's rounding: from both ends towards the middle, each value rounded once."""
    if count == 1:
        return np.array([start], dtype=np.float32)
    low, high, i = np.float32(start), np.float32(end), np.arange(count)
    step = np.float64((high - low) / np.float32(count - 1))
    return np.where(i < count // 2, low + step * i, high - step * (count - 1 - i)).astype(np.float32)


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    """float32 in and out; the running product is kept in float64, as torch does."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _rescale_to_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alpha-bar) so that its last value is 0. Algorithm 1 of Lin et al. 2023, arXiv:2305.08891."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    alpha_bars = ((root - last) * (first / (first - last))) ** 2
    return 1 - np.concatenate([alpha_bars[:1], alpha_bars[1:] / alpha_bars[:-1]])
