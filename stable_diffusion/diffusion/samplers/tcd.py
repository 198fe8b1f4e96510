"""TCD: trajectory consistency, a jump to x_0 and back to below the next time, then noise up to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import mx
from ...config import SchedulerConfig
from ..denoiser import Denoiser
from ..schedule import NoiseSchedule, Plan
from .base import Noise, Sampler, Step, step_reached
from .ddim import distilled_times
from .euler import check_eta


@dataclass(frozen=True)
class TCDSampler(Sampler):
    """Strategic stochastic sampling for networks distilled to few steps; `eta` is the paper's gamma, from 0 to 1.

    0 goes down without noise, 1 draws the whole noise of the next time anew. The last step ends at training time 0, not
    at no noise. Algorithm 4 of Zheng et al. 2024, arXiv:2402.19159 (diffusers scheduling_tcd.py). One draw a step but
    for the last.
    """

    original_inference_steps: int | None = None
    eta: float = 0.3

    key = "tcd"
    title = "TCD"
    defaults: ClassVar[Mapping[str, Any]] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
    }
    honoured = frozenset({"rescale_betas_zero_snr"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        schedule = NoiseSchedule.from_config(config)
        levels = tuple(schedule.level(int(t)) for t in distilled_times(self.title, config, num_steps))
        return Plan(config, schedule, levels, (*levels[1:], schedule.level(0)))

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        for i in range(plan.first, len(plan.levels)):
            end = plan.ends[i]
            prediction = denoiser(x, plan.levels[i], plan.number(i))
            below = plan.schedule.level(int(np.floor(np.float32(1 - self.eta) * np.float32(end.t))))  # as rounded there
            x = below.noised(prediction.x_0, prediction.eps)
            if self.eta and i + 1 < len(plan.levels):
                kept = (end.alpha / below.alpha) ** 2
                x = math.sqrt(kept) * x + math.sqrt(max(0.0, 1 - kept)) * noise()
            yield step_reached(plan, i, x, prediction.x_0)
