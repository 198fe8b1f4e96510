"""An optimiser in place of a sampler: all points end on the ridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import flat
from .common import SCORE
from .drawing import scatter
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Side, Slider, Values

METHODS = ("Adam", "SGD with momentum")
STEPS, N = 200, 1000


def compute(model: object, report: Report, values: Values) -> dict[str, Any]:
    """The paths of each method, and of the sampler, (steps + 1, n, 2) each."""
    trained = flat.learn_score(report)
    return {method: flat.climb(trained, N, method, STEPS) for method in METHODS} | {
        "sampler": flat.walk_back(trained, N)
    }


def show(found: dict[str, Any], values: Values) -> Sequence[Block]:
    share = values["share"] / 100
    names, bounds = ("age, scaled", "height, scaled"), (-3.5, 3.5, -3.5, 3.5)
    paths = {values["method"]: found[values["method"]], "sampler": found["sampler"]}
    now = {name: path[round(share * (len(path) - 1))] for name, path in paths.items()}
    return [
        Side(
            [
                [Chart(scatter({name: points}, *names, bounds), f"Points moved by: {name}")]
                for name, points in now.items()
            ]
        ),
        Say(
            "Places where people are that are reached at the end: "
            + ", ".join(f"{name} **{flat.covered(path[-1]):.0%}**" for name, path in paths.items())
            + "."
        ),
    ]


LESSON = Lesson(
    key="optimiser",
    title="Why not just climb?",
    text=(
        "The arrows point uphill, to where data is denser. So why not let an *optimiser* climb, as in training? Here "
        "the same arrows, taken at one low noise level, move the same starting points: on the left by an optimiser, "
        "on the right by the sampler. The optimiser gathers all points on the ridge, the most likely people, and most "
        "of the cloud stays empty; far from the data its arrows are guesses. The sampler begins with arrows of high "
        "noise, which are right far away, lowers the noise step by step, and shakes the points on the way: it draws "
        "from the distribution instead of looking for its top."
    ),
    equations=(
        r"\text{climbing: } x \leftarrow x + \eta\, \nabla \log p(x), \qquad "
        r"\text{sampling: } x \leftarrow x + \eta\, \nabla \log p_t(x) + \sqrt{2 \eta}\, z, \quad t \to 0",
    ),
    compute=compute,
    show=show,
    views=(
        Slider("share", "How far, %", 0, 100, 100),
        Options("method", "Optimiser", METHODS),
    ),
    papers=(SCORE, Paper("Kingma and Ba 2015, Adam", "https://arxiv.org/abs/1412.6980")),
    code=(flat.climb, flat.Adam),
    needs_model=False,
)
