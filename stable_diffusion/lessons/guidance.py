"""One seed with increasing guidance, from none to too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diffusion.denoiser import Denoiser
from .common import CFG, PROMPT, decoded, painted, picture_of
from .drawing import lines
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Shown, Strip, Values

WEIGHTS = (0.0, 1.0, 3.0, 5.0, 9.0, 15.0)


@dataclass(frozen=True)
class Guided:
    """Pictures with each weight, and their contrast: the deviation of their pixels."""

    pictures: dict[str, tuple[bytes, ...]]
    contrast: dict[str, tuple[float, ...]]


RESCALES = {"as it is": 0.0, "rescaled by 0.7": 0.7}


def compute(model: Any, report: Report, values: Values) -> Guided:
    """Paint one noise with each weight; weight 0 asks for the prediction without the prompt."""
    pictures, contrast = {}, {}
    for title, rescale in RESCALES.items():
        made, deviations = [], []
        for i, weight in enumerate(WEIGHTS):
            changes: dict[str, Any] = {"cfg_weight": weight, "guidance_rescale": rescale}
            if weight == 0:
                changes = {"cfg_weight": 1.0, "text": ""}
            note = f"Guidance {weight:g} {title}, {i + 1} of {len(WEIGHTS)}"
            latents = painted(model, report, values, note, **changes)
            made.append(decoded(model, latents))
            deviations.append(float(np.std(picture_of(model, latents))))
        pictures[title], contrast[title] = tuple(made), tuple(deviations)
    return Guided(pictures, contrast)


def show(found: Guided, values: Values) -> Sequence[Block]:
    title = values["rescale"]
    return [
        Strip(
            [
                Shown(picture, f"The picture with guidance {weight:g}, {title}", _name(weight))
                for weight, picture in zip(WEIGHTS, found.pictures[title], strict=True)
            ]
        ),
        Chart(
            lines({name: (WEIGHTS, each) for name, each in found.contrast.items()}, "w", "contrast"),
            "The pictures' contrast over the guidance weight",
        ),
        Say("w = 0 is the model without any prompt: one of all the pictures that it knows, from the same noise."),
    ]


def _name(weight: float) -> str:
    return {0.0: "w = 0, no prompt", 1.0: "w = 1, the prompt alone"}.get(weight, f"w = {weight:g}")


LESSON = Lesson(
    key="guidance",
    title="Guidance",
    text=(
        "The model is asked twice at each step, once with the prompt and once without it (or with the negative "
        "prompt). The difference of the two answers points to where the prompt matters, and is exaggerated by the CFG "
        "weight w. At w = 0 the prompt is ignored, at 1 it is followed as loosely as in the training data; a high "
        "weight follows it closely, with less variety, and in the end with harsh colours, because the prediction "
        "becomes larger than any the model was trained with. *Rescaling* brings its size back. A *classifier*'s "
        "gradient can take the difference's place; this way needs none, hence the name."
    ),
    equations=(
        r"\tilde\varepsilon = \varepsilon_\theta(x_t, \varnothing)"
        r" + w \left(\varepsilon_\theta(x_t, \text{prompt}) - \varepsilon_\theta(x_t, \varnothing)\right)",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Options("rescale", "Guidance", tuple(RESCALES)),),
    papers=(
        CFG,
        Paper("Dhariwal and Nichol 2021, Diffusion models beat GANs", "https://arxiv.org/abs/2105.05233"),
        Paper("Lin et al. 2023, Common diffusion noise schedules are flawed", "https://arxiv.org/abs/2305.08891"),
    ),
    code=(Denoiser.output,),
    cost="twelve pictures",
)
