"""An autoencoder and a variational one: two numbers through a bottleneck of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import flat
from .drawing import histogram, scatter
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Side, Values

WEIGHTS = {"0: an autoencoder": 0.0, "0.02": 0.02, "0.2": 0.2, "3": 3.0}
STEPS, RATE = 1000, 3e-3


@dataclass(frozen=True)
class Coded:
    """After training: the latents of people (N,), the people decoded again, and what random latents decode to."""

    latents: np.ndarray
    back: np.ndarray
    drawn: np.ndarray
    error: float


def train(kl_weight: float, report: Report, name: str, steps: int = STEPS) -> Coded:
    """Kingma and Welling 2014, algorithm 1, with gradients by hand: z = mu + sigma eps, loss = error + weight KL."""
    rng = np.random.default_rng(0)
    encoder, decoder = flat.Perceptron(2, 2, rng), flat.Perceptron(1, 2, rng)
    optimiser = flat.Adam(encoder.parameters() + decoder.parameters(), RATE)
    data = flat.scaled(flat.people(20_000))
    for step in range(steps):
        if step % 100 == 0:
            report(f"KL weight {name}", step / steps)
        x = data[rng.integers(len(data), size=flat.BATCH)]
        hidden = encoder.forward(x)
        mu, log_variance = hidden[-1][:, :1], hidden[-1][:, 1:].clip(-8, 4)
        eps = rng.standard_normal(mu.shape) * (kl_weight > 0)
        sigma = np.exp(log_variance / 2)
        outputs = decoder.forward(mu + sigma * eps)
        found, slope = decoder.backward(outputs, 2 * (outputs[-1] - x) / len(x))
        # d KL / d mu = mu, d KL / d log variance = (variance - 1) / 2
        pull = kl_weight * np.concatenate([mu, (sigma**2 - 1) / 2], axis=1) / len(x)
        noise = slope * sigma * eps / 2
        optimiser.update(encoder.backward(hidden, np.concatenate([slope, noise], axis=1) + pull)[0] + found)
    x = flat.scaled(flat.people(1500, seed=4))
    z = encoder(x)[:, :1]
    back = decoder(z)
    drawn = decoder(rng.standard_normal((1500, 1)))
    return Coded(z[:, 0], back, drawn, float(np.square(back - x).sum(1).mean()))


def compute(model: object, report: Report, values: Values) -> dict[str, Coded]:
    """One autoencoder for each weight."""
    return {name: train(weight, report, name) for name, weight in WEIGHTS.items()}


def show(found: dict[str, Coded], values: Values) -> Sequence[Block]:
    coded = found[values["weight"]]
    names = ("age, years", "height, cm")
    normal = np.random.default_rng(1).standard_normal(20_000)
    latents = histogram({"latents of people": coded.latents, "N(0, 1)": normal}, "z", np.linspace(-5, 5, 51))
    pictures = {
        "decoded from people's latents": scatter({"decoded": flat.unscaled(coded.back)}, *names, flat.BOUNDS),
        "decoded from z ~ N(0, 1)": scatter({"drawn": flat.unscaled(coded.drawn)}, *names, flat.BOUNDS),
    }
    columns: list[Sequence[Block]] = [[Chart(latents, "How the latents are distributed, beside N(0, 1)")]]
    columns += [[Chart(chart, f"Points {name}"), Say(name)] for name, chart in pictures.items()]
    return [
        Side(columns),
        Say(
            f"Mean squared error of the way back: **{coded.error:.3f}**. Mean and deviation of the latents: "
            f"{coded.latents.mean():.2f} and {coded.latents.std():.2f}."
        ),
    ]


LESSON = Lesson(
    key="vae",
    title="A bottleneck, and a VAE",
    text=(
        "Back in the flat world: two numbers have to pass through one and come back as two. An *autoencoder* finds a "
        "curve through the cloud and remembers the place on it; age or height alone would do worse. But where on its "
        "axis it puts people is its own affair: draw a place at random and you may hit nobody. A *variational* one "
        "adds noise to the place and pays a price, the *KL divergence*, for straying from N(0, 1). With little weight "
        "the way back stays good and random draws land on the curve; with too much, everything is forgotten. Stable "
        "Diffusion's weight is tiny: diffusion does the drawing."
    ),
    equations=(
        r"L = \lVert x - D(z) \rVert^2 + \lambda\, D_{KL}, \qquad z = \mu + \sigma \varepsilon, \qquad "
        r"D_{KL} = \tfrac12 \left(\mu^2 + \sigma^2 - 1 - \log \sigma^2\right)",
    ),
    compute=compute,
    show=show,
    views=(Options("weight", "KL weight λ", tuple(WEIGHTS), "0.02"),),
    papers=(Paper("Kingma and Welling 2014, Auto-encoding variational Bayes", "https://arxiv.org/abs/1312.6114"),),
    code=(train,),
    needs_model=False,
)
