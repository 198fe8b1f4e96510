"""Linear multistep: the slopes of past steps as a polynomial, integrated over the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import mx
from ...errors import SamplerError
from ..denoiser import Denoiser
from ..schedule import Plan
from .base import KDiffusionSampler, Noise, Step, step_reached
from .euler import LINEAR_BETAS


@dataclass(frozen=True)
class LMSSampler(KDiffusionSampler):
    """Adams-Bashforth in ve_sigma, of an order up to `order`.

    k-diffusion sample_lms; diffusers scheduling_lms_discrete.py.
    """

    order: int = 4

    key = "lms"
    title = "LMS"
    defaults: ClassVar[Mapping[str, Any]] = {**LINEAR_BETAS, "timestep_spacing": "linspace", "steps_offset": 0}
    needs_distinct_levels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3, 4):
            raise SamplerError(f"order = {self.order!r} should be 1, 2, 3 or 4.")

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        sigmas = [level.ve_sigma for level in (*plan.levels, plan.ends[-1])]
        slopes: list[mx.array] = []  # newest first
        for i in range(plan.first, len(plan.levels)):
            prediction = denoiser(x, plan.levels[i], plan.number(i))
            slopes = [prediction.eps, *slopes][: self.order]
            # Starting midway (image to image), the reference takes the order from the index in the whole schedule, but
            # has only the slopes seen so far, so its first steps miss part of the polynomial.
            weights = _weights(sigmas, i, min(i + 1, self.order))
            x_ve = x / plan.levels[i].alpha
            for weight, slope in zip(weights, slopes, strict=False):
                x_ve = x_ve + weight * slope
            x = plan.ends[i].alpha * x_ve
            yield step_reached(plan, i, x, prediction.x_0)


def _weights(sigmas: list[float], i: int, order: int) -> list[float]:
    """Weights of the last `order` slopes, newest first, for the step from sigmas[i] to sigmas[i + 1]."""
    # Four Gauss points are exact up to degree 7, which is more than enough here.
    points, areas = np.polynomial.legendre.leggauss(4)
    half = (sigmas[i + 1] - sigmas[i]) / 2
    at = sigmas[i] + half * (points + 1)
    past = [sigmas[i - k] for k in range(order)]
    return [
        float(half * np.sum(areas * np.prod([(at - s) / (past[k] - s) for s in past if s != past[k]], axis=0)))
        for k in range(order)
    ]
