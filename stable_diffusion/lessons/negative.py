"""What a negative prompt does: it takes the place of "no prompt"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .common import CFG, PROMPT, decoded, painted
from .lesson import Block, Lesson, Options, Report, Say, Shown, Strip, Values, Words

SEEDS = (1, 2, 3, 4)


def compute(model: Any, report: Report, values: Values) -> dict[str, tuple[bytes, ...]]:
    """Four seeds without and with the negative prompt."""
    found = {}
    for title, negative in (("without", None), ("with", values["negative"].strip() or None)):
        made = []
        for seed in SEEDS:
            latents = painted(model, report, values, f"Seed {seed}, {title} it", negative_text=negative, seed=seed)
            made.append(decoded(model, latents))
        found[title] = tuple(made)
    return found


def show(found: dict[str, tuple[bytes, ...]], values: Values) -> Sequence[Block]:
    which = ("without", "with") if values["which"] == "both" else (values["which"].split()[0],)
    return [
        block
        for each in which
        for block in (
            Strip(
                [
                    Shown(picture, f"Seed {seed}, {each} the negative prompt", f"seed {seed}, {each}")
                    for seed, picture in zip(SEEDS, found[each], strict=True)
                ]
            ),
        )
    ] + [Say("Column by column the first noise is the same.")]


LESSON = Lesson(
    key="negative",
    title="What a negative prompt is",
    text=(
        'Nothing in a network understands "no": a prompt "without clouds" contains clouds. A *negative prompt* works '
        "elsewhere. Guidance compares two answers, and moves away from the second one. Usually that is the answer to "
        "an empty prompt; write something there, and every step moves away from it instead. So it acts only as far as "
        'guidance does: at w = 1 it is not even computed. It also moves everything else a little, since "away from" '
        "is a direction and not a filter."
    ),
    equations=(
        r"\tilde\varepsilon = \varepsilon_\theta(x_t, \text{negative})"
        r" + w \left(\varepsilon_\theta(x_t, \text{prompt}) - \varepsilon_\theta(x_t, \text{negative})\right)",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT, Words("negative", "Negative prompt", "clouds, birds")),
    views=(Options("which", "Show", ("both", "without it", "with it")),),
    papers=(CFG,),
    cost="eight pictures",
)
