"""Inpainting with an ordinary model: what is put back at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..diffusion.start import Kept
from ..service.preview import jpeg
from .common import OTHER, decoded, own_or_painted, prompt_of, run
from .lesson import Block, Lesson, Paper, Report, Say, Shown, Slider, Strip, Upload, Values, Words

MOMENTS = 6


@dataclass(frozen=True)
class Repaired:
    """The picture, the mask, and x_t and the estimate of x_0 at some steps, as JPEGs; step 0 has no estimate."""

    picture: bytes
    mask: bytes
    moments: tuple[tuple[int, bytes, bytes | None], ...]


def compute(model: Any, report: Report, values: Values) -> Repaired:
    """Repaint an ellipse in the middle of a picture."""
    picture = own_or_painted(model, report, {**values, "prompt": ""})
    width, height = picture.size
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=255)
    changes: dict[str, Any] = {"text": prompt_of(values, "other", OTHER), "input_image": picture, "mask_image": mask}
    found = [
        (step.index, decoded(model, step.latents), None if step.begins_pass else decoded(model, step.denoised))
        for step in run(model, report, values, denoising_strength=1.0, with_start=True, **changes)
        if step.index % max(1, step.total // MOMENTS) == 0 or step.index in (1, step.total)
    ]
    return Repaired(jpeg(picture), jpeg(mask.convert("RGB")), tuple(found))


def show(found: Repaired, values: Values) -> Sequence[Block]:
    steps = np.array([index for index, _, _ in found.moments])
    i = int(np.abs(steps - values["share"] / 100 * steps[-1]).argmin())
    index, x_t, x_0 = found.moments[i]
    return [
        Strip(
            [
                Shown(found.picture, "The picture", "the picture"),
                Shown(found.mask, "The mask, white where it is repainted", "the mask"),
                Shown(x_t, f"x_t after step {index}", f"xₜ, step {index}" if index else "x_T, before the first step"),
                *([] if x_0 is None else [Shown(x_0, f"The estimate of x_0 after step {index}", "x̂₀")]),
            ],
            160,
        ),
        Say(
            "Outside the ellipse, xₜ is not what the network made: it is the picture itself, with as much noise as "
            "belongs to this step."
        ),
    ]


LESSON = Lesson(
    key="inpainting",
    title="Inpainting: what is put back",
    text=(
        "To repaint only a part, one could paint everything and paste the rest back at the end, with a seam all "
        "around. The trick is to put it back at *every* step: the kept part of the latents is replaced by the "
        "original, noised to the level of the moment. So the network always sees the true surroundings, only as "
        "blurred as its own part, and makes what is missing fit them. Special inpainting models get the mask and the "
        "masked picture as further channels, and see the surroundings sharply from the first step on."
    ),
    equations=(
        r"x_t \leftarrow m \odot x_t + (1 - m) \odot \left(\sqrt{\bar\alpha_t}\, x_0^\text{picture} + "
        r"\sqrt{1 - \bar\alpha_t}\, \varepsilon\right)",
    ),
    compute=compute,
    show=show,
    asks=(Words("other", "What to paint there", OTHER), Upload("picture")),
    views=(Slider("share", "How far, %", 0, 100, 40, 10),),
    papers=(Paper("Lugmayr et al. 2022, RePaint", "https://arxiv.org/abs/2201.09865"),),
    code=(Kept,),
    cost="two pictures and fourteen decodes",
)
