"""Noise walks the points away, a small network learns the way back, and points follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import flat
from .common import DDPM, SCORE
from .drawing import arrows, lines, scatter
from .lesson import Block, Chart, Lesson, Report, Say, Side, Slider, Values

SHOWN = 1500


@dataclass(frozen=True)
class Walks:
    """Points on their way to noise and back, (T + 1, n, 2) each, and the network that learnt it."""

    there: np.ndarray
    back: np.ndarray
    trained: flat.Trained


def compute(model: object, report: Report, values: Values) -> Walks:
    """Train the network, and walk there and back."""
    trained = flat.learn_score(report)
    x_0 = flat.scaled(flat.people(SHOWN, seed=7))
    eps = np.random.default_rng(3).standard_normal(x_0.shape)
    there = np.stack([x_0, *(flat.walked(x_0, eps, t) for t in range(flat.T))])
    return Walks(there, flat.walk_back(trained, SHOWN), trained)


def show(found: Walks, values: Values) -> Sequence[Block]:
    t = int(values["t"])
    here = {"there: noise is added": found.there[t]}
    back = {"back: the network's walk": found.back[flat.T - t]}
    bounds = (-3.5, 3.5, -3.5, 3.5)
    grid = np.stack(np.meshgrid(np.linspace(-3, 3, 17), np.linspace(-3, 3, 17)), axis=-1).reshape(-1, 2)
    step = found.trained.score(grid, max(t - 1, 0))
    step *= 0.32 / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1.5)
    names = ("age, scaled", "height, scaled")
    n = len(found.trained.losses)
    loss = found.trained.losses[: n // 50 * 50].reshape(-1, 50).mean(1)
    return [
        Side(
            [
                [Chart(scatter(here, *names, bounds), f"People after {t} steps of noise")],
                [Chart(arrows(grid, grid + step, *names, bounds), f"The score after {t} steps, as arrows")],
                [Chart(scatter(back, *names, bounds), f"Noise on its way back, {t} steps before its end")],
            ]
        ),
        Say(
            f"After {t} of {flat.T} steps, {flat.ALPHA_BARS[max(t - 1, 0)] if t else 1:.0%} of the variance is still "
            f"people. At the end of the way back, **{flat.covered(found.back[-1]):.0%}** of the places where people "
            "are have been reached."
        ),
        Chart(lines({"loss": (np.arange(len(loss)) * 50, loss)}, "training step", "loss"), "The loss during training"),
    ]


LESSON = Lesson(
    key="score",
    title="Noise, and the way back",
    text=(
        "Push every point a little at random, again and again, and the cloud becomes a round blot of ink that has "
        "forgotten everything. A network of two layers, trained just now in two seconds, was shown noisy points and "
        "asked which part is noise. Turned around, its answer is an arrow at every place: the *score*, which points to "
        "where more people would be. So new points can begin as ink and follow the arrows, with a little noise in each "
        "step so that they do not all end in the thickest crowd. That is all of diffusion; pictures only have more "
        "numbers. Move the time and compare left and right."
    ),
    equations=(
        r"\nabla_x \log p(x_t) \approx -\frac{\varepsilon_\theta(x_t, t)}{\sqrt{1 - \bar\alpha_t}}, \qquad "
        r"x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\,"
        r"\varepsilon_\theta(x_t, t)\right) + \sqrt{\beta_t}\, z",
    ),
    compute=compute,
    show=show,
    views=(Slider("t", "Steps of noise", 0, flat.T, 25),),
    papers=(DDPM, SCORE),
    code=(flat.learn_score, flat.walk_back),
    needs_model=False,
)
