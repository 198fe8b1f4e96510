"""A world of two numbers, age and height: points, a small network in numpy that learns their score, and a GAN.

Everything the chapter "A flat world" computes. Numbers are scaled to about unit variance, as latents are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MEAN, SCALE = np.array([38.0, 150.0]), np.array([24.0, 34.0])  # of (age in years, height in cm)
BOUNDS = (-5.0, 105.0, 30.0, 230.0)
T = 100  # steps of the walk
BETAS = np.linspace(1e-3, 0.12, T)
ALPHA_BARS = np.cumprod(1 - BETAS)
WIDTH, BATCH, STEPS, RATE = 64, 256, 2000, 3e-3
FEATURES = 8  # sinusoids of the time

Report = Callable[[str, float | None], None]


def people(n: int, seed: int = 0) -> np.ndarray:
    """(n, 2): ages and heights of invented people; children grow until they are about 17."""
    rng = np.random.default_rng(seed)
    age = np.where(rng.random(n) < 0.3, rng.uniform(0, 18, n), rng.normal(46, 15, n).clip(14, 98))
    grown = np.where(rng.random(n) < 0.5, 178.0, 165.0)
    height = 52 + (grown - 52) * np.minimum(age / 17, 1) ** 0.75 + rng.normal(0, 5, n)
    return np.stack([age, height], axis=1)


def scaled(points: np.ndarray) -> np.ndarray:
    """Years and centimetres -> about unit variance."""
    return (points - MEAN) / SCALE


def unscaled(points: np.ndarray) -> np.ndarray:
    """The way back of `scaled`."""
    return points * SCALE + MEAN


def walked(x_0: np.ndarray, eps: np.ndarray, t: int) -> np.ndarray:
    """x_t after t + 1 steps of the random walk, in one jump (Ho et al. 2020, equation 4)."""
    return ALPHA_BARS[t] ** 0.5 * x_0 + (1 - ALPHA_BARS[t]) ** 0.5 * eps


class Perceptron:
    """Two hidden layers; gradients by hand, so that nothing is hidden."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        sizes = (inputs, WIDTH, WIDTH, outputs)
        self.weights = [rng.normal(0, (2 / a) ** 0.5, (a, b)) for a, b in itertools.pairwise(sizes)]
        self.biases = [np.zeros(b) for b in sizes[1:]]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.forward(x)[-1]

    def forward(self, x: np.ndarray) -> list[np.ndarray]:
        """The input and each layer's output."""
        outputs = [x]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = outputs[-1] @ w + b
            outputs.append(y if i == len(self.weights) - 1 else np.maximum(y, 0.1 * y))  # leaky ReLU
        return outputs

    def backward(self, outputs: list[np.ndarray], gradient: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Gradients of weights and biases in turn, and of the input, given that of the output (the chain rule)."""
        found: list[np.ndarray] = []
        for i in reversed(range(len(self.weights))):
            if i < len(self.weights) - 1:
                gradient = gradient * np.where(outputs[i + 1] > 0, 1.0, 0.1)
            found[:0] = [outputs[i].T @ gradient, gradient.sum(0)]
            gradient = gradient @ self.weights[i].T
        return found, gradient

    def parameters(self) -> list[np.ndarray]:
        """Weights and biases in turn, to be changed in place."""
        return [each for pair in zip(self.weights, self.biases, strict=True) for each in pair]


class Adam:
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1."""

    def __init__(self, parameters: list[np.ndarray], rate: float, beta_1: float = 0.9, beta_2: float = 0.999):
        self.parameters, self.rate, self.betas, self.step = parameters, rate, (beta_1, beta_2), 0
        self.first, self.second = ([np.zeros_like(p) for p in parameters] for _ in range(2))

    def update(self, gradients: list[np.ndarray]) -> None:
        """One step against the gradients."""
        self.step += 1
        b1, b2 = self.betas
        for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p -= self.rate * (m / (1 - b1**self.step)) / (np.sqrt(v / (1 - b2**self.step)) + 1e-8)


@dataclass(frozen=True)
class Trained:
    """The network after its training, and the loss on the way."""

    network: Perceptron
    losses: np.ndarray  # (STEPS,)

    def eps(self, x: np.ndarray, t: int | np.ndarray) -> np.ndarray:
        """The noise in x (N, 2) at times t."""
        return self.network(np.concatenate([x, clock(t, len(x))], axis=1))

    def score(self, x: np.ndarray, t: int) -> np.ndarray:
        """The gradient of log p(x_t), which points to where more people are: -eps / sqrt(1 - abar_t)."""
        return -self.eps(x, t) / (1 - ALPHA_BARS[t]) ** 0.5


def clock(t: int | np.ndarray, n: int) -> np.ndarray:
    """A time as (n, FEATURES) sinusoids."""
    share = np.broadcast_to(np.asarray(t) / T, (n,))[:, None] * np.pi * 2.0 ** np.arange(-1, FEATURES // 2 - 1)
    return np.concatenate([np.sin(share), np.cos(share)], axis=1)


def learn_score(report: Report, steps: int = STEPS) -> Trained:
    """Train the small network to tell the noise in noised people: Ho et al. 2020, algorithm 1, in two dimensions."""
    rng = np.random.default_rng(0)
    network = Perceptron(2 + FEATURES, 2, rng)
    optimiser = Adam(network.parameters(), RATE)
    data, losses = scaled(people(20_000)), np.empty(steps)
    for step in range(steps):
        if step % 100 == 0:
            report("Training a network of two layers", step / steps)
        optimiser.rate = RATE * (1 - step / steps)
        x_0, t = data[rng.integers(len(data), size=BATCH)], rng.integers(T, size=BATCH)
        eps = rng.standard_normal(x_0.shape)
        abar = ALPHA_BARS[t][:, None]
        x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * eps
        outputs = network.forward(np.concatenate([x_t, clock(t, BATCH)], axis=1))
        error = outputs[-1] - eps
        losses[step] = np.square(error).mean()
        optimiser.update(network.backward(outputs, 2 * error / error.size)[0])
    return Trained(network, losses)


def walk_back(trained: Trained, n: int, seed: int = 1) -> np.ndarray:
    """Points from noise to people: (T + 1, n, 2), the first are noise (Ho et al. 2020, algorithm 2)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    path = [x]
    for t in reversed(range(T)):
        mean = (x - BETAS[t] / (1 - ALPHA_BARS[t]) ** 0.5 * trained.eps(x, t)) / (1 - BETAS[t]) ** 0.5  # equation 11
        x = mean + (BETAS[t] ** 0.5 * rng.standard_normal(x.shape) if t else 0)
        path.append(x)
    return np.stack(path)


def climb(trained: Trained, n: int, method: str, steps: int = 200, t: int = 5, seed: int = 1) -> np.ndarray:
    """Points that only climb the score, with "Adam" or "SGD with momentum": (steps + 1, n, 2)."""
    x = np.random.default_rng(seed).standard_normal((n, 2))
    path, momentum = [x.copy()], np.zeros_like(x)
    adam = Adam([x], 0.03)
    for _ in range(steps):
        slope = trained.score(x, t)
        if method == "Adam":
            adam.update([-slope])
        else:
            momentum = 0.9 * momentum + slope
            x += 2e-3 * momentum
        path.append(x.copy())
    return np.stack(path)


def play_gan(report: Report, steps: int = 1500, n: int = 1000) -> np.ndarray:
    """A generator against a discriminator (Goodfellow et al. 2014, algorithm 1).

    Returns its points at four moments of the training, (4, n, 2).
    """
    rng = np.random.default_rng(0)
    generator, judge = Perceptron(2, 2, rng), Perceptron(2, 1, rng)
    optimisers = [Adam(each.parameters(), 1e-3, beta_1=0.5) for each in (generator, judge)]
    data, seen, moments = scaled(people(20_000)), rng.standard_normal((n, 2)), []
    for step in range(steps):
        if step % 100 == 0:
            report("Two networks play against each other", step / steps)
        real, z = data[rng.integers(len(data), size=BATCH)], rng.standard_normal((BATCH, 2))
        made = generator.forward(z)
        outputs = judge.forward(np.concatenate([real, made[-1]]))
        truth = np.repeat([1.0, 0.0], BATCH)[:, None]
        optimisers[1].update(judge.backward(outputs, (_sigmoid(outputs[-1]) - truth) / len(truth))[0])
        outputs = judge.forward(made[-1])
        _, slope = judge.backward(outputs, (_sigmoid(outputs[-1]) - 1) / BATCH)
        optimisers[0].update(generator.backward(made, slope)[0])
        if (step + 1) % (steps // 4) == 0:
            moments.append(generator(seen))
    return np.stack(moments)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-40, 40)))


def covered(points: np.ndarray, n: int = 12) -> float:
    """How many of the places where people are (cells of an n x n grid) have one of these points; scaled points."""
    edges: Any = (np.linspace(-2, 2.6, n + 1), np.linspace(-3.2, 1.8, n + 1))

    def counted(x: np.ndarray) -> np.ndarray:
        return np.histogram2d(x[:, 0], x[:, 1], bins=edges)[0]

    people_there = counted(scaled(people(20_000))) > 100
    return float(((counted(points) > 0) & people_there).sum() / people_there.sum())


def bound(trained: Trained, n: int = 2000, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """For each t: the simple loss |eps - eps_theta|^2, and the term of the bound in nats (equations 12 and 14).

    The bound's term is beta^2 / (2 sigma^2 alpha (1 - abar)) times the squared error, with sigma^2 = beta.
    """
    rng = np.random.default_rng(seed)
    x_0, eps = scaled(people(n, seed)), rng.standard_normal((n, 2))
    simple = np.array([np.square(eps - trained.eps(walked(x_0, eps, t), t)).sum(1).mean() for t in range(T)])
    return simple, BETAS / (2 * (1 - BETAS) * (1 - ALPHA_BARS)) * simple
