"""Half way between two pictures: in pixels, and in latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diffusion.noise import unit_normal
from ..pictures import arrays
from ..service.preview import jpeg
from .common import LDM, OTHER, PROMPT, decoded, painted, picture_of, prompt_of, settings_of
from .lesson import Block, Lesson, Report, Say, Shown, Slider, Strip, Values, Words

SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Walk:
    """The way between two pictures, in pixels and in latents, and pictures of latents drawn at random."""

    pixels: tuple[bytes, ...]
    latents: tuple[bytes, ...]
    random: tuple[bytes, ...]


def compute(model: Any, report: Report, values: Values) -> Walk:
    """Two painted pictures, and the straight line between them in both spaces."""
    import mlx.core as mx

    first = painted(model, report, values, "The first picture")
    second = painted(model, report, values, "The second picture", text=prompt_of(values, "other", OTHER))
    a, b = picture_of(model, first), picture_of(model, second)
    pixels = tuple(jpeg(arrays.to_picture((1 - s) * a + s * b)) for s in SHARES)
    latents = tuple(decoded(model, (1 - s) * first + s * second) for s in SHARES)
    seed = settings_of(values).seed
    noise = tuple(decoded(model, unit_normal(first.shape, mx.random.key(seed + i))) for i in range(3))
    return Walk(pixels, latents, noise)


def show(found: Walk, values: Values) -> Sequence[Block]:
    i = int(np.abs(np.array(SHARES) - values["share"]).argmin())
    return [
        Strip(
            [
                Shown(found.pixels[i], f"{SHARES[i]:.0%} of the way in pixels", "in pixels"),
                Shown(found.latents[i], f"{SHARES[i]:.0%} of the way in latents", "in latents"),
            ],
            200,
        ),
        Strip([Shown(each, "Latents drawn at random, decoded", "z ~ N(0, 1)") for each in found.random]),
        Say("Below: latents drawn from N(0, 1), without any diffusion. They decode to texture, not to pictures."),
    ]


LESSON = Lesson(
    key="latent-walk",
    title="Why latents alone do not paint",
    text=(
        "A mean of two photographs is a double exposure. The mean of their latents is nearly that as well: each "
        "place of the latents only knows its own patch, and the *space* is smooth but not a space of scenes. And "
        "although every single number looks as if drawn from N(0, 1), drawing all of them independently gives texture "
        "without a picture: the numbers of a real picture depend on each other, from sky to ground and from corner to "
        "corner. Learning that joint distribution is exactly what is left for diffusion. (Compare the first lesson: "
        "right margins do not make a right joint.)"
    ),
    equations=(r"p(z) \ne \prod_i p(z_i)",),
    compute=compute,
    show=show,
    asks=(PROMPT, Words("other", "The other picture", OTHER)),
    views=(Slider("share", "How far", 0, 1, 0.5, 0.1),),
    papers=(LDM,),
    cost="two pictures and fourteen decodes",
)
