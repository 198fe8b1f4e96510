"""Texts added and subtracted, and what is painted from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..unet import UNet
from .common import CLIP, decoded, settings_of
from .lesson import Block, Lesson, Paper, Report, Say, Shown, Slider, Strip, Values, Words

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class Sums:
    """A picture for each share of the difference that is added."""

    pictures: tuple[bytes, ...]


def moved(states: Any, minus: Any, plus: Any, share: float) -> Any:
    """The states of a text (1, 77, D), moved by a share of the difference between two others."""
    return states + share * (plus - minus)


def compute(model: Any, report: Report, values: Values) -> Sums:
    """Paint one seed from the states of a text, moved further and further."""
    import mlx.core as mx

    from ..diffusion.denoiser import Denoiser
    from ..diffusion.noise import NoiseStream
    from ..sampler import sampler_by_name

    unet, own = model.network, settings_of(values)
    if not isinstance(unet, UNet) or unet.config.addition_embed_type:
        raise InputError("This lesson opens the U-Net of SD 1.x and 2.x: choose such a model, or the embedded one.")
    text, minus, plus = (model.encode_text(values[key]) for key in ("text", "minus", "plus"))
    negative = model.encode_text(own.negative)
    height, width = (side // model.downscale for side in reversed(model.default_size))
    sampler = sampler_by_name(own.sampler)
    plan = sampler.plan(model.scheduler_config, own.steps)
    pictures = []
    for i, share in enumerate(SHARES):
        context = unet.project_text(mx.concatenate([negative, moved(text, minus, plus, share)]))

        def network(x: Any, t: float, step: int, context: Any = context) -> Any:
            return unet(x.astype(unet.conv_in.weight.dtype), mx.array([t]), context)

        denoiser = Denoiser(
            network,
            model.scheduler_config.prediction_type,
            max(own.cfg, 1.01),
        )
        noise = NoiseStream([own.seed], (height, width, model.latent_channels))
        for step in sampler.sample(denoiser, plan.prior(noise()), plan, noise):
            report(f"Picture {i + 1} of {len(SHARES)}", (i + step.index / step.total) / len(SHARES))
            np.asarray(step.x)
        pictures.append(decoded(model, step.x))
    return Sums(tuple(pictures))


def show(found: Sums, values: Values) -> Sequence[Block]:
    i = min(range(len(SHARES)), key=lambda j: abs(SHARES[j] - values["share"]))
    return [
        Strip(
            [
                Shown(found.pictures[0], "The picture of the text itself", "the text"),
                Shown(
                    found.pictures[i],
                    f"The picture with {SHARES[i]:g} of the difference",
                    f"the text + {SHARES[i]:g} × (b − a)",
                ),
            ],
            200,
        ),
        Strip(
            [
                Shown(picture, f"The picture with {share:g} of the difference", f"{share:g}")
                for share, picture in zip(SHARES, found.pictures, strict=True)
            ]
        ),
        Say("All are painted from the same noise; only the numbers that the text became have moved."),
    ]


LESSON = Lesson(
    key="arithmetic",
    title="Arithmetic with texts",
    text=(
        'If meanings are directions, one can calculate with them. Take the numbers that "a red house" became, subtract '
        'those of "a red tent", add those of "a blue tent": what is left of the difference is *from red to blue*, and '
        "the house should turn blue without the word ever being written next to it. The network does not notice that "
        "nobody wrote this text; it only sees 77 vectors. Half of the way gives a mixture, and more than the whole way "
        "exaggerates. It does not always work: a vector also knows its sentence, so choose texts that are built alike."
    ),
    equations=(r"\text{states} = E(\text{text}) + s\,\left(E(b) - E(a)\right)",),
    compute=compute,
    show=show,
    asks=(
        Words("text", "Text", "a red house on green hills by day"),
        Words("minus", "a: subtract", "a red tent on green hills by day"),
        Words("plus", "b: add", "a blue tent on green hills by day"),
    ),
    views=(Slider("share", "How much of the difference", 0, 1.25, 1.0, 0.25),),
    papers=(CLIP, Paper("Mikolov et al. 2013, Linguistic regularities", "https://aclanthology.org/N13-1090/")),
    code=(moved,),
    cost="six pictures",
)
