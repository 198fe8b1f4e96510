"""Two numbers at once: joint distribution, margins, and a conditional slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import flat
from .drawing import histogram, scatter
from .lesson import Block, Chart, Lesson, Options, Report, Say, Side, Slider, Values

WINDOW = 4  # years around the chosen age


def compute(model: object, report: Report, values: Values) -> np.ndarray:
    """People, (N, 2)."""
    return flat.people(3000)


def independent(points: np.ndarray) -> np.ndarray:
    """The same margins, but each height now goes with somebody else's age."""
    return np.stack([points[:, 0], np.random.default_rng(0).permutation(points[:, 1])], axis=1)


def slice_at(points: np.ndarray, age: float) -> np.ndarray:
    """The heights of those of about this age: samples of p(height | age)."""
    return points[np.abs(points[:, 0] - age) <= WINDOW, 1]


def show(found: np.ndarray, values: Values) -> Sequence[Block]:
    points = found if values["world"] == "as people are" else independent(found)
    age = values["age"]
    heights, edges = slice_at(points, age), np.linspace(30, 220, 39)
    cloud = scatter({"people": points}, "age, years", "height, cm", flat.BOUNDS)
    shares = histogram(
        {"everybody: p(height)": points[:, 1], f"aged {age:g}: p(height | age)": heights}, "height, cm", edges
    )
    return [
        Side(
            [
                [Chart(cloud, "Each dot is a person: age to the right, height upwards")],
                [Chart(shares, f"How heights are distributed, for everybody and for those aged {age:g}")],
            ]
        ),
        Say(
            f"Aged {age:g} ± {WINDOW} years: mean height **{heights.mean():.0f} cm**, everybody: "
            f"{points[:, 1].mean():.0f} cm."
        ),
    ]


LESSON = Lesson(
    key="joint",
    title="What there is to learn",
    text=(
        "A picture is a list of numbers, and only some lists are pictures. To see what that means, take the shortest "
        "list that is interesting: two numbers, a person's age and height. All people together are the *joint* "
        "distribution. Looking at one number alone gives a *margin*. If the two were *independent*, knowing the age "
        "would say nothing about the height; in truth it says much, and the *conditional* distribution is a slice "
        "through the cloud. A prompt works in the same way: among all pictures it asks for a slice. Move the age, and "
        "then make the two numbers independent: every slice looks the same."
    ),
    equations=(r"p(\text{height} \mid \text{age}) = \frac{p(\text{age}, \text{height})}{p(\text{age})}",),
    compute=compute,
    show=show,
    views=(
        Slider("age", "Age, years", 2, 90, 6),
        Options("world", "The two numbers are", ("as people are", "independent")),
    ),
    code=(independent, slice_at),
    needs_model=False,
)
