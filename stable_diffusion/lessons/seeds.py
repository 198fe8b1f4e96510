"""Seeds, batches and variations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diffusion.noise import NoiseStream, slerp
from .common import PROMPT, decoded, painted, picture_of, settings_of
from .lesson import Block, Lesson, Options, Report, Say, Shown, Strip, Values

STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)


@dataclass(frozen=True)
class Drawn:
    """Pictures by what is changed, and how far two paintings of the same seed differ, in levels of 255."""

    pictures: dict[str, tuple[tuple[str, bytes], ...]]
    apart: float


def compute(model: Any, report: Report, values: Values) -> Drawn:
    """Neighbouring seeds, the same seed alone and in a batch, and variations of one seed."""
    seed = settings_of(values).seed
    batch = painted(model, report, values, "Four pictures in one batch", n_images=4)
    alone = painted(model, report, values, "The second one alone", seed=seed + 1)
    apart = float(np.abs(picture_of(model, batch[1:2]) - picture_of(model, alone)).max() * 255)
    variations = []
    for share in STRENGTHS:
        latents = painted(model, report, values, f"Variation {share:g}", variation_seed=99, variation_strength=share)
        variations.append((f"variation {share:g}", decoded(model, latents)))
    together = tuple((f"seed {seed + i}", decoded(model, batch[i : i + 1])) for i in range(4))
    both = (("in the batch", together[1][1]), ("alone", decoded(model, alone)))
    return Drawn({"seeds": together, "batch or alone": both, "variations": tuple(variations)}, apart)


def show(found: Drawn, values: Values) -> Sequence[Block]:
    what = values["what"]
    words = {
        "seeds": "Picture i of a batch has seed + i. Neighbouring seeds have nothing in common.",
        "batch or alone": f"The same seed in a batch and alone: they differ by {found.apart:.2f} of 255 levels.",
        "variations": "The noise is turned from one seed's towards another's, along an arc, so that it stays noise.",
    }
    return [Strip([Shown(each, f"The picture: {name}", name) for name, each in found.pictures[what]]), Say(words[what])]


LESSON = Lesson(
    key="seeds",
    title="Seeds, batches, variations",
    text=(
        "A *seed* starts a stream of random numbers that only look random. The same seed, prompt and settings give the "
        "same picture, today and on another machine, which is why programs write the seed into the file. Several "
        "pictures can be painted in one call of the network, a *batch*: faster on a GPU, and each row is as if it were "
        "alone, up to rounding. Seed 2 is not close to seed 1. To get something close, turn the noise itself a little: "
        "a *variation*. A straight line between two noises would be too weak in the middle, so it goes along an arc."
    ),
    equations=(
        r"\text{slerp}(a, b; s) = \frac{\sin((1 - s)\,\omega)}{\sin \omega}\, a"
        r" + \frac{\sin(s\,\omega)}{\sin \omega}\, b,"
        r"\qquad \cos \omega = \frac{a \cdot b}{\lVert a \rVert \lVert b \rVert}",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Options("what", "Show", ("seeds", "batch or alone", "variations")),),
    code=(NoiseStream.__call__, slerp),
    cost="eleven pictures",
)
