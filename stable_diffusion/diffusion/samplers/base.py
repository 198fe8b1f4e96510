"""What all samplers share: options, a checkpoint's configuration resolved, and the common forms of plans."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ... import checks
from ...backend import mx
from ...config import SchedulerConfig
from ...errors import ConfigError, InputError, SamplerError, UnsupportedCheckpointError
from ...schedules import AUTOMATIC, TITLES
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, NoiseSchedule, Plan, ve_levels
from ..spacing import (
    FILE_SCHEDULES,
    OWN_SCHEDULES,
    SIGMA_SCHEDULES,
    log_linear_sigmas,
    named_sigmas,
    sigmas_by_name,
    spaced_times,
)

# Each call gives the next unit normal draw, (B, h, w, C) float32.
Noise = Callable[[], mx.array]

SPACINGS = ("leading", "linspace", "trailing")
ALL_SCHEDULES = tuple(TITLES)


@dataclass(frozen=True)
class Step:
    """What one step reached: its number from 1, the level's time and k-diffusion sigma, x_t, and the estimate of x_0.

    Both arrays are (B, h, w, C) float32 and lazy; x_t has unit variance at the prior.
    """

    index: int
    total: int
    t: float
    sigma: float
    x: mx.array
    x_0: mx.array


@dataclass(frozen=True)
class Sampler(ABC):
    """A way from noise to x_0. Options that are None come from the checkpoint, or else the reference class's defaults.

    `spacing` is leading, linspace or trailing. `sigma_schedule` is one of `schedules`, or "spaced" for none of them:
    karras, exponential and beta are sigmas between the ends of the spacing, the others take its place; "automatic" is
    the one that A1111 takes for the sampler. Raises `SamplerError` for a value that the sampler does not have.
    """

    spacing: str | None = None
    sigma_schedule: str | None = None

    key: ClassVar[str]
    title: ClassVar[str]
    schedules: ClassVar[tuple[str, ...]] = ()
    # The schedule that A1111 takes by itself; None: what the checkpoint says.
    automatic: ClassVar[str | None] = None
    # The reference class's values for keys that scheduler_config.json lacks.
    defaults: ClassVar[Mapping[str, Any]]
    # Keys that change the noise levels themselves and that the reference's class supports.
    honoured: ClassVar[frozenset[str]] = frozenset()
    # True if the reference lets the configuration choose Karras or exponential sigmas.
    schedule_from_config: ClassVar[bool] = True
    # True if two equal levels in a row would divide by zero.
    needs_distinct_levels: ClassVar[bool] = False
    # True if it asks the denoiser for the negative text's answer as well, whatever the guidance weight.
    needs_negative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.sigma_schedule == AUTOMATIC:
            object.__setattr__(self, "sigma_schedule", self.automatic)
        if self.spacing not in (None, *SPACINGS):
            raise SamplerError(f"spacing = {self.spacing!r} should be one of {', '.join(SPACINGS)}.")
        if self.sigma_schedule not in (None, "spaced", *self.schedules):
            offered = ", ".join((*self.schedules, "spaced"))
            raise SamplerError(
                f"{self.title} has no {self.sigma_schedule!r} sigmas: sigma_schedule should be one of {offered}."
            )
        if self.spacing is not None and self.sigma_schedule in OWN_SCHEDULES:
            raise SamplerError(
                f"spacing = {self.spacing!r} and sigma_schedule = {self.sigma_schedule!r} exclude each other: give one."
            )

    def plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        """The levels of a generation of `num_steps` steps with a checkpoint of this configuration.

        Raises `InputError` for a number of steps outside 1 to num_train_timesteps or that the spacing cannot give,
        `SamplerError` for a checkpoint that this sampler does not support, `ConfigError` for contradicting keys.
        """
        resolved = self.resolve(config)
        num_steps = checks.whole("num_steps", num_steps, 1, resolved.num_train_timesteps)
        plan = self._plan(resolved, num_steps)
        if self.needs_distinct_levels and any(a.sigma <= b.sigma for a, b in itertools.pairwise(plan.levels)):
            raise InputError(
                f"{self.title} cannot take {num_steps} steps with {resolved.timestep_spacing} spacing here: two of its "
                "noise levels would be the same. Take fewer steps or another spacing."
            )
        if resolved.prediction_type == "epsilon" and not all(level.alpha for level in plan.levels):
            raise SamplerError(
                f"{self.title} cannot begin at zero terminal SNR with prediction_type = 'epsilon', because pure noise "
                "says nothing about x_0: choose the leading spacing, or a sampler such as euler or dpmpp_2m."
            )
        return plan

    @abstractmethod
    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        """The plan for a resolved configuration."""

    @abstractmethod
    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        """Yield `len(plan)` steps from latents x (B, h, w, C) at `plan.start`, drawing `noise` as needed."""

    def resolve(self, config: SchedulerConfig) -> SchedulerConfig:
        """Fill in the configuration: own options, then the file, then the reference class's defaults."""
        self._refuse(config)
        keys = {field.name for field in dataclasses.fields(config)}
        values = {key: value for key, value in self.defaults.items() if getattr(config, key) is None}
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own["timestep_spacing"] = self.sigma_schedule if self.sigma_schedule in OWN_SCHEDULES else self.spacing
        values.update({key: value for key, value in own.items() if key in keys and value is not None})
        if self.sigma_schedule == "kl_optimal":
            values["final_sigmas_type"] = "sigma_min"
        named = {name: bool(getattr(config, f"use_{name}_sigmas")) for name in FILE_SCHEDULES}
        if self.sigma_schedule is not None or not (self._has_named_sigmas and self.schedule_from_config):
            named = {name: name == self.sigma_schedule for name in named}
        if sum(named.values()) > 1:
            keys_true = " and ".join(f"use_{name}_sigmas" for name, value in named.items() if value)
            raise ConfigError(f"{keys_true} are both true; one of them should be.")
        values.update({f"use_{name}_sigmas": value for name, value in named.items()})
        return dataclasses.replace(config, **values)

    @property
    def _has_named_sigmas(self) -> bool:
        return "karras" in self.schedules

    def _refuse(self, config: SchedulerConfig) -> None:
        """Raise for keys that would change the result and that the reference's class ignores or fails on."""
        wishes = {
            "rescale_betas_zero_snr": config.rescale_betas_zero_snr,
            "interpolation_type": config.interpolation_type != "linear",
            "timestep_type": config.timestep_type != "discrete" and config.prediction_type == "v_prediction",
            "sigma_min": config.sigma_min is not None and self._has_named_sigmas,
            "sigma_max": config.sigma_max is not None and self._has_named_sigmas,
            "beta_schedule": config.beta_schedule == "sigmoid" and config.trained_betas is None,
        }
        for key, wished in wishes.items():
            if wished and key not in self.honoured:
                raise SamplerError(
                    f"{self.title} does not know {key} = {getattr(config, key)!r}, which this checkpoint's scheduler "
                    "configuration asks for. Choose another sampler, such as euler."
                )
        if config.variance_type in ("learned", "learned_range") and "variance_type" in self.honoured:
            raise UnsupportedCheckpointError(
                f"variance_type = {config.variance_type!r}: networks that predict a variance are not supported."
            )


