"""The same first noise with other noise on the way: who draws, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sampler import sampler_by_name
from .common import PROMPT, decoded, painted, settings_of
from .lesson import Block, Lesson, Options, Report, Say, Shown, Strip, Values

SAMPLERS = {"Euler": "euler", "Euler a": "euler_ancestral", "DPM++ SDE": "dpmpp_sde"}
N = 4


def compute(model: Any, report: Report, values: Values) -> dict[str, tuple[bytes, ...]]:
    """For each sampler, pictures from one first noise; the seed of the noise on the way differs."""
    import mlx.core as mx

    from ..diffusion.noise import unit_normal

    height, width = (side // model.downscale for side in reversed(model.default_size))
    first = unit_normal((1, height, width, model.latent_channels), mx.random.key(settings_of(values).seed))
    return {
        title: tuple(
            decoded(
                model,
                painted(model, report, values, f"{title}, picture {i + 1}", sampler=name, seed=100 + i, latents=first),
            )
            for i in range(N)
        )
        for title, name in SAMPLERS.items()
    }


def show(found: dict[str, tuple[bytes, ...]], values: Values) -> Sequence[Block]:
    title = values["sampler"]
    pictures = found[title]
    same = len(set(pictures)) == 1
    drawing = "no noise on the way: all four are the same" if same else "noise in every step: the four differ"
    return [
        Strip([Shown(each, f"{title}, noise {i + 1} on the way", f"Noise {i + 1}") for i, each in enumerate(pictures)]),
        Say(f"{title} draws {drawing}. All begin from the very same xₜ."),
    ]


LESSON = Lesson(
    key="fresh-noise",
    title="Who draws noise on the way",
    text=(
        "A seed is not the picture: it is only the first noise. Some samplers draw more. Here four pictures begin from "
        "exactly the same noise, and only what is drawn *on the way* differs. For a sampler that follows the "
        "differential equation nothing is drawn, and the four are one. An *ancestral* sampler removes more noise than "
        "it should in each step and puts fresh noise back, so that details, and sometimes whole things, come out "
        'differently. That is why a recipe with an "a" or "SDE" in it changes with the number of steps.'
    ),
    equations=(
        r"\sigma_\text{up}^2 = \frac{\sigma_{i+1}^2\,(\sigma_i^2 - \sigma_{i+1}^2)}{\sigma_i^2}, \qquad "
        r"\sigma_\text{down}^2 = \sigma_{i+1}^2 - \sigma_\text{up}^2",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Options("sampler", "Sampler", tuple(SAMPLERS), "Euler a"),),
    code=(type(sampler_by_name("euler_ancestral")),),
    cost="twelve pictures",
)
