"""The forward process on a picture: in the latents, at several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diffusion.schedule import NoiseLevel
from ..service.preview import latents_jpeg
from .common import LDM, decoded, noise_schedule, own_or_painted, settings_of
from .lesson import Block, Lesson, Options, Report, Shown, Strip, Upload, Values

TIMES = (0, 100, 250, 500, 750, 999)  # in thousandths of the training times


@dataclass(frozen=True)
class Noised:
    """A picture at one time of the forward process, as JPEGs."""

    t: int
    alpha: float  # how much of the picture is left
    sigma: float  # how much noise there is
    latents: bytes
    picture: bytes


def compute(model: Any, report: Report, values: Values) -> tuple[Noised, ...]:
    """A picture's latents with the noise of several times, and each decoded."""
    import mlx.core as mx

    from ..diffusion.noise import unit_normal

    picture, seed = own_or_painted(model, report, values), settings_of(values).seed
    report("Encoding the picture", None)
    x_0 = model.encode(picture, seed=seed)
    noise = noise_schedule(model)
    eps = unit_normal(x_0.shape, mx.random.key(seed))
    shown = []
    for i, thousandth in enumerate(TIMES):
        report("Adding noise", i / len(TIMES))
        t = round(thousandth * (len(noise) - 1) / 999)
        level = NoiseLevel.from_alpha_bar(t, float(noise.alpha_bars[t]))
        x_t = level.noised(x_0, eps)
        shown.append(Noised(t, level.alpha, level.sigma, latents_jpeg(np.asarray(x_t)[0]), decoded(model, x_t)))
    return tuple(shown)


def show(found: tuple[Noised, ...], values: Values) -> Sequence[Block]:
    latents = values["what"] == "latents"
    return [
        Strip(
            [
                Shown(
                    each.latents if latents else each.picture,
                    f"The noised {'latents' if latents else 'picture, decoded,'} at time {each.t}",
                    f"t = {each.t}  \n{each.alpha:.2f} x₀ + {each.sigma:.2f} ε",
                )
                for each in found
            ]
        )
    ]


LESSON = Lesson(
    key="forward",
    title="Ink in water",
    text=(
        "Drop ink into water: every particle is pushed about at random, and in the end the glass is evenly grey. "
        "Nobody could say where the drop fell. Noise does the same to a picture. It is not added to the pixels here "
        "but to the *latents*, the autoencoder's much smaller picture of the picture, where four numbers stand for a "
        "patch of 8 by 8 pixels. Training goes this way, painting goes it backwards. Each time is one *jump* from the "
        "clean picture: a share of it, plus a share of noise, so that the variance stays one."
    ),
    equations=(
        r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \varepsilon \sim N(0, I)",
    ),
    compute=compute,
    show=show,
    asks=(Upload("picture"),),
    views=(Options("what", "Show", ("decoded", "latents")),),
    papers=(LDM,),
    code=(NoiseLevel,),
    cost="one picture, and six decodes",
)
