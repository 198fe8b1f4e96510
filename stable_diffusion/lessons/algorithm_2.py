"""Algorithm 2: digits out of noise, with the estimate of x_0 at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..training import ddpm
from .common import CFG, DDPM
from .digits_model import load
from .drawing import png
from .lesson import Block, Lesson, Options, Report, Say, Shown, Slider, Strip, Values

N = 6
GUIDANCE = 2.0  # where a digit is asked for
KEPT = 50  # moments of the walk that are kept


@dataclass(frozen=True)
class Walk:
    """x_t and the estimates of x_0 at some times, (moments, N, 28, 28) each."""

    times: np.ndarray
    x_t: np.ndarray
    x_0: np.ndarray


def compute(model: object, report: Report, values: Values) -> Walk:
    """Sample N digits, all of one kind or of any."""
    label = None if values["digit"] == "any" else int(values["digit"])
    steps = int(values["steps"])
    every = max(1, steps // KEPT)
    times, latents, estimates = [], [], []
    for i, (t, x, x_0) in enumerate(ddpm.sample(load(), [label] * N, int(values["seed"]), GUIDANCE, steps), 1):
        arrays = np.array(x)[..., 0], np.array(x_0)[..., 0]
        if i % every == 0 or i == steps:
            report(f"Step {i} of {steps}", i / steps)
            times.append(t)
            latents.append(arrays[0])
            estimates.append(arrays[1])
    return Walk(np.array(times), np.stack(latents), np.stack(estimates))


def show(found: Walk, values: Values) -> Sequence[Block]:
    i = int(np.abs(found.times - values["t"]).argmin())
    t = int(found.times[i])
    return [
        Strip(
            [Shown(png(x, 4, -2, 2), f"Digit {j + 1} at time {t}", f"xₜ, t = {t}") for j, x in enumerate(found.x_t[i])]
        ),
        Strip(
            [Shown(png(x, 4), f"The estimate of digit {j + 1} at time {t}", "x̂₀") for j, x in enumerate(found.x_0[i])]
        ),
        Say("Above: what the walk has reached. Below: what the network believes the digit to be, at the same time."),
    ]


LESSON = Lesson(
    key="algorithm-2",
    title="Algorithm 2: sampling",
    text=(
        "Begin with noise. For each time from T down to 1, ask the network for the noise, take the step back, and add "
        "a little fresh noise, except in the last step. The paper takes all thousand times; here you may leave some "
        "out, and the next chapter has samplers that need only twenty. Watch the estimate: it begins as a grey "
        "average of all digits, decides early what it will be, and changes only details in the end. Ask for one digit "
        "or for any; the same network does both, because one label in ten was left out in training."
    ),
    equations=(
        r"x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{1 - \alpha_t}{\sqrt{1 - \bar\alpha_t}}\,"
        r"\varepsilon_\theta(x_t, t)\right) + \sigma_t z, \qquad z \sim N(0, I) \text{ if } t > 1, \text{ else } 0",
    ),
    compute=compute,
    show=show,
    asks=(
        Options("digit", "Digit", ("any", *range(10))),
        Options("seed", "Seed", (1, 2, 3, 4, 5)),
        Options("steps", "Steps", (50, 100, 250, 1000), 100),
    ),
    views=(Slider("t", "Time t", 0, 1000, 0, 20),),
    papers=(DDPM, CFG),
    code=(ddpm.sample, ddpm.posterior),
    needs_model=False,
)
