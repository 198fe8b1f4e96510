"""A picture as latents: each channel alone, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..service.preview import jpeg
from .common import LDM, PROMPT, decoded, own_or_painted, picture_of, settings_of
from .drawing import png
from .lesson import Block, Lesson, Options, Paper, Report, Say, Shown, Strip, Upload, Values

ALL = "all channels"


@dataclass(frozen=True)
class Coded:
    """A picture, its latents (h, w, C), and decodes: of all channels, and with one of them set to zero."""

    picture: bytes
    pixels: tuple[int, ...]
    latents: np.ndarray
    psnr: float
    without: dict[str, bytes]


def compute(model: Any, report: Report, values: Values) -> Coded:
    """Encode a picture, and decode it again, whole and without each channel."""
    import mlx.core as mx

    picture = own_or_painted(model, report, values)
    pixels = np.asarray(picture, dtype=np.float32) / 255
    z = model.encode(picture, seed=settings_of(values).seed)
    back = picture_of(model, z)
    psnr = -10 * np.log10(float(np.square(back.clip(0, 1) - pixels).mean()))
    without = {ALL: decoded(model, z)}
    channels = z.shape[-1]
    for i in range(channels):
        report("Decoding without a channel", i / channels)
        without[f"without channel {i + 1}"] = decoded(model, z * (mx.arange(channels) != i))
    return Coded(jpeg(picture), pixels.shape, np.asarray(z)[0], psnr, without)


def show(found: Coded, values: Values) -> Sequence[Block]:
    which = values["which"] if values["which"] in found.without else ALL
    height, width, channels = found.latents.shape
    scale = max(1, 128 // height)
    return [
        Strip(
            [
                Shown(found.picture, "The picture", "the picture"),
                Shown(found.without[which], f"The decoded latents, {which}", f"decoded, {which}"),
            ],
            200,
        ),
        Strip(
            [
                Shown(png(found.latents[..., i], scale, -3, 3), f"Channel {i + 1} of the latents", f"channel {i + 1}")
                for i in range(channels)
            ]
        ),
        Say(
            f"{' × '.join(map(str, found.pixels))} = {np.prod(found.pixels):,} numbers became "
            f"{height} × {width} × {channels} = **{found.latents.size:,}**, "
            f"{np.prod(found.pixels) / found.latents.size:.0f} times fewer. The way back has a PSNR of "
            f"{found.psnr:.1f} dB. Mean {found.latents.mean():.2f}, deviation {found.latents.std():.2f}."
        ),
    ]


LESSON = Lesson(
    key="latents",
    title="A picture in a thousand numbers",
    text=(
        "An *autoencoder* is two networks with a bottleneck between them: the encoder turns a picture into few "
        "numbers, its *latents* or *representation*, and the decoder makes the picture again. What repeats need not "
        "be stored, so grass and sky cost little. A *variational* one (VAE) gives a mean and a variance for each "
        "number and is gently pulled towards N(0, 1), so that nearby latents mean similar pictures and no corner is "
        "left empty. Latents are then multiplied by one constant, 0.18215 in SD 1.x, to give them variance one, as "
        "the diffusion expects. Take channels away and see what each knows."
    ),
    equations=(
        r"z = s \cdot (\mu(x) + \sigma(x)\,\varepsilon), \qquad x \approx D(z / s), \qquad s = 1 / \text{std}(z)",
        r"L = \lVert x - D(z) \rVert^2 + \lambda\, D_{KL}\left(N(\mu, \sigma^2)\,\Vert\,N(0, 1)\right)",
    ),
    compute=compute,
    show=show,
    asks=(PROMPT, Upload("picture")),
    views=(Options("which", "Decode", (ALL, *(f"without channel {i}" for i in range(1, 5)))),),
    papers=(Paper("Kingma and Welling 2014, Auto-encoding variational Bayes", "https://arxiv.org/abs/1312.6114"), LDM),
    cost="one picture and five decodes",
)
