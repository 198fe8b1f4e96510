"""Batch, layer and group norm: which numbers share a mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .drawing import COLOURS
from .lesson import Block, Formula, Lesson, Options, Paper, Report, Say, Shown, Strip, Values

B, C, PLACES, GROUPS = 4, 8, 9, 2  # pictures, channels, places of a 3 x 3 map, groups
CELL = 16
KINDS = ("group norm", "layer norm", "batch norm", "instance norm")


def groups_of(kind: str) -> np.ndarray:
    """Which numbers of (B, C, PLACES) share mean and deviation: the same number, the same group."""
    b, c, _ = np.indices((B, C, PLACES))
    return {
        "batch norm": c,
        "layer norm": b,
        "instance norm": b * C + c,
        "group norm": b * GROUPS + c // (C // GROUPS),
    }[kind]


def normalised(x: np.ndarray, kind: str, eps: float = 1e-5) -> np.ndarray:
    """x (B, C, PLACES) with mean 0 and variance 1 within each group."""
    groups, y = groups_of(kind), np.empty_like(x)
    for each in np.unique(groups):
        part = x[groups == each]
        y[groups == each] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return y


def compute(model: object, report: Report, values: Values) -> np.ndarray:
    """Numbers (B, C, PLACES), of other size in each picture and channel."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, C, PLACES)) * rng.uniform(0.3, 2, (B, C, 1)) + rng.normal(0, 2, (B, 1, 1))


def drawn(colours: np.ndarray) -> np.ndarray:
    """Colours (B, C, PLACES, 3) as rows of pictures and columns of channels, each a 3 x 3 map: (H, W, 3)."""
    side = round(PLACES**0.5)
    maps = colours.reshape(B, C, side, side, 3)
    framed = np.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    return framed.transpose(0, 2, 1, 3, 4).reshape(B * (side + 1), C * (side + 1), 3)


def show(found: np.ndarray, values: Values) -> Sequence[Block]:
    from .drawing import png

    kind = values["kind"]
    groups = groups_of(kind)
    palette = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS])
    shades = palette[groups % len(palette)] * (1 - 0.25 * (groups // len(palette) % 4))[..., None]
    y = normalised(found, kind)

    def grey(x: np.ndarray) -> np.ndarray:
        return np.repeat(((x + 4) / 8).clip(0, 1)[..., None], 3, -1)

    n = len(np.unique(groups))
    means = (f"{found[groups == 0].mean():.2f}", f"{found[groups == 0].std():.2f}")
    return [
        Strip(
            [
                Shown(png(drawn(shades), CELL // 2, 0, 1), f"{kind}: a colour for each group", "who shares a mean"),
                Shown(png(drawn(grey(found)), CELL // 2, 0, 1), "The numbers before", "before"),
                Shown(png(drawn(grey(y)), CELL // 2, 0, 1), "The numbers after", "after"),
            ],
            270,
        ),
        Say(
            f"Rows are {B} pictures, columns {C} channels, each a map of 3 × 3. {kind.capitalize()} makes "
            f"{n} groups of {groups.size // n} numbers. The first group had mean {means[0]} and deviation "
            f"{means[1]}, and has now {abs(y[groups == 0].mean()):.2f} and {y[groups == 0].std():.2f}."
        ),
        Formula(
            r"y = \gamma\, \frac{x - \text{mean}(\text{group})}{\sqrt{\text{var}(\text{group}) + \epsilon}} + \beta"
        ),
    ]


LESSON = Lesson(
    key="norms",
    title="Norms: who shares a mean",
    text=(
        "Deep in a network numbers drift: they become huge or vanish, and learning stops. A *norm* brings a group of "
        "them back to mean zero and variance one, then lets two learnt numbers scale and shift the result. The kinds "
        "differ only in who belongs to a group. *Batch norm* takes one channel over all pictures, so that a picture's "
        "result depends on its neighbours: bad for painting one at a time. *Layer norm* takes one picture, or in a "
        "transformer one token, as a whole. *Group norm*, which the U-Net and the autoencoder use, takes a few "
        "channels of one picture together."
    ),
    compute=compute,
    show=show,
    views=(Options("kind", "Norm", KINDS),),
    papers=(
        Paper("Wu and He 2018, Group normalization", "https://arxiv.org/abs/1803.08494"),
        Paper("Ioffe and Szegedy 2015, Batch normalization", "https://arxiv.org/abs/1502.03167"),
        Paper("Ba et al. 2016, Layer normalization", "https://arxiv.org/abs/1607.06450"),
    ),
    code=(groups_of, normalised),
    needs_model=False,
)
