"""One seed with increasing guidance, from none to too much."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diffusion.denoiser import Denoiser
from .common import CFG, PROMPT, decoded, painted, picture_of, prompt_of, settings_of
from .drawing import lines
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Shown, Slider, Strip, Values

WEIGHTS = (0.0, 1.0, 3.0, 5.0, 9.0, 15.0)
OWN = Slider("own", "A weight of your own, w", 1.0, 20.0, 7.0, 0.5)
KEPT = 200  # pictures that are remembered, so that a new weight of one's own costs two pictures and not fourteen
_remembered: weakref.WeakKeyDictionary[Any, dict[Any, tuple[bytes, float]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Guided:
    """Pictures with each weight, rising, and their contrast: the deviation of their pixels."""

    weights: tuple[float, ...]
    pictures: dict[str, tuple[bytes, ...]]
    contrast: dict[str, tuple[float, ...]]


RESCALES = {"as it is": 0.0, "rescaled by 0.7": 0.7}


def compute(model: Any, report: Report, values: Values) -> Guided:
    """Paint one noise with each weight; weight 0 asks for the prediction without the prompt."""
    weights = tuple(sorted({*WEIGHTS, float(values.get(OWN.key, OWN.value))}))
    pictures, contrast = {}, {}
    for title, rescale in RESCALES.items():
        made = []
        for i, weight in enumerate(weights):
            note = f"Guidance {weight:g} {title}, {i + 1} of {len(weights)}"
            report(note, None)
            made.append(_painted(model, report, values, note, weight, rescale))
        pictures[title], contrast[title] = (tuple(each) for each in zip(*made, strict=True))
    return Guided(weights, pictures, contrast)


def _painted(
    model: Any, report: Report, values: Values, note: str, weight: float, rescale: float
) -> tuple[bytes, float]:
    """The picture and its contrast, from memory where it has been painted before."""
    known = _remembered.setdefault(model, {})
    key = (settings_of(values), prompt_of(values), weight, rescale if weight > 1 else 0)
    if key not in known:
        changes: dict[str, Any] = {"cfg_weight": weight, "guidance_rescale": rescale}
        if weight == 0:
            changes = {"cfg_weight": 1.0, "text": ""}
        latents = painted(model, report, values, note, **changes)
        while len(known) >= KEPT:
            known.pop(next(iter(known)))
        known[key] = decoded(model, latents), float(np.std(picture_of(model, latents)))
    return known[key]


def show(found: Guided, values: Values) -> Sequence[Block]:
    title = values["rescale"]
    return [
        Strip(
            [
                Shown(picture, f"The picture with guidance {weight:g}, {title}", _name(weight))
                for weight, picture in zip(found.weights, found.pictures[title], strict=True)
            ]
        ),
        Chart(
            lines({name: (found.weights, each) for name, each in found.contrast.items()}, "w", "contrast"),
            "The pictures' contrast over the guidance weight",
        ),
        Say("w = 0 is the model without any prompt: one of all the pictures it could paint, from the same noise."),
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
    asks=(PROMPT, OWN),
    views=(Options("rescale", "Guidance", tuple(RESCALES)),),
    papers=(
        CFG,
        Paper("Dhariwal and Nichol 2021, Diffusion models beat GANs", "https://arxiv.org/abs/2105.05233"),
        Paper("Lin et al. 2023, Common diffusion noise schedules are flawed", "https://arxiv.org/abs/2305.08891"),
    ),
    code=(Denoiser.output,),
    cost="fourteen pictures",
)
