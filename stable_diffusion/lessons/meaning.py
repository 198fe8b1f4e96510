"""Texts as points: similar meanings lie together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .common import CLIP
from .drawing import PRIMARY
from .lesson import Block, Chart, Lesson, Options, Report, Say, Values, Words

MAX_TEXTS = 24
LABELS = "#777777"  # which can be read on white and on black
TEXTS = (
    "a red house", "a blue house", "a red tent", "a blue tent", "a red balloon", "a cactus in the desert",
    "a pine tree on snowy mountains", "a sailboat on the sea", "a lighthouse by the ocean",
)  # fmt: skip


@dataclass(frozen=True)
class Space:
    """Texts as points: their first two principal components (N, 2), and all cosine similarities (N, N)."""

    texts: tuple[str, ...]
    points: np.ndarray
    share: float  # of the variance that the two components hold
    similarity: np.ndarray


def compute(model: Any, report: Report, values: Values) -> Space:
    """The mean of the encoder's hidden states over each text's tokens, projected to a plane."""
    lines = dict.fromkeys(line.strip() for line in values["texts"].splitlines() if line.strip())
    texts = tuple(lines)[:MAX_TEXTS]
    if not texts:
        raise InputError("There is no text: write one or more, each on a line of its own.")
    means = []
    for i, text in enumerate(texts):
        report("Reading the texts", i / len(texts))
        means.append(mean_state(model, text))
    return projected(texts, np.stack(means))


def mean_state(model: Any, text: str) -> np.ndarray:
    """The mean of the hidden states (D,) of a text's own tokens."""
    end = min(max(len(model.tokenizer.encode(text)), 1), model.tokenizer.max_length - 2) + 1
    return np.asarray(model.encode_text(text), dtype=np.float64)[0, 1:end].mean(axis=0)


def projected(texts: tuple[str, ...], vectors: np.ndarray) -> Space:
    """Vectors (N, D), N at least 1, on their first two principal components, and their cosine similarities."""
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(texts), 2))
    points[:, : min(2, s.size)] = (u * s)[:, :2]
    total = float((s**2).sum())
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return Space(texts, points, float((s[:2] ** 2).sum()) / total if total else 1.0, unit @ unit.T)


def show(found: Space, values: Values) -> Sequence[Block]:
    if values["what"] == "similarities":
        chart = Chart(matrix(found.texts, found.texts, found.similarity, "cos"), "The similarity of each pair")
        other = found.similarity - 2 * np.eye(len(found.texts))
        i, j = np.unravel_index(other.argmax(), other.shape)
        words = f"Most alike: {found.texts[i]!r} and {found.texts[j]!r}, {found.similarity[i, j]:.2f}."
        return [chart, Say(words if len(found.texts) > 1 else "Write a second text to compare.")]
    return [
        Chart(_plane(found), "Each text as a point; texts that mean alike lie together"),
        Say(f"These two directions hold {found.share:.0%} of the differences."),
    ]


def _plane(space: Space) -> Any:
    import altair as alt

    rows = [
        {"text": text, "first": float(x), "second": float(y)}
        for text, (x, y) in zip(space.texts, space.points, strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("first:Q", title="first principal component", scale=alt.Scale(padding=40)),
        y=alt.Y("second:Q", title="second principal component", scale=alt.Scale(padding=20)),
        tooltip="text:N",
    )
    names = base.mark_text(dy=-12, color=LABELS).encode(text="text:N")
    return (base.mark_circle(size=80, color=PRIMARY) + names).properties(height=360)


def matrix(rows: Sequence[str], columns: Sequence[str], values: np.ndarray, title: str) -> Any:
    """A table of numbers as shades of blue."""
    import altair as alt

    cells = [
        {"row": a, "column": b, "value": round(float(values[i, j]), 3)}
        for i, a in enumerate(rows)
        for j, b in enumerate(columns)
    ]
    axis = alt.Axis(labelLimit=140)
    return (
        alt.Chart(alt.Data(values=cells))
        .mark_rect()
        .encode(
            x=alt.X("column:N", title=None, sort=list(columns), axis=axis),
            y=alt.Y("row:N", title=None, sort=list(rows), axis=axis),
            color=alt.Color("value:Q", scale=alt.Scale(scheme="blues"), title=title),
            tooltip=["row:N", "column:N", "value:Q"],
        )
        .properties(height=360)
    )


LESSON = Lesson(
    key="meaning",
    title="A space of meanings",
    text=(
        "The text encoder turns each token into a *feature vector* of hundreds of numbers, which already knows its "
        "neighbours: the same word has another vector in another sentence. Texts with similar meanings lie close "
        "together, which nobody told the encoder: it was trained so that a picture and its caption point in the same "
        "direction (CLIP), or, like the small model here, together with the network that paints. Each text below is "
        "one point, the mean of its tokens' vectors, projected so that most of the differences show. A similarity of 1 "
        "means the same direction."
    ),
    equations=(r"\cos(a, b) = \frac{a \cdot b}{\lVert a \rVert\, \lVert b \rVert}",),
    compute=compute,
    show=show,
    asks=(Words("texts", "Texts, one a line", "\n".join(TEXTS), lines=True),),
    views=(Options("what", "Show", ("points", "similarities")),),
    papers=(CLIP,),
    code=(mean_state, projected),
)
