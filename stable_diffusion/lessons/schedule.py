"""The noise that the loaded model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .common import DDPM, noise_schedule
from .drawing import lines
from .lesson import Block, Chart, Lesson, Report, Say, Side, Slider, Values


@dataclass(frozen=True)
class Schedule:
    """The noise of every training time; each array is (T,)."""

    beta: np.ndarray
    alpha_bar: np.ndarray
    sigma: np.ndarray  # noise to signal


def compute(model: Any, report: Report, values: Values) -> Schedule:
    """The betas that the model was trained with, and the quantities derived from them."""
    noise = noise_schedule(model)
    alpha_bar = noise.alpha_bars.astype(np.float64)
    beta = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    return Schedule(beta, alpha_bar, noise.ve_sigmas.astype(np.float64))


def show(found: Schedule, values: Values) -> Sequence[Block]:
    t = np.arange(len(found.beta))[:: max(1, len(found.beta) // 200)]
    here = min(int(values["share"] / 100 * len(found.beta)), len(found.beta) - 1)
    curves = {
        "β, noise added at time t": (found.beta, False),
        "ᾱ, what is left": (found.alpha_bar, False),
        "σ, noise to signal": (found.sigma, True),
    }
    return [
        Side(
            [
                [Chart(lines({title: (t, curve[t])}, "time t", title, log), f"{title}, over the time")]
                for title, (curve, log) in curves.items()
            ]
        ),
        Say(
            f"At t = {here}: **{found.alpha_bar[here]:.1%}** of the picture's variance is left, and the noise is "
            f"**{found.sigma[here]:.2f}** times as strong as the picture."
        ),
    ]


LESSON = Lesson(
    key="schedule",
    title="How much noise, when",
    text=(
        "A diffusion model learns to undo noise. In training, noise is added to a picture in small portions βₜ, until "
        "after T steps nothing of the picture is left. ᾱₜ is the share of the picture's variance that remains at time "
        "t, and σₜ is how many times stronger than the picture the noise is. These three curves are one and the same "
        "*noise schedule*, of the model that is chosen on the left. Most of the visible change happens in the middle; "
        "at small times only texture is lost, at large ones hardly any more can be."
    ),
    equations=(
        r"\bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad \sigma_t = \sqrt{\frac{1 - \bar\alpha_t}{\bar\alpha_t}}",
    ),
    compute=compute,
    show=show,
    views=(Slider("share", "Time, % of the way", 0, 100, 50),),
    papers=(DDPM,),
)
