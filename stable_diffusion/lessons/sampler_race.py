"""One seed with several samplers and numbers of steps, and how far each is from the limit of many steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .common import DDIM, DDPM, PROMPT, decoded, painted, picture_of
from .drawing import lines
from .lesson import Block, Chart, Choose, Lesson, Paper, Report, Say, Shown, Strip, Values

SAMPLERS = {"Euler": "euler", "DDIM": "ddim", "DPM++ 2M": "dpmpp_2m", "Euler a": "euler_ancestral", "DDPM": "ddpm"}
STEPS = (4, 8, 20, 50)
LIMIT = 200  # steps of the picture that the deterministic ones approach


def compute(model: Any, report: Report, values: Values) -> dict[str, Any]:
    """Pictures by sampler and steps as JPEGs, and their root mean square distance to Euler's with many steps."""
    limit = picture_of(model, painted(model, report, values, "The picture with many steps", num_steps=LIMIT))
    pictures, distances = {}, {}
    for title, name in SAMPLERS.items():
        for steps in STEPS:
            note = f"{title}, {steps} steps"
            latents = painted(model, report, values, note, num_steps=steps, sampler=name)
            pictures[title, steps] = decoded(model, latents)
            distances[title, steps] = float(np.sqrt(np.square(picture_of(model, latents) - limit).mean()))
    return {"pictures": pictures, "distances": distances}


def steps_of(found: dict[str, Any]) -> list[int]:
    """The numbers of steps that were tried."""
    return sorted({steps for _, steps in found["distances"]})


def show(found: dict[str, Any], values: Values) -> Sequence[Block]:
    known, far = steps_of(found), found["distances"]
    steps = known[min(1, len(known) - 1) if values.get("steps") is None else values["steps"]]
    curves = {title: (known, [far[title, each] for each in known]) for title in SAMPLERS}
    return [
        Strip(
            [
                Shown(
                    found["pictures"][title, steps],
                    f"{title} with {steps} steps",
                    f"{title}  \ndistance {far[title, steps]:.3f}",
                )
                for title in SAMPLERS
            ]
        ),
        Chart(
            lines(curves, "steps", f"distance to Euler's picture of {LIMIT} steps", log_y=True, log_x=True),
            "The distance of each sampler's picture to that of many steps",
        ),
        Say(
            "Euler, DDIM and DPM++ 2M all approach the same picture. Euler a and DDPM draw new noise on the way, so "
            "that they end at another picture of the same kind, however many steps they take."
        ),
    ]


LESSON = Lesson(
    key="race",
    title="A race of samplers",
    text=(
        "Without fresh noise, the way from noise to picture is a smooth curve, an ordinary differential equation, and "
        "a sampler is a method to follow it. *Euler* walks straight on in the direction of the moment. *DDIM* does "
        "the same in other coordinates. *DPM++ 2M* remembers the last direction and bends with the curve, so that it "
        "arrives with fewer steps. *Euler a* and *DDPM* add fresh noise in each step and take the network's word for "
        "what to make of it: they wander, but they also correct earlier mistakes. All pictures here have one seed."
    ),
    equations=(r"\frac{dx}{d\sigma} = \frac{x - \hat x_0(x, \sigma)}{\sigma}",),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Choose("steps", "Steps", lambda found: [str(each) for each in steps_of(found)], lambda found: 1),),
    papers=(
        DDIM,
        DDPM,
        Paper("Lu et al. 2022, DPM-Solver++: fast solver for guided sampling", "https://arxiv.org/abs/2211.01095"),
    ),
    cost="610 steps, which are about 30 pictures",
)
