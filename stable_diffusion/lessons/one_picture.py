"""Imagic: a picture of one's own, changed by a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..service.preview import jpeg
from ..training.imagic import Settings, Tuned, tune
from .common import own_or_painted, prompt_of, settings_of
from .lesson import Block, Lesson, Paper, Report, Say, Shown, Slider, Strip, Upload, Values, Words

FROM = "a white sailboat on the sea at sunset, with the sun"
TEXT = "a purple sailboat on the sea at sunset, with the sun"
TEXT_STEPS, UNET_STEPS, PAINTING_STEPS = 30, 45, 12
AMOUNTS = (0.0, 0.5, 1.0, 1.3, 1.6)
CFG = 4.0


@dataclass(frozen=True)
class Between:
    """The picture, and for each amount what was painted between it and the text, as JPEGs."""

    picture: bytes
    amounts: tuple[tuple[float, bytes], ...]


def compute(model: Any, report: Report, values: Values) -> Between:
    """Tune the model on one picture, and paint what lies between the picture and the text."""
    picture = own_or_painted(model, report, {**values, "prompt": FROM})
    steps = Settings(text_steps=TEXT_STEPS, unet_steps=UNET_STEPS)
    tuned = tune(model, picture, prompt_of(values, "text", TEXT), steps, report)
    found = []
    for amount in AMOUNTS:
        report(f"Painting with an amount of {amount:g}", None)
        painted = tuned.paint(model, amount, PAINTING_STEPS, CFG, settings_of(values).sampler)
        found.append((amount, jpeg(painted.image)))
    return Between(jpeg(picture), tuple(found))


def show(found: Between, values: Values) -> Sequence[Block]:
    amount, picture = min(found.amounts, key=lambda each: abs(each[0] - values["amount"]))
    return [
        Strip(
            [
                Shown(found.picture, "The picture", "the picture"),
                Shown(picture, f"Painted with an amount of {amount:g}", f"amount {amount:g}"),
            ],
            260,
        ),
        Strip([Shown(each, f"Painted with an amount of {a:g}", f"{a:g}") for a, each in found.amounts]),
        Say(
            "0 is the picture, as the tuned model paints it; 1 is the text, and more insists on it. Somewhere in "
            "between the asked thing is there and the picture still the same."
        ),
    ]


LESSON = Lesson(
    key="imagic",
    title="Your own picture, changed by a text",
    text=(
        "To keep *this* boat and change its colour, the model must first know this boat. Three steps. First the text "
        "learns: the numbers that say what you ask for are moved, by gradient descent, until the model denoises the "
        "picture better with them; they become the nearest thing to a caption of it. Then the U-Net learns, with these "
        "numbers fixed, until it paints the picture. Last, paint what lies *between* the learnt numbers and those of "
        "your text: at first the picture, then more and more of the text. This trains a whole U-Net while you wait, so "
        "it takes longer than the other lessons."
    ),
    equations=(
        r"\min_e\, \mathbb E \lVert \varepsilon - \varepsilon_\theta(x_t, t, e) \rVert^2, \quad "
        r"\text{then } \min_\theta",
        r"\bar e = \eta\, e_\text{text} + (1 - \eta)\, e_\text{learnt}",
    ),
    compute=compute,
    show=show,
    asks=(Words("text", "What the picture is to show, all of it", TEXT), Upload("picture")),
    views=(Slider("amount", "Amount η", 0, 1.6, 1.0, 0.1),),
    papers=(Paper("Kawar et al. 2023, Imagic", "https://arxiv.org/abs/2210.09276"),),
    code=(Tuned.states,),
    cost="the training of a whole U-Net, with the memory that takes",
)
