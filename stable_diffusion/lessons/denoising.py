"""One picture in the making: x_t and the estimate of x_0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .common import DDIM, LDM, PROMPT, decoded, run, settings_of
from .lesson import Block, Lesson, Options, Report, Say, Shown, Strip, Values

N_COLUMNS = 6


@dataclass(frozen=True)
class Moment:
    """One step of a denoising: x_t and the estimate of x_0, decoded, as JPEGs; step 0 has no estimate."""

    index: int
    total: int
    sigma: float
    x_t: bytes
    x_0: bytes | None


def compute(model: Any, report: Report, values: Values) -> tuple[Moment, ...]:
    """x_t and the estimate of x_0 at some of a picture's steps."""
    total = settings_of(values).steps
    wanted = {0, *np.linspace(1, total, min(N_COLUMNS, total)).round().astype(int).tolist()}
    return tuple(
        Moment(
            step.index,
            step.total,
            float(step.sigma),
            decoded(model, step.latents),
            None if step.begins_pass else decoded(model, step.denoised),
        )
        for step in run(model, report, values, with_start=True)
        if step.index in wanted
    )


def show(found: tuple[Moment, ...], values: Values) -> Sequence[Block]:
    rows = [
        Strip(
            [Shown(each.x_t, f"The noisy picture, step {each.index} of {each.total}", _caption(each)) for each in found]
        ),
        Strip(
            [
                Shown(
                    each.x_0,
                    f"The estimate of the finished picture, step {each.index} of {each.total}",
                    f"Step {each.index}, x̂₀",
                )
                for each in found
                if each.x_0 is not None
            ]
        ),
    ]
    if values["what"] == "both":
        return [*rows, Say("Above: xₜ, decoded, from the noise of step 0. Below: the estimate of x₀ at each step.")]
    return [rows[values["what"] != "xₜ alone"]]


def _caption(moment: Moment) -> str:
    name = "xₜ" if moment.index else "x_T, the noise"
    return f"Step {moment.index}, {name}, σ = {moment.sigma:.3g}"


LESSON = Lesson(
    key="denoising",
    title="A picture in the making",
    text=(
        "Painting starts from pure noise. At each step the U-Net looks at xₜ and says which part of it is noise; "
        "taking all of that away at once gives its estimate of the picture, x₀. It is blurred at first, because many "
        "pictures would fit. So the sampler moves only a little in its direction, and asks again. Large shapes are "
        "decided in the first steps, colours soon after, and the last steps only sharpen. The page's live picture "
        "shows exactly this estimate while you wait."
    ),
    equations=(r"\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\varepsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}",),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Options("what", "Show", ("both", "xₜ alone", "the estimate alone")),),
    papers=(DDIM, LDM),
    cost="one picture, and twelve decodes",
)
