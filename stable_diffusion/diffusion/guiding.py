"""Guidance by a gradient: anything that says in which direction a picture would fit better steers the diffusion.

Dhariwal and Nichol 2021, arXiv:2105.05233, section 4. For a condition y, Bayes' rule gives the score of what is wanted:

    grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t)                        gradients in x_t

A network's eps is -sigma grad log p(x_t), where x_t = alpha x_0 + sigma eps, sigma = sqrt(1 - abar). So (equation 14)

    eps_hat = eps - sigma g,    g = s grad log p(y | x_t),    s > 1 for pictures that fit more surely

which is the same as x_0_hat = x_0 + sigma^2 / alpha g, or in k-diffusion's form, whose x is x_t / alpha and sigma is
sigma / alpha, x_0_hat = x_0 + sigma^2 times the gradient in that x.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import checks, ops
from ..backend import mx
from ..errors import InputError
from ..steering import Steering
from .schedule import NoiseLevel

# (x_t, level, estimate of x_0) -> gradient of log p(y | x_t) in x_t; all (B, h, w, C), a row for each picture.
# `level.t` is the time, and x_t = level.alpha x_0 + level.sigma eps.
GuidanceFunction = Callable[[mx.array, NoiseLevel, mx.array], mx.array]


@dataclass(frozen=True, eq=False)
class Guidance:
    """A `gradient` function, and what its answers are multiplied by: a number, or one for each picture.

    A function that holds something of each picture should have a method `only(places)` that returns one for some of
    them: `StableDiffusion.generate` paints certain prompts in batches of their own. `steering` is what the function was
    made from, if pictures' records are to say so; of others they say nothing.
    """

    gradient: GuidanceFunction
    scale: float | tuple[float, ...] = 1.0
    steering: Steering | None = None

    def __post_init__(self) -> None:
        if not callable(self.gradient):
            raise InputError(
                f"guidance = {self.gradient!r} should be a function of x_t, its noise level and the estimate of x_0."
            )
        if isinstance(self.scale, Sequence) and not isinstance(self.scale, str) and len(self.scale):
            scale: Any = tuple(checks.number("guidance scale", each, -math.inf, math.inf) for each in self.scale)
        else:
            scale = checks.number("guidance scale", self.scale, -math.inf, math.inf)
        object.__setattr__(self, "scale", scale)

    @classmethod
    def of(cls, value: Any, n_pictures: int) -> Guidance | None:
        """From an argument: None, a function or a `Guidance`. Raises `InputError` for others, or for other counts."""
        if value is None:
            return None
        guidance = value if isinstance(value, Guidance) else cls(value)
        if isinstance(guidance.scale, tuple) and len(guidance.scale) != n_pictures:
            raise InputError(
                f"The guidance has {len(guidance.scale)} scales, but there are {n_pictures} pictures: give one for "
                "each, or a single number."
            )
        return guidance

    def only(self, places: Sequence[int]) -> Guidance:
        """The same for some of the pictures."""
        only = getattr(self.gradient, "only", None)
        scale = tuple(self.scale[i] for i in places) if isinstance(self.scale, tuple) else self.scale
        return dataclasses.replace(self, gradient=self.gradient if only is None else only(places), scale=scale)

    def __call__(self, x: mx.array, level: NoiseLevel, x_0: mx.array) -> mx.array:
        """The scaled gradient, float32, evaluated. Raises `InputError` for another shape, and for NaN or infinity."""
        found = self.gradient(x, level, x_0)
        if not isinstance(found, mx.array) or found.shape != x.shape:
            shape = found.shape if isinstance(found, mx.array) else type(found).__name__
            raise InputError(
                f"guidance answered with {shape} at time {level.t:g}; it should be an mlx array {x.shape} like x_t."
            )
        found = found.astype(mx.float32)
        if not mx.isfinite(found).all():
            raise InputError(
                f"guidance answered with NaN or infinity at time {level.t:g}, noise {level.sigma:.3g}: its loss should "
                "have a finite gradient everywhere."
            )
        if isinstance(self.scale, tuple):
            return found * mx.array(np.array(self.scale, np.float32)).reshape(-1, *[1] * (x.ndim - 1))
        return found * self.scale


def of_estimate(log_likelihood: Callable[[mx.array], mx.array]) -> GuidanceFunction:
    """Guidance from how well the estimate of x_0 fits: (B, h, w, C) -> log p(y | x_0), (B,).

    The gradient is not taken through the network. It is that of log p(y | x_0(x_t)) with the network's v held fixed:
    x_0 = alpha x_t - sigma v, so that the gradient in x_t is alpha times that in x_0, and the estimate moves by sigma^2
    times the latter. For x_0 ~ N(0, 1), the variance that latents have, this is exact; it needs no backward pass of the
    U-Net, and works with every network.
    """
    gradient = mx.grad(lambda x_0: log_likelihood(x_0).sum())

    def guided(x: mx.array, level: NoiseLevel, x_0: mx.array) -> mx.array:
        with ops.use("learning"):
            found = level.alpha * gradient(x_0)
            mx.eval(found)
        return found

    return guided


def steered(output: mx.array, gradient: mx.array, level: NoiseLevel, prediction_type: str) -> mx.array:
    """A network's answer with eps - sigma g in place of eps, at a level with alpha > 0."""
    alpha, sigma = level.alpha, level.sigma
    if prediction_type == "epsilon":
        return output - sigma * gradient
    if prediction_type == "v_prediction":  # v = (eps - sigma x_t) / alpha
        return output - sigma / alpha * gradient
    if prediction_type == "flow":  # u = eps - x_0
        return output - sigma * (alpha + sigma) / alpha * gradient
    return output + sigma**2 / alpha * gradient  # x_0
