"""Three ways to guide, from one noise: two answers of the network, a classifier's gradient, and CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..diffusion.guiding import steered
from ..steering import CLASSIFIER, CLIP, Steering
from .common import CFG, PROMPT, decoded, painted, prompt_of, settings_of
from .common import CLIP as CLIP_PAPER
from .lesson import Block, Lesson, Options, Paper, Report, Say, Shown, Strip, Values

SCALES = (0.25, 1.0, 3.0)  # of the usual ones
STRENGTHS = ("usual", "weak", "strong")


@dataclass(frozen=True)
class Ways:
    """The picture without any guidance, and for each way one with each scale, with its name."""

    nothing: bytes
    ways: dict[str, tuple[tuple[bytes, str], ...]]


def compute(model: Any, report: Report, values: Values) -> Ways:
    """Paint one noise without a text, and steered."""
    own, text = settings_of(values), prompt_of(values)
    nothing = {"cfg_weight": 1.0, "text": ""}
    pictures: dict[str, list[tuple[bytes, str]]] = {}
    first = decoded(model, painted(model, report, values, "Without a text", **nothing))
    for by in (CLASSIFIER, CLIP):
        for share in SCALES:
            asked = Steering(by, share * Steering(by).strength, text)
            latents = painted(model, report, values, f"Steered by the {by}", **nothing, guidance=asked)
            pictures.setdefault(by, []).append((decoded(model, latents), f"s = {asked.strength:g}"))
    for share in SCALES:
        weight = share * own.cfg
        latents = painted(model, report, values, "Classifier-free", cfg_weight=weight)
        pictures.setdefault("classifier-free", []).append((decoded(model, latents), f"w = {weight:g}"))
    return Ways(first, {name: tuple(each) for name, each in pictures.items()})


def show(found: Ways, values: Values) -> Sequence[Block]:
    i = {"weak": 0, "usual": 1, "strong": 2}[values["strength"]]
    titles = {CLASSIFIER: "a classifier", CLIP: "CLIP", "classifier-free": "classifier-free"}
    return [
        Strip(
            [
                Shown(found.nothing, "The picture without a text", "no text, no guidance"),
                *(
                    Shown(found.ways[name][i][0], f"The picture guided: {title}", f"{title}, {found.ways[name][i][1]}")
                    for name, title in titles.items()
                ),
            ],
            160,
        ),
        Say("All four begin from one noise. Only the last one asks the network about the text at all."),
    ]


LESSON = Lesson(
    key="gradients",
    title="Guided by a gradient",
    text=(
        "A diffusion follows the score, the gradient of log p(x). To paint what is asked, add the gradient of "
        "log p(y | x): how the picture should change so that somebody is surer to see y. A *classifier* of noisy "
        "latents can be that somebody, or *CLIP*, which compares the picture that is being made with a text. The "
        "network itself is asked without a text here, and knows nothing of the wish. Classifier-free guidance needs no "
        "third party: by the same rule of Bayes, the difference of the network's answers with and without text is such "
        "a gradient."
    ),
    equations=(
        r"\hat\varepsilon = \varepsilon_\theta(x_t)"
        r" - s \sqrt{1 - \bar\alpha_t}\; \nabla_{x_t} \log p(y \mid x_t)",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Options("strength", "Guidance", STRENGTHS),),
    papers=(
        Paper("Dhariwal and Nichol 2021, Diffusion models beat GANs", "https://arxiv.org/abs/2105.05233"),
        CLIP_PAPER,
        CFG,
    ),
    code=(steered,),
    cost="ten pictures",
)
