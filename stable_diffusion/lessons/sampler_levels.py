"""Which noise levels a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..sampler import sampler_by_name
from .common import noise_schedule
from .drawing import SECOND, rows_of
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Slider, Values

SCHEDULES = {
    "as the model says": "euler",
    "Karras": "euler_karras",
    "exponential": "euler_exponential",
}
STEPS = (4, 6, 8, 10, 15, 20, 30, 50)


def compute(model: Any, report: Report, values: Values) -> dict[str, Any]:
    """The curve of sigma over the training times, and the (time, sigma) of each plan, by schedule and steps."""
    noise = noise_schedule(model)
    plans = {}
    for title, name in SCHEDULES.items():
        for steps in STEPS:
            levels = sampler_by_name(name).plan(model.scheduler_config, steps).levels
            plans[title, steps] = np.array([(level.t, level.ve_sigma) for level in levels])
    return {"curve": noise.ve_sigmas.astype(np.float64), "plans": plans}


def show(found: dict[str, Any], values: Values) -> Sequence[Block]:
    import altair as alt

    steps = min(STEPS, key=lambda each: abs(each - values["steps"]))
    plan = found["plans"][values["schedule"], steps]
    curve, t = found["curve"], np.arange(len(found["curve"]))
    y = alt.Y("sigma:Q", title="σ, noise to signal", scale=alt.Scale(type="log"))
    x = alt.X("t:Q", title="time t")
    every = slice(None, None, max(1, len(t) // 200))
    line = alt.Chart(alt.Data(values=rows_of(t=t[every], sigma=curve[every]))).mark_line().encode(x=x, y=y)
    dots = alt.Chart(alt.Data(values=rows_of(t=plan[:, 0], sigma=plan[:, 1]))).mark_circle(size=70, color=SECOND)
    ratios = plan[:-1, 1] / plan[1:, 1]
    return [
        Chart((line + dots.encode(x=x, y=y)).properties(height=300), f"The noise levels that {steps} steps visit"),
        Say(
            f"{steps} steps, from σ = {plan[0, 1]:.3g} to {plan[-1, 1]:.3g}. The largest single step divides the "
            f"noise by **{ratios.max():.2f}**, the smallest by {ratios.min():.2f}."
        ),
    ]


LESSON = Lesson(
    key="levels",
    title="Which steps to take",
    text=(
        "The model learnt a thousand times, but nobody wants to call it a thousand times. A *scheduler* chooses a few "
        "of the noise levels on the model's curve, and the sampler jumps from one to the next. Evenly spaced times "
        "are what the first models used. *Exponential* steps divide the noise by the same factor each time. Karras et "
        "al. go between equal steps of σ and equal factors, so that neither large shapes nor fine detail is hurried. "
        "With many steps the choice hardly matters; with eight it decides between a clear picture and a smeared one."
    ),
    equations=(
        r"\sigma_i = \left(\sigma_\text{max}^{1/\rho} + \tfrac{i}{n-1}\left(\sigma_\text{min}^{1/\rho} - "
        r"\sigma_\text{max}^{1/\rho}\right)\right)^{\rho}, \quad \rho = 7 \qquad\text{(Karras)}",
    ),
    compute=compute,
    show=show,
    views=(
        Options("schedule", "Schedule", tuple(SCHEDULES)),
        Slider("steps", "Steps", STEPS[0], STEPS[-1], 10),
    ),
    papers=(
        Paper(
            "Karras et al. 2022, Elucidating the design space of diffusion-based generative models",
            "https://arxiv.org/abs/2206.00364",
        ),
    ),
)
