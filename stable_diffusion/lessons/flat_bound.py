"""The bound on the likelihood, and the simple loss that is trained instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import flat
from .common import DDPM
from .drawing import lines
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Side, Values


def compute(model: object, report: Report, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """The simple loss and the bound's term, for each time."""
    return flat.bound(flat.learn_score(report))


def show(found: tuple[np.ndarray, np.ndarray], values: Values) -> Sequence[Block]:
    simple, terms = found
    t = np.arange(1, len(simple) + 1)
    log = values["scale"] == "logarithmic"
    weights = terms / simple
    return [
        Side(
            [
                [Chart(lines({"squared error": (t, simple)}, "time t", "simple loss", log), "The error at each time")],
                [Chart(lines({"weight": (t, weights)}, "time t", "weight in the bound", log), "The bound's weight")],
                [Chart(lines({"term": (t, terms)}, "time t", "term of the bound, nats", log), "Weight times error")],
            ]
        ),
        Say(
            f"The bound's terms add up to **{terms.sum():.2f} nats**; the first ten times alone give "
            f"{terms[:10].sum() / terms.sum():.0%} of it. In the simple loss they have a share of "
            f"{simple[:10].sum() / simple.sum():.0%}."
        ),
    ]


LESSON = Lesson(
    key="bound",
    title="Two losses",
    text=(
        "What should be small? Ideally the surprise at real data, −log p(x). It cannot be computed, but it has an "
        "upper bound (the negative *ELBO*): one term for each step, which compares the step back that the network "
        "takes with the best one, the *posterior*. Every such term turns out to be the squared error of the predicted "
        "noise times a weight. The weight is largest at small times, where hardly any noise is left and nothing can be "
        "seen of it. Ho et al. simply left the weight out. The bound gets worse by that, the pictures better: the "
        "network spends its effort where shapes are decided."
    ),
    equations=(
        r"-\log p_\theta(x_0) \le \sum_t \underbrace{\frac{\beta_t^2}{2 \sigma_t^2 \alpha_t (1 - \bar\alpha_t)}}"
        r"_{\text{weight}} \mathbb{E}\,\lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2 + \dots",
        r"L_\text{simple} = \mathbb{E}_{t, x_0, \varepsilon} \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2",
    ),
    compute=compute,
    show=show,
    views=(Options("scale", "Scale", ("logarithmic", "linear")),),
    papers=(DDPM, Paper("Kingma et al. 2021, Variational diffusion models", "https://arxiv.org/abs/2107.00630")),
    code=(flat.bound,),
    needs_model=False,
)
