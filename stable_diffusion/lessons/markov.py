"""Step by step and in one jump: the same distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import flat
from .common import DDPM
from .drawing import histogram, lines
from .lesson import Block, Chart, Lesson, Paper, Report, Say, Side, Slider, Values

N, STARTS = 20_000, (-1.2, 0.4, 1.1)


@dataclass(frozen=True)
class Agreement:
    """Numbers x_t by single steps and by the jump, (T + 1, N) each, and some single paths (T + 1, n)."""

    stepped: np.ndarray
    jumped: np.ndarray
    paths: np.ndarray


def stepped(x_0: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Equation 2, again and again: each step sees only the one before it."""
    path = [x_0]
    for beta in flat.BETAS:
        path.append((1 - beta) ** 0.5 * path[-1] + beta**0.5 * rng.standard_normal(x_0.shape))
    return np.stack(path)


def jumped(x_0: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Equation 4: each time straight from the beginning."""
    return np.stack([x_0, *(flat.walked(x_0, rng.standard_normal(x_0.shape), t) for t in range(flat.T))])


def compute(model: object, report: Report, values: Values) -> Agreement:
    """The same numbers both ways, with noise of their own."""
    x_0 = np.random.default_rng(0).choice(STARTS, N)
    steps = stepped(x_0, np.random.default_rng(1))
    return Agreement(steps, jumped(x_0, np.random.default_rng(2)), steps[:, :6])


def show(found: Agreement, values: Values) -> Sequence[Block]:
    t = int(values["t"])
    a, b = found.stepped[t], found.jumped[t]
    bins = np.linspace(-4, 4, 81)
    paths = {f"walk {i + 1}": (np.arange(flat.T + 1), path) for i, path in enumerate(found.paths.T[:5])}
    return [
        Side(
            [
                [Chart(lines(paths, "step", "x"), "Five numbers, each on its random walk")],
                [
                    Chart(
                        histogram({f"{t} single steps": a, "one jump": b}, "x", bins),
                        f"How 20,000 numbers are distributed after {t} steps, by both ways",
                    )
                ],
            ]
        ),
        Say(
            f"After {t} steps: mean {a.mean():.3f} and {b.mean():.3f}, deviation {a.std():.3f} and {b.std():.3f}. "
            "They differ by chance only."
        ),
    ]


LESSON = Lesson(
    key="markov",
    title="One step, or one jump",
    text=(
        "Physics knows this walk: *Brownian motion*, and a *Markov chain*, since each step depends only on where one "
        "stands and not on how one came there. A step shrinks the number a little and adds a little noise, so that "
        "the variance stays near one. The sum of many small normal pushes is one large normal push. So x at any time "
        "can be drawn in a single *jump* from the start, without the steps between; that is why training is cheap: it "
        "never walks. Here three numbers, on their way to becoming one bell curve, go both ways."
    ),
    equations=(
        r"q(x_t \mid x_{t-1}) = N\left(\sqrt{1 - \beta_t}\, x_{t-1},\; \beta_t I\right) \quad\text{(2)}",
        r"q(x_t \mid x_0) = N\left(\sqrt{\bar\alpha_t}\, x_0,\; (1 - \bar\alpha_t) I\right) \quad\text{(4)}",
    ),
    compute=compute,
    show=show,
    views=(Slider("t", "Steps", 0, flat.T, 20),),
    papers=(
        DDPM,
        Paper(
            "Sohl-Dickstein et al. 2015, Deep unsupervised learning using nonequilibrium thermodynamics",
            "https://arxiv.org/abs/1503.03585",
        ),
    ),
    code=(stepped, jumped),
    needs_model=False,
)
