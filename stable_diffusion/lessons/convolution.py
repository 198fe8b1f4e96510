"""A kernel moved over a picture by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .common import PROMPT, own_or_painted
from .drawing import png
from .lesson import Block, Formula, Lesson, Options, Paper, Report, Say, Shown, Slider, Strip, Upload, Values

KERNELS = {
    "edges from left to right": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "edges from top to bottom": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "blur": ((1, 2, 1), (2, 4, 2), (1, 2, 1)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "shift to the right": ((0, 0, 0), (1, 0, 0), (0, 0, 0)),
}
SIDE = 96


@dataclass(frozen=True)
class Grey:
    """A small grey picture, (SIDE, SIDE) in [0, 1]."""

    picture: np.ndarray


def compute(model: Any, report: Report, values: Values) -> Grey:
    """A picture, grey and small."""
    picture = own_or_painted(model, report, values).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Grey(np.asarray(picture, dtype=np.float64) / 255)


def kernel_of(name: str) -> np.ndarray:
    """A kernel (3, 3); one that blurs adds up to 1."""
    kernel = np.array(KERNELS[name], dtype=np.float64)
    return kernel / kernel.sum() if name == "blur" else kernel


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """Each number becomes the weighted sum of its 3 x 3 neighbourhood; outside the picture there is zero."""
    padded = np.pad(x, 1)
    height, width = x.shape
    y = sum(kernel[i, j] * padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    return y[::stride, ::stride]


def show(found: Grey, values: Values) -> Sequence[Block]:
    kernel = kernel_of(values["kernel"])
    stride = 2 if values["stride"] == "every second place" else 1
    y, x = int(values["row"]), int(values["column"])
    patch = np.pad(found.picture, 1)[y : y + 3, x : x + 3]
    marked = np.repeat(found.picture[:, :, None], 3, axis=2)
    marked[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = (0.95, 0.35, 0.1)
    result = convolved(found.picture, kernel, stride)
    low, high = (0.0, 1.0) if kernel.sum() > 0.5 else (-2.0, 2.0)
    return [
        Strip(
            [
                Shown(png(marked, 3, 0, 1), "The picture, with the neighbourhood marked", "the picture"),
                Shown(png(kernel, 64, -abs(kernel).max(), abs(kernel).max()), "The kernel", "the kernel"),
                Shown(png(result, 3 * stride, low, high), f"The result of: {values['kernel']}", "the result"),
            ],
            288,
        ),
        Formula(_matrix(patch) + r"\odot" + _matrix(kernel) + rf"\;\to\; {float((patch * kernel).sum()):.2f}"),
        Say(
            f"The result at row {y}, column {x}: nine products, added up. The picture has {found.picture.shape[0]} × "
            f"{found.picture.shape[1]} numbers, the result {result.shape[0]} × {result.shape[1]}."
        ),
    ]


def _matrix(values: np.ndarray) -> str:
    return r"\begin{pmatrix}" + r"\\".join(" & ".join(f"{v:.2f}" for v in row) for row in values) + r"\end{pmatrix}"


LESSON = Lesson(
    key="convolution",
    title="A convolution by hand",
    text=(
        "A *convolution* looks at a small neighbourhood, here 3 by 3, multiplies it with a *kernel* of nine weights, "
        "and writes down the sum. The same nine weights are used everywhere, which is why a network that learnt an "
        "edge in one corner knows it in all. Kernels made by hand find edges or blur; a U-Net learns its own, and has "
        "one for every pair of input and output channel: 320 times 320 of them in a single layer of SD 1.5. Taking "
        "only every second place makes the map half as large: so the way down is built. Move the window."
    ),
    equations=(r"y_{ij} = \sum_{a=-1}^{1} \sum_{b=-1}^{1} w_{ab}\; x_{i+a,\, j+b} + \text{bias}",),
    compute=compute,
    show=show,
    asks=(PROMPT, Upload("picture")),
    views=(
        Options("kernel", "Kernel", tuple(KERNELS)),
        Slider("row", "Row", 0, SIDE - 1, 40),
        Slider("column", "Column", 0, SIDE - 1, 48),
        Options("stride", "Take", ("every place", "every second place")),
    ),
    papers=(Paper("LeCun et al. 1998, Gradient-based learning", "https://doi.org/10.1109/5.726791"),),
    code=(convolved,),
    cost="one picture",
)
