"""Image to image: a picture repainted from increasing noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..service.preview import jpeg
from .common import OTHER, decoded, own_or_painted, prompt_of, run, settings_of
from .lesson import Block, Lesson, Paper, Report, Say, Shown, Slider, Strip, Upload, Values, Words

LEAST_STEPS = 10  # so that the lowest strength leaves some
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Repainted:
    """The picture (strength 0); for each strength what painting began with, x_t, and what became of it."""

    pictures: tuple[tuple[float, bytes, bytes], ...]
    steps: int


def compute(model: Any, report: Report, values: Values) -> Repainted:
    """Repaint a picture with another prompt, from increasing noise levels."""
    steps = max(settings_of(values).steps, LEAST_STEPS)
    picture = own_or_painted(model, report, {**values, "prompt": ""})
    shown = [(0.0, jpeg(picture), jpeg(picture))]
    for i, strength in enumerate(STRENGTHS):
        note = f"Strength {strength:g}, picture {i + 1} of {len(STRENGTHS)}"
        changes = {
            "num_steps": steps,
            "text": prompt_of(values, "other", OTHER), "input_image": picture, "denoising_strength": strength,
        }  # fmt: skip
        first, *_, last = run(model, report, values, note, with_start=True, **changes)
        shown.append((strength, decoded(model, first.latents), decoded(model, last.latents)))
    return Repainted(tuple(shown), steps)


def show(found: Repainted, values: Values) -> Sequence[Block]:
    strength, start, picture = min(found.pictures, key=lambda each: abs(each[0] - values["strength"]))
    return [
        Strip(
            [
                Shown(found.pictures[0][1], "The picture", "the picture"),
                Shown(start, f"The picture with the noise of strength {strength:g}", "what painting begins with, xₜ"),
                Shown(picture, f"Painted over with strength {strength:g}", f"strength {strength:g}"),
            ],
            200,
        ),
        Strip(
            [
                Shown(each, f"Painted over with strength {s:g}" if s else "The picture itself", f"{s:g}")
                for s, _, each in found.pictures
            ]
        ),
        Say(f"At strength {strength:g}, {int(found.steps * strength)} of {found.steps} steps are run."),
    ]


LESSON = Lesson(
    key="strength",
    title="Beginning with a picture",
    text=(
        "Image to image does not start from pure noise but from a picture, brought to a noise level on the way. The "
        "*strength* says how far up: a low one repaints only details, since at little noise large shapes are beyond "
        "doubt; 1 repaints nearly everything. The sampler runs only the last part of its steps. The picture that you "
        "begin with decides layout and colours, the prompt decides what the shapes become."
    ),
    equations=(
        r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad "
        r"\text{steps run} = \lfloor \text{strength} \cdot n \rfloor",
    ),
    compute=compute,
    show=show,
    asks=(Words("other", "Prompt to paint over it with", OTHER), Upload("picture")),
    views=(Slider("strength", "Strength", 0, 1, 0.6, 0.2),),
    papers=(Paper("Meng et al. 2022, SDEdit", "https://arxiv.org/abs/2108.01073"),),
    cost="four pictures",
)
