"""DPM-Solver++ (3M) on the reverse SDE, as k-diffusion has it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...backend import mx
from ..denoiser import Denoiser
from ..schedule import Plan
from .base import KDiffusionSampler, Noise, Step, step_reached
from .euler import EULER_DEFAULTS, check_eta


@dataclass(frozen=True)
class DPMSolver3MSDESampler(KDiffusionSampler):
    """x_0 as a parabola through the last three estimates in log sigma; `eta` 1 is the whole SDE, 0 the flow.

    k-diffusion sample_dpmpp_3m_sde. Its noise is the increment of a Brownian motion over each step; increments over
    steps that follow each other are independent, so a step draws once. As in A1111 the last level above 0 of one step
    more is left out.
    """

    eta: float = 1.0

    key = "dpmpp_3m_sde"
    title = "DPM++ 3M SDE"
    automatic = "exponential"
    defaults = EULER_DEFAULTS
    honoured = frozenset({"rescale_betas_zero_snr"})
    needs_distinct_levels = True
    whole_range = True
    drops_penultimate = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        past: list[mx.array] = []  # x_0 estimates, newest first
        steps: list[float] = []  # in log sigma, newest first
        for i in range(plan.first, len(plan.levels)):
            level, end = plan.levels[i], plan.ends[i]
            x_0 = denoiser(x, level, plan.number(i)).x_0
            if not end.sigma:
                yield step_reached(plan, i, end.alpha * x_0, x_0)
                return
            h = math.log(level.ve_sigma / end.ve_sigma)
            x_ve = self._moved(x / level.alpha, [x_0, *past], h, steps)
            if self.eta:
                x_ve = x_ve + end.ve_sigma * math.sqrt(-math.expm1(-2 * h * self.eta)) * noise()
            past, steps = [x_0, *past][:2], [h, *steps][:2]
            x = end.alpha * x_ve
            yield step_reached(plan, i, x, x_0)

    def _moved(self, x_ve: mx.array, estimates: list[mx.array], h: float, earlier: list[float]) -> mx.array:
        """x_ve after a step of h without its noise, from the newest estimate and up to two before it."""
        k = h * (1 + self.eta)
        x_ve = math.exp(-k) * x_ve - math.expm1(-k) * estimates[0]
        if not earlier:
            return x_ve
        phi_2 = math.expm1(-k) / k + 1
        ratios = [each / h for each in earlier]
        slope = (estimates[0] - estimates[1]) / ratios[0]
        if len(earlier) == 1:
            return x_ve + phi_2 * slope
        curve = (slope - (estimates[1] - estimates[2]) / ratios[1]) / (ratios[0] + ratios[1])
        return x_ve + phi_2 * (slope + ratios[0] * curve) - (phi_2 / k - 0.5) * curve
