"""DDIM run backwards: from a picture's latents to the noise that DDIM paints the picture from.

Song et al. 2021 (arXiv:2010.02502), equation 14: with x-bar = x_t / alpha and s = sigma / alpha, sampling without noise
is Euler's method for d x-bar / d s = eps(x_t, t), which can run in either direction; Dhariwal and Nichol 2021 (appendix
F) invert pictures so. Painting takes eps at the noisier end of each step, which an inversion does not know yet: it
takes eps at the cleaner end, and the error falls in proportion to the steps' length. Each of `corrections` asks again
at the end just reached, which solves for the step that painting will take (fixed-point iteration).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..backend import mx
from .denoiser import Denoiser
from .samplers.base import Step
from .schedule import NoiseLevel, Plan


def inverted(denoiser: Denoiser, x_0: mx.array, plan: Plan, corrections: int = 0) -> Iterator[Step]:
    """The steps of a DDIM plan from its end to its start, from clean latents x_0 (B, h, w, C); the last x is the noise.

    Each step costs 1 + `corrections` calls of the network.
    """
    x, total = x_0, len(plan)
    for done, i in enumerate(reversed(range(plan.first, len(plan.levels))), 1):
        clean, noisy, step = plan.ends[i], plan.levels[i], plan.number(i)
        asked = clean if clean.sigma else plan.schedule.level(0)  # without noise, eps from x_0 is not defined
        eps = denoiser(x, asked, step).eps
        reached = stepped(x, eps, clean, noisy)
        for _ in range(corrections):
            eps = denoiser(reached, noisy, step).eps
            reached = stepped(x, eps, clean, noisy)
        yield Step(done, total, noisy.t, noisy.ve_sigma, reached, (x - clean.sigma * eps) / clean.alpha)
        x = reached


def stepped(x: mx.array, eps: mx.array, start: NoiseLevel, end: NoiseLevel) -> mx.array:
    """Equation 12 without noise: x_start with its noise taken out and put in again at `end`, in either direction."""
    return end.noised((x - start.sigma * eps) / start.alpha, eps)
