"""UniPC: a predictor and a corrector that shares the predictor's evaluation."""

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
from ..schedule import NoiseLevel, NoiseSchedule, Plan
from .base import Noise, Step, step_reached
from .dpm import SOLVER_DEFAULTS, LogSNRSampler


@dataclass(frozen=True)
class UniPCSampler(LogSNRSampler):
    """UniPC with B(h) of `solver_type` bh1 or bh2, on x_0, corrected at every step but the first.

    Algorithms 5 to 8 of Zhao et al. 2023, arXiv:2302.04867 (diffusers scheduling_unipc_multistep.py).
    """

    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None

    key = "unipc"
    title = "UniPC"
    defaults: ClassVar[Mapping[str, Any]] = {**SOLVER_DEFAULTS, "solver_type": "bh2"}
    honoured = frozenset({"rescale_betas_zero_snr", "sigma_min", "sigma_max"})

    def resolve(self, config: SchedulerConfig) -> SchedulerConfig:
        resolved = super().resolve(config)
        # midpoint, heun and logrho belong to DPM-Solver and DEIS; the reference takes bh2 for them.
        if resolved.solver_type not in ("bh1", "bh2", "midpoint", "heun", "logrho"):
            raise UnsupportedCheckpointError(f"solver_type = {resolved.solver_type!r} should be bh1 or bh2.")
        order = resolved.solver_order
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 5:
            raise SamplerError(f"solver_order = {order!r} should be a whole number from 1 to 5 for {self.title}.")
        if order > 1 and not resolved.lower_order_final and resolved.final_sigmas_type == "zero":
            raise SamplerError(
                f"{self.title} with lower_order_final = false cannot end at no noise (infinite log-SNR): "
                "UniPCSampler(lower_order_final=True) can, and so can final_sigmas_type = 'sigma_min'."
            )
        return resolved

    def _last_sigma(self, config: SchedulerConfig, schedule: NoiseSchedule, sigmas: np.ndarray) -> float:
        named = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
        return float(sigmas[-1]) if named else super()._last_sigma(config, schedule, sigmas)

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        config = plan.config
        most, bh1 = config.solver_order or 2, config.solver_type == "bh1"
        past: list[mx.array] = []  # x_0 estimates, newest first
        order, corrected_from = 1, x
        for i in range(plan.first, len(plan.levels)):
            level = plan.levels[i]
            x_0 = denoiser(x, level, plan.number(i)).x_0
            if past:
                x = _combine(corrected_from, x_0, past, plan.levels[i::-1], order, bh1)
            past = [x_0, *past][:most]
            left = len(plan.levels) - i
            order = min(most, len(past), left if config.lower_order_final else most)
            corrected_from = x
            x = _combine(x, None, past, [plan.ends[i], *plan.levels[i::-1]], order, bh1)
            yield step_reached(plan, i, x, x_0)


def _combine(
    x: mx.array,
    x_0_there: mx.array | None,
    past: Sequence[mx.array],
    levels: Sequence[NoiseLevel],
    order: int,
    bh1: bool,
) -> mx.array:
    """Move x from levels[1] to levels[0] with the estimates `past` at levels[1], levels[2], ...

    The corrector if there is also an estimate at levels[0], `x_0_there`; else the predictor.
    """
    end, start = levels[:2]
    h = end.log_snr - start.log_snr
    if h == 0:  # Karras sigmas with final_sigmas_type = "sigma_min": the last step stays where it is
        return x
    phi = math.expm1(-h)
    base = -h if bh1 else phi
    ratios = [(levels[k + 1].log_snr - start.log_snr) / h for k in range(1, order)]
    differences = [(past[k] - past[0]) / ratio for k, ratio in zip(range(1, order), ratios, strict=True)]
    if x_0_there is not None:
        differences.append(x_0_there - past[0])
        ratios.append(1.0)
    x = end.sigma / start.sigma * x - end.alpha * phi * past[0]
    for rho, difference in zip(_rhos(ratios, h, phi, base), differences, strict=True):
        x = x - end.alpha * base * rho * difference
    return x


def _rhos(ratios: Sequence[float], h: float, phi: float, base: float) -> Sequence[float]:
    """The weights of the differences: the solution of equation 10."""
    # With one difference the reference takes 1/2 instead of solving, in predictor and corrector.
    if len(ratios) <= 1:
        return [0.5] * len(ratios)
    rows, right, factorial = [], [], 1
    phi_k = phi / -h - 1
    for k in range(1, len(ratios) + 1):
        rows.append([ratio ** (k - 1) for ratio in ratios])
        right.append(phi_k * factorial / base)
        factorial *= k + 1
        phi_k = phi_k / -h - 1 / factorial
    return [float(rho) for rho in np.linalg.solve(np.array(rows), np.array(right))]
