"""CLIP: the matrix of postcards and captions, as it fills during the training, and retrieval of a typed caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..guides import contrastive
from ..service.preview import jpeg
from ..training.contrastive import FAR
from ..training.data import Postcards
from .common import CLIP, EXAMPLE, prompt_of
from .lesson import Block, Lesson, Options, Paper, Report, Say, Shown, Strip, Values, Words

N, SHOWN, TOGETHER = 400, 6, 40
CELL = 10  # pixels of the matrix's cells
CAPTION = Words("caption", "A caption", EXAMPLE)


@dataclass(frozen=True)
class Found:
    """The postcards nearest to a caption, by number, and the matrices (24, 24) by the steps of training."""

    numbers: tuple[int, ...]
    pictures: tuple[bytes, ...]
    cosines: tuple[float, ...]
    matrices: dict[int, np.ndarray]


def compute(model: Any, report: Report, values: Values) -> Found:
    """Encode N postcards that the training never saw, and the caption; sort by cosine."""
    from ..backend import prepare

    report("Loading the encoders", 0.0)
    prepare()
    clip = contrastive.load()
    postcards = Postcards(clip.side)
    pictures, vectors = [], []
    for first in range(FAR, FAR + N, TOGETHER):
        report("Looking at postcards", (first - FAR) / N)
        pictures.append(postcards.batch(range(first, first + TOGETHER))[0])
        vectors.append(np.asarray(clip.pictures(pictures[-1])))
    cosines = np.concatenate(vectors) @ np.asarray(clip.texts([prompt_of(values, "caption")]))[0]
    best = np.argsort(-cosines)[:SHOWN]
    whole = np.concatenate(pictures)
    return Found(
        tuple(FAR + int(i) for i in best),
        tuple(jpeg(_picture(whole[i])) for i in best),
        tuple(float(cosines[i]) for i in best),
        training_matrices(),
    )


def training_matrices() -> dict[int, np.ndarray]:
    """The cosines of 24 postcards and their captions, by the steps of the training of the CLIP that comes along."""
    with np.load(contrastive.FOLDER / "matrices.npz") as file:
        return {int(name): file[name].astype(np.float64) for name in sorted(file, key=int)}


def on_the_diagonal(cosines: np.ndarray) -> float:
    """The share of rows whose largest number is on the diagonal."""
    return float((cosines.argmax(axis=1) == np.arange(len(cosines))).mean())


def show(found: Found, values: Values) -> Sequence[Block]:
    steps = int(values["steps"])
    cosines = found.matrices[steps]
    cells = (np.kron(cosines.clip(0, 1), np.ones((CELL, CELL))) * 255).astype(np.uint8)
    matrix = Shown(jpeg(_picture(cells)), f"24 postcards by 24 captions after {steps} steps", f"{steps} steps")
    return [
        Strip([matrix], 240),
        Say(
            f"After {steps} steps {on_the_diagonal(cosines):.0%} of 24 postcards, one a row, are nearest to their own "
            "caption, one a column. White is a cosine of 1."
        ),
        Strip(
            [
                Shown(picture, f"Postcard {i + 1} of those that fit the caption", f"{cosine:.2f}")
                for i, (picture, cosine) in enumerate(zip(found.pictures, found.cosines, strict=True))
            ]
        ),
        Say(f"Of {N} new postcards, these are nearest to the caption; below each, the cosine."),
    ]


def _picture(values: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(values).convert("RGB")


LESSON = Lesson(
    key="clip",
    title="Pictures and captions in one space",
    text=(
        "CLIP is two encoders that learn together. N pictures and their N captions each become a vector, and the loss "
        "asks: of all captions, which one belongs to this picture, and of all pictures, which to this caption? So the "
        "N × N table of cosines has to become bright on the diagonal, and dark elsewhere. Nobody labels anything, "
        "captions are enough. Afterwards any text can look for pictures. The one here learnt in 800 steps from "
        "postcards; Stable Diffusion's text encoder is half of one that learnt from 400 million pictures. Type a "
        "caption, and see the diagonal fill."
    ),
    equations=(
        r"L = -\frac{1}{2N} \sum_i \left( \log \frac{e^{s\,u_i \cdot v_i}}{\sum_j e^{s\,u_i \cdot v_j}}"
        r" + \log \frac{e^{s\,u_i \cdot v_i}}{\sum_j e^{s\,u_j \cdot v_i}} \right)",
    ),
    compute=compute,
    show=show,
    asks=(CAPTION,),
    views=(Options("steps", "Steps of training", (600, 300, 150, 80, 40, 20, 0)),),
    papers=(CLIP, Paper("van den Oord et al. 2018, Contrastive predictive coding", "https://arxiv.org/abs/1807.03748")),
    code=(contrastive.contrastive_loss,),
    needs_model=False,
)
