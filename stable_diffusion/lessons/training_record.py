"""How the embedded model was trained: its losses and sheets of samples, from the record that came along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..places import packaged
from .common import DDPM, LDM
from .drawing import lines
from .lesson import Block, Chart, Formula, Lesson, Options, Report, Say, Shown, Slider, Strip, Values

RECORD = packaged("service", "training_record")  # a log and sample sheets of each part
WINDOW = 9  # points that are averaged for the line

PARTS = {
    "the autoencoder": (
        "vae",
        "It learns to pass a picture through a bottleneck: the 192 numbers of a patch of 8 by 8 pixels become 4. The "
        "second term, weighted little, keeps these latents near a normal distribution. On the sheet: postcards held "
        "out of the training; below each row, what the autoencoder makes of it.",
        r"z = \mu(x) + \sigma(x)\,\varepsilon, \qquad "
        r"L = \lVert x - D(z) \rVert^2 + \lambda\, D_{KL}\left(N(\mu, \sigma^2)\,\Vert\,N(0, 1)\right)",
    ),
    "its decoder alone": (
        "decoder",
        "The decoder can be trained further on its own: edges become finer, and since the latents stay the same, a "
        "diffusion model that was trained on them still fits. On the sheet: the same postcards.",
        r"L = \lVert x - D(z) \rVert^2 + \lambda_\text{edges} \lVert \nabla x - \nabla D(z) \rVert_1",
    ),
    "the diffusion": (
        "diffusion",
        "Then the text encoder and the U-Net learn together. A latent is mixed with noise at a random time, and the "
        "U-Net has to say from the mixture, the time and the caption what was mixed: the noise ε, or v, which is "
        "noise less picture. One caption in ten is left out, for guidance. On the sheet: sixteen prompts, always with "
        "the same noise.",
        r"L = \mathbb{E}_{x_0, \varepsilon, t}\; w_t \left\lVert v_t - v_\theta(x_t, t, \text{text}) \right\rVert^2,"
        r"\qquad v_t = \sqrt{\bar\alpha_t}\, \varepsilon - \sqrt{1 - \bar\alpha_t}\, x_0",
    ),
}


@dataclass(frozen=True)
class Record:
    """The losses of a part's training at its steps, and sheets by step."""

    steps: np.ndarray
    losses: np.ndarray
    sheets: dict[int, bytes]


def compute(model: Any, report: Report, values: Values) -> dict[str, Record]:
    """Read the record."""
    return {part: read(RECORD, name) for part, (name, _, _) in PARTS.items()}


def read(folder: Path, name: str) -> Record:
    """The log NAME.jsonl and the sheets NAME-STEP.jpg of a folder."""
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "loss" in row]
    sheets = {int(path.stem.rpartition("-")[2]): path.read_bytes() for path in sorted(folder.glob(f"{name}-*.jpg"))}
    return Record(np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows]), sheets)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Each loss as the mean of its neighbours, which get fewer at the ends."""
    kernel = np.ones(min(WINDOW, len(losses)))
    return np.convolve(losses, kernel, "same") / np.convolve(np.ones(len(losses)), kernel, "same")


def show(found: dict[str, Record], values: Values) -> Sequence[Block]:
    part = values["part"]
    record, (_, words, latex) = found[part], PARTS[part]
    steps = sorted(record.sheets)
    step = steps[min(round(values["share"] / 100 * (len(steps) - 1)), len(steps) - 1)]
    curves = {"loss": (record.steps, record.losses), "mean of neighbours": (record.steps, smoothed(record.losses))}
    return [
        Say(words),
        Formula(latex),
        Chart(lines(curves, "step", "loss", log_y=True), f"The loss of {part} during training"),
        Strip([Shown(record.sheets[step], f"Samples of {part} after step {step}", f"After {step} steps.")], 700),
    ]


LESSON = Lesson(
    key="training",
    title="How this model was made",
    text=(
        "A model learns from examples: a picture goes in, an error comes out, and every *weight* is moved a little in "
        "the direction that makes the error smaller. Stable Diffusion is trained in two parts, one after the other: "
        "first the autoencoder, then the diffusion in its latents. These are the curves and sheets of the embedded "
        "model, postcards-tiny, as this program made it in six and a half hours on two cores of a CPU. The loss falls "
        "fast and then hardly at all, while the pictures go on getting better: watch the sheets, not the curve."
    ),
    compute=compute,
    show=show,
    views=(
        Options("part", "Part", tuple(PARTS), "the diffusion"),
        Slider("share", "Sheet, from first to last, %", 0, 100, 100, 10),
    ),
    papers=(LDM, DDPM),
    needs_model=False,
)
