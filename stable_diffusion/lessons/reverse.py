"""The step back in the paper's four equations, computed from each other on a digit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..training import ddpm
from .common import DDPM
from .digits_model import CONFIG, a_digit
from .drawing import png
from .lesson import Block, Lesson, Options, Report, Say, Shown, Slider, Strip, Values


@dataclass(frozen=True)
class StepBack:
    """x_t of a digit and the noise in it, at every time asked for; the true noise stands in for a perfect network."""

    x_0: np.ndarray
    eps: np.ndarray


def compute(model: object, report: Report, values: Values) -> StepBack:
    """A digit and noise."""
    x_0 = a_digit(int(values["digit"]))
    return StepBack(x_0, np.random.default_rng(0).standard_normal(x_0.shape))


def by_posterior(x_t: np.ndarray, x_0: np.ndarray, t: int) -> np.ndarray:
    """The mean of x_{t-1}, given x_t and x_0 (equation 7)."""
    beta, abar, before = _at(t)
    return (before**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - before) * x_t) / (1 - abar)


def by_noise(x_t: np.ndarray, eps: np.ndarray, t: int) -> np.ndarray:
    """The same mean, given x_t and the noise in it (equation 11)."""
    beta, abar, _ = _at(t)
    return (x_t - beta / (1 - abar) ** 0.5 * eps) / (1 - beta) ** 0.5


def _at(t: int) -> tuple[float, float, float]:
    return CONFIG.betas[t], CONFIG.alpha_bars[t], CONFIG.alpha_bars[t - 1] if t else 1.0


def show(found: StepBack, values: Values) -> Sequence[Block]:
    t = int(values["t"]) - 1
    beta, abar, before = _at(t)
    x_t = abar**0.5 * found.x_0 + (1 - abar) ** 0.5 * found.eps
    estimate = (x_t - (1 - abar) ** 0.5 * found.eps) / abar**0.5
    seven, eleven = by_posterior(x_t, estimate, t), by_noise(x_t, found.eps, t)
    pictures = (
        (x_t, "x_t", f"xₜ, t = {t + 1}"),
        (estimate, "the estimate of x_0", "x̂₀, from xₜ and ε (15)"),
        (seven, "the mean of x_t-1 by equation 7", "mean of xₜ₋₁ (7)"),
        (eleven, "the mean of x_t-1 by equation 11", "the same (11)"),
    )
    kept, moved = (before**0.5 * beta / (1 - abar), (1 - beta) ** 0.5 * (1 - before) / (1 - abar))
    return [
        Strip([Shown(png(array[:, :, 0], 4), f"A digit: {alt}", caption) for array, alt, caption in pictures]),
        Say(
            f"The largest difference of the last two: **{np.abs(seven - eleven).max():.1e}**. At this time the step "
            f"takes {kept:.3f} of x̂₀ and {moved:.3f} of xₜ, and adds noise of deviation "
            f"{(beta * (1 - before) / (1 - abar)) ** 0.5:.3f}."
        ),
    ]


LESSON = Lesson(
    key="reverse",
    title="The step back",
    text=(
        "If we knew the clean picture, the best step back from xₜ would be known: a weighted mean of the two, "
        "equation 7. We do not know it, but xₜ minus its noise is an estimate of it, equation 15, and the network "
        "says what the noise is. Put the one into the other and the picture drops out: equation 11 needs only xₜ and "
        "the predicted noise. Training the network to give the best step is then the same as training it to say the "
        "noise, equation 12. Here a digit is noised, and the step back is computed in both ways, with the true noise "
        "in the network's place: they are equal up to rounding, at every time."
    ),
    equations=(
        r"\tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t}\, x_0 + "
        r"\frac{\sqrt{\alpha_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t \quad\text{(7)}, \qquad "
        r"\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\varepsilon_\theta}{\sqrt{\bar\alpha_t}} \quad\text{(15)}",
        r"\mu_\theta = \frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\,"
        r"\varepsilon_\theta\right) \quad\text{(11)}, \qquad "
        r"\frac{\beta_t^2}{2\sigma_t^2\alpha_t(1 - \bar\alpha_t)}"
        r"\lVert\varepsilon - \varepsilon_\theta\rVert^2 \quad\text{(12)}",
    ),
    compute=compute,
    show=show,
    asks=(Options("digit", "Digit", tuple(range(10)), 5),),
    views=(Slider("t", "Time t", 1, 1000, 300),),
    papers=(DDPM,),
    code=(by_posterior, by_noise, ddpm.posterior),
    needs_model=False,
)
