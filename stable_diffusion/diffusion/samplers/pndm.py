"""PNDM: four-step Adams-Bashforth on eps, started by Runge-Kutta or by one repeated evaluation (PLMS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...backend import mx
from ...config import SchedulerConfig
from ...errors import InputError
from ..denoiser import Denoiser
from ..schedule import NoiseLevel, NoiseSchedule, Plan
from ..spacing import spaced_times
from .base import Noise, Sampler, Step, step_reached
from .euler import LINEAR_BETAS

# Adams-Bashforth weights, newest first, by the number of evaluations.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA_STEPS = 3


@dataclass(frozen=True)
class PNDMSampler(Sampler):
    """Pseudo numerical methods for diffusion models; `skip_prk_steps` (Stable Diffusion's files) makes it PLMS.

    Equations 9, 12 and 13 of Liu et al. 2022, arXiv:2202.09778 (diffusers scheduling_pndm.py).
    """

    skip_prk_steps: bool | None = None
    set_alpha_to_one: bool | None = None

    key = "pndm"
    title = "PNDM"
    defaults: ClassVar[Mapping[str, Any]] = {
        **LINEAR_BETAS,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
    }

    def _plan(self, config: SchedulerConfig, num_steps: int) -> Plan:
        schedule = NoiseSchedule.from_config(config, final_is_clean=bool(config.set_alpha_to_one))
        stride = config.num_train_timesteps // num_steps
        times = [int(t) for t in spaced_times(config, num_steps)]
        levels = tuple(schedule.level(t) for t in times)
        ends = (*levels[1:2], *(schedule.level(t - stride) for t in times[len(levels[1:2]) :]))
        if config.skip_prk_steps:
            # The reference counts evaluations, and the second time has two: starting midway (image to image), the first
            # step is at the time before its index.
            calls = (*levels[:2], *levels[1:])
            return Plan(config, schedule, calls[:num_steps], ends, calls=calls)
        if num_steps <= RUNGE_KUTTA_STEPS:
            raise InputError(
                f"num_steps = {num_steps}: {self.title} with Runge-Kutta steps (skip_prk_steps = false) needs at "
                f"least {RUNGE_KUTTA_STEPS + 1}. Take more, or PNDMSampler(skip_prk_steps=True)."
            )
        ends = (*levels[1 : RUNGE_KUTTA_STEPS + 1], *ends[RUNGE_KUTTA_STEPS:])
        # The reference runs the Runge-Kutta steps as if at the first time, wherever it starts.
        reason = (
            f"{self.title} with Runge-Kutta steps (skip_prk_steps = false) cannot begin midway: choose another sampler "
            "for image to image, strength 1, or PNDMSampler(skip_prk_steps=True)."
        )
        return Plan(config, schedule, levels, ends, indivisible=reason)

    def sample(self, denoiser: Denoiser, x: mx.array, plan: Plan, noise: Noise) -> Iterator[Step]:
        if plan.config.skip_prk_steps:
            yield from _plms(denoiser, x, plan)
        else:
            yield from _runge_kutta_then_plms(denoiser, x, plan)


def _plms(denoiser: Denoiser, x: mx.array, plan: Plan) -> Iterator[Step]:
    stride = plan.config.num_train_timesteps // len(plan.levels)
    calls = plan.calls[plan.first :]
    outputs: list[mx.array] = []  # newest first
    first_x = x
    for i, level in enumerate(calls):
        number = max(i, 1)  # the first two calls are the first step's
        output = denoiser.output(x, level, number)
        x_0 = denoiser.prediction(output, x, level).x_0
        if i == 1:
            # Repeat the first step, now with the mean of the outputs at both its ends.
            start, end = plan.schedule.level(int(level.t) + stride), level
            x = _transfer(denoiser, first_x, start, end, (output + outputs[0]) / 2)
        else:
            outputs = [output, *outputs][:4]
            start, end = level, plan.schedule.level(int(level.t) - stride)
            x = _transfer(denoiser, x, start, end, _adams_bashforth(outputs))
        if i > 0 or len(calls) == 1:
            yield step_reached(plan, plan.first + number - 1, x, x_0, end)


def _runge_kutta_then_plms(denoiser: Denoiser, x: mx.array, plan: Plan) -> Iterator[Step]:
    stride = plan.config.num_train_timesteps // len(plan.levels)
    half = stride // 2
    outputs: list[mx.array] = []  # newest first
    for i, level in enumerate(plan.levels):
        number = plan.number(i)
        output = denoiser.output(x, level, number)
        x_0 = denoiser.prediction(output, x, level).x_0
        outputs = [output, *outputs][:4]
        if i < RUNGE_KUTTA_STEPS:
            end = plan.levels[i + 1]
            middle = plan.schedule.level(int(end.t) + half)
            # The first half step goes down from the start, the second to half a step above the end.
            x_a = _transfer(denoiser, x, level, plan.schedule.level(int(level.t) - half), output)
            output_a = denoiser.output(x_a, middle, number)
            output_b = denoiser.output(_transfer(denoiser, x, level, middle, output_a), middle, number)
            output_c = denoiser.output(_transfer(denoiser, x, level, end, output_b), end, number)
            mean = (output + 2 * output_a + 2 * output_b + output_c) / 6
        else:
            end = plan.ends[i]
            mean = _adams_bashforth(outputs)
        x = _transfer(denoiser, x, level, end, mean)
        yield step_reached(plan, i, x, x_0)


def _adams_bashforth(outputs: list[mx.array]) -> mx.array:
    total = 0 * outputs[0]
    for weight, output in zip(ADAMS_BASHFORTH[len(outputs)], outputs, strict=True):
        total = total + weight * output
    return total


def _transfer(denoiser: Denoiser, x: mx.array, start: NoiseLevel, end: NoiseLevel, output: mx.array) -> mx.array:
    """Equation 9: move x from one level to another along an output, taken as one for x at `start`.

    The reference mixes raw outputs and converts the mixture, which for v-prediction is not the mixture of the eps.
    """
    prediction = denoiser.prediction(output, x, start)
    return end.noised(prediction.x_0, prediction.eps)