class KDiffusionSampler(Sampler):
    """Samplers whose levels are ve_sigmas at spaced, possibly fractional times: Euler, Heun, LMS, DPM++ SDE.

    Diffusers scheduling_euler_discrete.py and its kin, set_timesteps.
    """

    schedules = ALL_SCHEDULES
    time_type: ClassVar[type] = np.float32  # of times in the reference
    # True if Karras and exponential sigmas span the whole schedule, as in k-diffusion, not only what the spacing takes.
    whole_range: ClassVar[bool] = False
    # True if one more level is planned and the last one above 0 left out (A1111's discard_next_to_last_sigma).
    drops_penultimate: ClassVar[bool] = False

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        schedule = NoiseSchedule.from_config(config, floored=True)
        times, sigmas = self._times_and_sigmas(config, schedule, num_steps)
        levels = ve_levels(times, sigmas[:num_steps])
        last = sigmas[num_steps] if len(sigmas) > num_steps else 0.0
        if not last and config.final_sigmas_type == "sigma_min":
            last = schedule.ve_sigmas[0]
        ends = (*levels[1:], NoiseLevel.from_ve_sigma(0.0, float(np.float32(last))))
        # The reference's init_noise_sigma: the first sigma, or with leading spacing sqrt(sigma^2 + 1).
        prior_std = 1.0 if config.timestep_spacing == "leading" else levels[0].sigma
        return Plan(config, schedule, levels, ends, prior_std=prior_std)

    def _times_and_sigmas(
        self, config: SchedulerConfig, schedule: NoiseSchedule, num_steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Times (num_steps,) and ve_sigmas (num_steps,), or one more if they include the end."""
        if not self.drops_penultimate or num_steps >= len(schedule):
            return self._all_times_and_sigmas(config, schedule, num_steps)
        times, sigmas = self._all_times_and_sigmas(config, schedule, num_steps + 1)
        return times[:num_steps], np.delete(sigmas, num_steps)

    def _all_times_and_sigmas(
        self, config: SchedulerConfig, schedule: NoiseSchedule, num_steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        by_name = config.timestep_spacing in OWN_SCHEDULES
        if config.timestep_spacing in SIGMA_SCHEDULES:
            sigmas = sigmas_by_name(config, schedule, num_steps)
            times: np.ndarray = schedule.t_from_sigma(sigmas).astype(self.time_type)
        else:
            times = spaced_times(config, num_steps, rounded=False).astype(self.time_type)
            sigmas = schedule.sigma_from_t(times, by_name)
        log_linear = config.interpolation_type == "log_linear" and not by_name
        sigmas = log_linear_sigmas(schedule, num_steps) if log_linear else sigmas
        named = named_sigmas(config, schedule.ve_sigmas[::-1] if self.whole_range else sigmas, num_steps)
        if named is not None:
            times, sigmas = schedule.t_from_sigma(named).astype(self.time_type), named
        if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
            if len(sigmas) > num_steps:
                raise UnsupportedCheckpointError(
                    "interpolation_type = 'log_linear' with timestep_type = 'continuous' is supported only together "
                    "with use_karras_sigmas or use_exponential_sigmas."
                )
            times = 0.25 * np.log(sigmas.astype(np.float32))
        return times, sigmas


def step_reached(plan: Plan, i: int, x: mx.array, x_0: mx.array, end: NoiseLevel | None = None) -> Step:
    """Step i of the whole plan, from 0, for the caller; `end` if it is not `plan.ends[i]`."""
    end = end or plan.ends[i]
    return Step(plan.number(i), len(plan), end.t, end.ve_sigma, x, x_0)
