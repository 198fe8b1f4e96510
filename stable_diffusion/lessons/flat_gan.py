"""The same points learnt by a generative adversarial network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import flat
from .drawing import scatter
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Side, Values

MOMENTS = ("after a quarter", "after half", "after three quarters", "at the end")


def compute(model: object, report: Report, values: Values) -> np.ndarray:
    """The generator's points at four moments of the training, (4, n, 2), scaled."""
    return flat.play_gan(report)


def show(found: np.ndarray, values: Values) -> Sequence[Block]:
    points = found[MOMENTS.index(values["moment"])]
    real = flat.unscaled(flat.scaled(flat.people(len(points), seed=5)))
    names = ("age, years", "height, cm")
    return [
        Side(
            [
                [Chart(scatter({"people": real}, *names, flat.BOUNDS), "The data")],
                [Chart(scatter({"GAN": flat.unscaled(points)}, *names, flat.BOUNDS), "The generator's points")],
            ]
        ),
        Say(
            "Places where people are that its points reach: "
            + ", ".join(f"{moment} {flat.covered(each):.0%}" for moment, each in zip(MOMENTS, found, strict=True))
            + f"; real people: {flat.covered(flat.scaled(real)):.0%}."
        ),
    ]


LESSON = Lesson(
    key="gan",
    title="The other way: two players",
    text=(
        "Before diffusion, the best pictures came from *generative adversarial networks*. One network turns noise "
        "straight into points, the other judges whether a point is real, and each learns from the other's mistakes. "
        "There is no bound and no target that stands still, so the two chase each other: the generator may crowd where "
        "the judge is easily fooled and leave whole groups out, which is called *mode collapse*. Compare the moments "
        "of this training: places are found and lost again. A GAN paints in one call, though, and its judge knows "
        "sharp from soft; the decoder of Stable Diffusion's autoencoder was trained with one."
    ),
    equations=(r"\min_G \max_D \; \mathbb{E} \log D(x) + \mathbb{E} \log\left(1 - D(G(z))\right)",),
    compute=compute,
    show=show,
    views=(Options("moment", "Moment of the training", MOMENTS, MOMENTS[-1]),),
    papers=(Paper("Goodfellow et al. 2014, Generative adversarial nets", "https://arxiv.org/abs/1406.2661"),),
    code=(flat.play_gan,),
    needs_model=False,
)
