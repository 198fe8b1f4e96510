"""Few steps: guided and progressive distillation of a latent diffusion model that predicts v.

Salimans and Ho 2022 (arXiv:2202.00512) halve the number of steps again and again: one DDIM step of the student learns
to land where two of its teacher's do (algorithm 2). Meng et al. 2023 (arXiv:2210.03142) give the student the guidance
weight w as an input, so that it needs one row where classifier-free guidance needs two (section 3.1).

    x_t = alpha_t x_0 + sigma_t eps                                            x_0 ~ data, t of the student's grid
    x_t' , x_t'' = DDIM(x_t), DDIM(x_t')                            with the teacher's v, guided: v_u + w (v_c - v_u)
    x_0 target = (x_t'' - (sigma_t'' / sigma_t) x_t) / (alpha_t'' - (sigma_t'' / sigma_t) alpha_t)
    loss = max(alpha_t^2 / sigma_t^2, 1) |target - x_0 of the student(x_t, t, w, text)|^2      (equation 9)

Here both come in one stage if the teacher takes no w yet: the student then learns two guided steps of it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .. import ops
from ..backend import mx
from ..config import SchedulerConfig
from ..diffusion.denoiser import eps_from_v, eps_from_x0, v_from_eps, x0_from_v
from ..diffusion.schedule import NoiseLevel
from ..errors import InputError
from ..sampler import sampler_by_name
from ..unet import UNet

SAMPLER = "ddim"


def grid(scheduler: SchedulerConfig, steps: int) -> tuple[NoiseLevel, ...]:
    """The `steps` + 1 falling levels that DDIM goes through with the scheduler's own spacing; the last is clean."""
    plan = sampler_by_name(SAMPLER).plan(scheduler, steps)
    return (*plan.levels, plan.ends[-1])


def nested_grids(scheduler: SchedulerConfig, teacher_steps: int, student_steps: int) -> np.ndarray:
    """(student steps, n + 1, 3): t, alpha and sigma of the levels that the teacher visits in a step of the student.

    Raises `InputError` where the student's levels are not every n-th one of the teacher's.
    """
    n = teacher_steps // student_steps
    fine = np.array([(each.t, each.alpha, each.sigma) for each in grid(scheduler, teacher_steps)])
    coarse = np.array([(each.t, each.alpha, each.sigma) for each in grid(scheduler, student_steps)])
    if n < 2 or n * student_steps != teacher_steps or not np.array_equal(fine[::n], coarse):
        raise InputError(
            f"{student_steps} steps of the student do not divide {teacher_steps} of the teacher: halve a power of two, "
            "such as --teacher-steps 32 --student-steps 16."
        )
    return np.stack([fine[n * i : n * (i + 1) + 1] for i in range(student_steps)])


def levels_of(rows: mx.array) -> NoiseLevel:
    """A level of each row of (B, 3) at once: t (B,), alpha and sigma (B, 1, 1, 1)."""
    t, alpha, sigma = rows[:, 0], rows[:, 1, None, None, None], rows[:, 2, None, None, None]
    return NoiseLevel(t, alpha, sigma)  # type: ignore[arg-type]


def ddim_step(x: mx.array, v: mx.array, level: NoiseLevel, end: NoiseLevel) -> mx.array:
    """x_end = alpha_end x_0 + sigma_end eps: equation 12 of Song et al. 2021 without fresh noise."""
    return end.noised(x0_from_v(x, v, level), eps_from_v(x, v, level))


def x0_to_reach(x: mx.array, reached: mx.array, level: NoiseLevel, end: NoiseLevel) -> mx.array:
    """The x_0 with which one DDIM step from x at `level` lands on `reached` at `end` (Salimans and Ho, algorithm 2)."""
    ratio = end.sigma / level.sigma
    return (reached - ratio * x) / (end.alpha - ratio * level.alpha)


def v_from_x0(x: mx.array, x_0: mx.array, level: NoiseLevel) -> mx.array:
    """v = alpha eps - sigma x_0, with the eps that x and x_0 imply."""
    return v_from_eps(x_0, eps_from_x0(x, x_0, level), level)


def truncated_snr(level: NoiseLevel) -> mx.array:
    """The weight of v's squared error, (B, 1, 1, 1): equation 9's max(SNR, 1) times sigma^2, as x_0 errs by sigma v."""
    return mx.maximum(level.alpha * level.alpha, level.sigma * level.sigma)  # arrays, in a level of `levels_of`


@dataclass(frozen=True)
class Guided:
    """v of a U-Net with guidance w: of two rows, or of one where the network takes w as an input."""

    unet: UNet

    def context(self, text: mx.array, no_text: mx.array) -> Any:
        """What a call needs of hidden states (B, 77, D) and of those of the empty text (1, 77, D)."""
        if self.unet.embeds_guidance:
            return self.unet.project_text(text)
        return self.unet.project_text(mx.concatenate([mx.broadcast_to(no_text, text.shape), text]))

    def __call__(self, x: mx.array, t: mx.array, w: mx.array, context: Any) -> mx.array:
        """x (B, h, w, C) at times t (B,) with weights w (B,)."""
        x = x.astype(self.unet.conv_in.weight.dtype)
        if self.unet.embeds_guidance:
            return self.unet(x, t, context, guidance=self.unet.guidance_embedding(w)).astype(mx.float32)
        both = self.unet(mx.concatenate([x, x]), mx.concatenate([t, t]), context).astype(mx.float32)
        without, with_text = mx.split(both, 2)
        return without + w[:, None, None, None] * (with_text - without)


def reached(teacher: Guided, x: mx.array, levels: Sequence[NoiseLevel], w: mx.array, context: Any) -> mx.array:
    """Where the teacher's DDIM steps through these levels lead from x at the first of them."""
    for level, end in pairwise(levels):
        x = ddim_step(x, teacher(x, level.t, w, context), level, end)  # type: ignore[arg-type]
    return x


def distillation_loss(
    student: Guided,
    teacher: Guided,
    x: mx.array,
    levels: Sequence[NoiseLevel],
    w: mx.array,
    text: mx.array,
    no_text: mx.array,
) -> tuple[mx.array, mx.array]:
    """The loss of the module's docstring for x at the first of `levels`, in v; and the plain squared error of v."""
    level, end = levels[0], levels[-1]
    with ops.use("usual"):  # the teacher needs no gradients
        there = reached(teacher, x, levels, w, teacher.context(text, no_text))
    target = mx.stop_gradient(v_from_x0(x, x0_to_reach(x, there, level, end), level))
    answer = student(x, level.t, w, student.context(text, no_text))  # type: ignore[arg-type]
    squares = mx.square(target - answer)
    return (truncated_snr(level) * squares).mean(), squares.mean()
