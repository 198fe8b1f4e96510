"""Prompt-to-prompt: another text for the same picture, whose attention is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..prompt_edit import PromptEdit, aligned
from .common import decoded, prompt_of, settings_of
from .lesson import Block, Lesson, Paper, Report, Say, Shown, Slider, Strip, Values, Words

BEFORE = "a red house on green hills by day, a clear sky"
AFTER = "a red house on green hills by day, with a rainbow"
MOST_STEPS = 12
SHARES = (0.0, 0.4, 0.8)  # of the steps in which words act where they did
LAYOUT = 0.5  # of that share, in which places belong together as they did


@dataclass(frozen=True)
class Edited:
    """The first picture, and for each share of kept attention the picture of the other text, as JPEGs."""

    before: bytes
    after: tuple[tuple[float, bytes], ...]
    steps: int


def compute(model: Any, report: Report, values: Values) -> Edited:
    """Paint a picture, and the same picture by another text with more and more of its attention kept."""
    own, texts = settings_of(values), (prompt_of(values, "before", BEFORE), prompt_of(values, "after", AFTER))
    steps, before, after = min(own.steps, MOST_STEPS), b"", []
    for i, share in enumerate(SHARES):
        pairs = model.edit(
            *texts, PromptEdit(share, LAYOUT * share), own.seed, negative_text=own.negative or None, num_steps=steps,
            cfg_weight=own.cfg, sampler=own.sampler,
        )  # fmt: skip
        for pair in pairs:
            report(f"Picture {i + 1} of {len(SHARES)}", (i + pair[0].index / steps) / len(SHARES))
        old, new = (step.latents for step in pair)
        before = before or decoded(model, old)
        after.append((share, decoded(model, new)))
    return Edited(before, tuple(after), steps)


def show(found: Edited, values: Values) -> Sequence[Block]:
    share, picture = min(found.after, key=lambda each: abs(each[0] - values["share"] / 100))
    kept = int(np.ceil(share * found.steps))
    return [
        Strip(
            [
                Shown(found.before, "The picture of the first text", "the first text"),
                Shown(
                    picture,
                    f"The other text, attention kept in {kept} steps",
                    f"the other text, {kept} of {found.steps} steps kept",
                ),
            ],
            260,
        ),
        Strip([Shown(each, f"The other text, share {s:g}", f"{s:.0%}") for s, each in found.after]),
        Say(
            f"In the first {kept} of {found.steps} steps the words that both texts share act where they acted in the "
            "first picture."
            if kept
            else "Nothing is kept but the noise: the same seed, another text."
        ),
    ]


LESSON = Lesson(
    key="other-words",
    title="The same picture by other words",
    text=(
        "Change one word of a prompt and keep the seed, and the whole picture moves: from the first step on the "
        "network sees another text. But it is attention that says which place listens to which word. So paint both "
        "pictures side by side, and give the new one the *old one's* attention: in the first steps, which decide the "
        "layout, each place asks the words that it asked before. A word that replaces another takes its attention "
        "over; one that is new has its own. Self-attention, which decides which places belong together, is kept for "
        "half as long here. In the last steps the new text is on its own."
    ),
    equations=(
        r"A = \operatorname{softmax}\left(\frac{Q K^\top}{\sqrt d}\right)",
        r"A^\text{new}_{ij} \leftarrow A^\text{old}_{i,a(j)} \text{ if } a(j) \text{ exists}",
    ),
    compute=compute,
    show=show,
    asks=(Words("before", "First text", BEFORE), Words("after", "The other text", AFTER)),
    views=(Slider("share", "Steps in which attention is kept, %", 0, 80, 80, 40),),
    papers=(Paper("Hertz et al. 2022, Prompt-to-prompt image editing", "https://arxiv.org/abs/2208.01626"),),
    code=(aligned,),
    cost="six pictures",
)
