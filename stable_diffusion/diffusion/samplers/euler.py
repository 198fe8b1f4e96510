"""Euler's method on the probability flow, and its ancestral form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...backend import mx
from ...errors import SamplerError
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, Plan
from .base import KDiffusionSampler, Noise, Step, step_reached

LINEAR_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
EULER_DEFAULTS = {**LINEAR_BETAS, "timestep_spacing": "linspace", "steps_offset": 0}


@dataclass(frozen=True)
class SimpleEulerSampler(KDiffusionSampler):
    """x' = alpha' x_0 + sigma' eps, which is Euler's method in x / alpha.

    Algorithm 2 of Karras et al. 2022, arXiv:2206.00364, first order; noise is added if `s_churn` > 0 and the level's
    ve_sigma lies in [`s_tmin`, `s_tmax`] (diffusers scheduling_euler_discrete.py).
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    key = "euler"
    title = "Euler"
    defaults: ClassVar[Mapping[str, Any]] = {
        **LINEAR_BETAS,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "final_sigmas_type": "zero",
    }
    honoured = frozenset({"rescale_betas_zero_snr", "interpolation_type", "timestep_type", "sigma_min", "sigma_max"})

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            if self.s_churn > 0 and self.s_tmin <= level.ve_sigma <= self.s_tmax:
                gamma = min(self.s_churn / len(plan.levels), math.sqrt(2) - 1)
                output = denoiser.output(x, level, plan.number(i))
                x, x_0 = self._churned_step(denoiser, output, x, level, end, gamma, noise())
            else:
                prediction = denoiser(x, level, plan.number(i))
                x, x_0 = end.noised(prediction.x_0, prediction.eps), prediction.x_0
            yield step_reached(plan, i, x, x_0)

    def _churned_step(
        self,
        denoiser: Denoiser,
        output: mx.array,
        x: mx.array,
        level: NoiseLevel,
        end: NoiseLevel,
        gamma: float,
        noise: mx.array,
    ) -> tuple[mx.array, mx.array]:
        raised = NoiseLevel.from_ve_sigma(level.t, level.ve_sigma * (1 + gamma))
        # The reference runs the network before it adds the noise, but applies the answer to the noised latents: an eps
        # with the scalings of the raised level, a v with those of the lower one.
        stir = self.s_noise * math.sqrt(raised.ve_sigma**2 - level.ve_sigma**2)
        x_ve = x / level.alpha + stir * noise
        read_at = raised if denoiser.prediction_type == "epsilon" else level
        x_0 = denoiser.prediction(output, read_at.alpha * x_ve, read_at).x_0
        share = end.ve_sigma / raised.ve_sigma
        return end.alpha * (share * x_ve + (1 - share) * x_0), x_0


@dataclass(frozen=True)
class EulerAncestralSampler(KDiffusionSampler):
    """An Euler step to below the next level, then fresh noise up to it; `eta` from 0, none of it, to 1.

    k-diffusion sample_euler_ancestral; diffusers scheduling_euler_ancestral_discrete.py. One draw a step but for the
    last.
    """

    eta: float = 1.0

    key = "euler_a"
    title = "Euler a"
    defaults: ClassVar[Mapping[str, Any]] = EULER_DEFAULTS
    honoured = frozenset({"rescale_betas_zero_snr"})
    schedule_from_config = False  # k-diffusion has Karras sigmas for it, the reference's class does not

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            x_0, eps = self._asked(denoiser, x, level, plan.number(i))
            down, up = ancestral_sigmas(level, end, self.eta)
            x = x_0 + down * eps
            if up:
                x = x + up * noise()
            x = end.alpha * x
            yield step_reached(plan, i, x, x_0)

    def _asked(self, denoiser: Denoiser, x: mx.array, level: NoiseLevel, step: int) -> tuple[mx.array, mx.array]:
        """The x_0 to go to, and the eps that is kept on the way."""
        prediction = denoiser(x, level, step)
        return prediction.x_0, prediction.eps


@dataclass(frozen=True)
class EulerAncestralCFGPPSampler(EulerAncestralSampler):
    """Euler a towards the guided x_0, but along the eps of the negative text alone: guidance on the data's manifold.

    Algorithm 2 of Chung et al. 2024, arXiv:2406.08070, with an ancestral step, as Forge and ComfyUI have it. Guidance
    weights are small here, around 1, and the negative text counts at every one of them.
    """

    key = "euler_a_cfg_pp"
    title = "Euler a CFG++"
    needs_negative = True

    def _asked(self, denoiser: Denoiser, x: mx.array, level: NoiseLevel, step: int) -> tuple[mx.array, mx.array]:
        guided, negative = denoiser.with_negative(x, level, step)
        return guided.x_0, negative.eps


def ancestral_sigmas(level: NoiseLevel, end: NoiseLevel, eta: float = 1.0) -> tuple[float, float]:
    """(down, up): the ve_sigma to go down to and the ve_sigma of the noise to add, down^2 + up^2 = end.ve_sigma^2."""
    ratio = end.ve_sigma / level.ve_sigma
    if eta == 1:
        return end.ve_sigma * ratio, end.ve_sigma * math.sqrt(max(0.0, 1 - ratio**2))
    up = min(end.ve_sigma, eta * end.ve_sigma * math.sqrt(max(0.0, 1 - ratio**2)))
    return math.sqrt(end.ve_sigma**2 - up**2), up


def check_eta(eta: float) -> None:
    """Raise `SamplerError` for a share of noise outside [0, 1]."""
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
        raise SamplerError(f"eta = {eta!r} should lie between 0 and 1.")
