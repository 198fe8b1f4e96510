"""Postcards as points in latent space, and what lies together there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..training.postcards.painter import Postcard, paint, random_postcard
from .common import LDM
from .drawing import scatter
from .lesson import Block, Chart, Lesson, Options, Paper, Report, Say, Values

N = 90
NEIGHBOURS = 5
ATTRIBUTES = {"the time of day": "time", "the place": "place", "the thing": "thing"}


@dataclass(frozen=True)
class Points:
    """Postcards, and each as a point of a plane (N, 2) and by its nearest others (N, NEIGHBOURS), by space."""

    cards: tuple[Postcard, ...]
    planes: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray]


def compute(model: Any, report: Report, values: Values) -> Points:
    """Paint postcards by program, encode them, and look at who is near to whom."""
    rng = np.random.default_rng(0)
    cards = tuple(random_postcard(rng) for _ in range(N))
    pixels, latents = [], []
    for i, card in enumerate(cards):
        report("Encoding postcards", i / N)
        picture = paint(card, min(128, *model.default_size))
        pixels.append(np.asarray(picture, dtype=np.float64).ravel() / 255)
        latents.append(np.asarray(model.encode(picture, *picture.size), dtype=np.float64).ravel())
    spaces = {"latents": np.stack(latents), "pixels": np.stack(pixels)}
    return Points(cards, {k: plane(v) for k, v in spaces.items()}, {k: nearest(v) for k, v in spaces.items()})


def plane(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) on their first two principal components, (N, 2), each of variance one."""
    u, _, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    return u[:, :2] * len(vectors) ** 0.5


def nearest(vectors: np.ndarray) -> np.ndarray:
    """The numbers of the nearest others of each vector, (N, NEIGHBOURS)."""
    squares = np.square(vectors).sum(1)
    distance = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :NEIGHBOURS]


def agreement(labels: Sequence[str], neighbours: np.ndarray) -> tuple[float, float]:
    """The share of neighbours with the same label, and what chance would give."""
    names = np.array(labels)
    same = (names[neighbours] == names[:, None]).mean()
    chance = np.mean([(names == name).sum() - 1 for name in names]) / (len(names) - 1)
    return float(same), float(chance)


def show(found: Points, values: Values) -> Sequence[Block]:
    attribute, space = ATTRIBUTES[values["colour"]], values["space"]
    labels = [getattr(card, attribute) for card in found.cards]
    points = found.planes[space]
    groups = {name: points[np.array(labels) == name] for name in dict.fromkeys(labels)}
    shares = {name: agreement(labels, each) for name, each in found.nearest.items()}
    chance = shares[space][1]
    return [
        Chart(
            scatter(groups, "first principal component", "second principal component", (-3, 3, -3, 3), 60),
            f"Postcards as points, coloured by {values['colour']}",
        ),
        Say(
            f"Of a postcard's {NEIGHBOURS} nearest neighbours, "
            + ", ".join(f"**{same:.0%}** in {name}" for name, (same, _) in shares.items())
            + f" agree with it in {values['colour']}; by chance it would be {chance:.0%}."
        ),
    ]


LESSON = Lesson(
    key="clusters",
    title="What lies together",
    text=(
        "Ninety postcards, drawn by the program that made the embedded model's training data, are encoded; each is a "
        "point with as many coordinates as it has latents. Seen from the side where they differ most, they form "
        "*clusters*: day, sunset and night lie apart, since sky and ground cover most places. What covers little, such "
        "as the thing, hardly shows: a latent knows its patch, and few patches hold the thing. The autoencoder was "
        "never told any of these words. Its space keeps the distances of pictures rather than of meanings; meanings "
        "are what the text encoder is for."
    ),
    equations=(r"d(a, b) = \lVert z_a - z_b \rVert",),
    compute=compute,
    show=show,
    views=(
        Options("colour", "Colour by", tuple(ATTRIBUTES)),
        Options("space", "Distances of", ("latents", "pixels")),
    ),
    papers=(
        LDM,
        Paper("Pearson 1901, On lines and planes of closest fit", "https://doi.org/10.1080/14786440109462720"),
    ),
    code=(plane, nearest, agreement),
    cost="ninety encodings",
)
