"""The loaded U-Net, level by level, and what happens without a skip connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..errors import InputError
from ..unet import UNet
from .common import PROMPT, decoded, noise_schedule, painted, prompt_of, settings_of
from .lesson import Block, Lesson, Options, Paper, Report, Say, Shown, Strip, Table, Values

TIME = 0.45  # of the way, at which the network looks
NONE = "none"


@dataclass(frozen=True)
class Seen:
    """The network's levels, and its estimate of x_0 with all skips and without those of each level."""

    rows: tuple[dict[str, Any], ...]
    noisy: bytes
    estimates: dict[str, bytes]
    changes: dict[str, float]  # root mean square difference in latents


def predict_without(unet: UNet, x: Any, t: Any, context: Any, level: int | None) -> tuple[Any, list[tuple[str, Any]]]:
    """The U-Net's way down, middle and up, with the skips of one level of the way up at zero.

    Also returns a name and the feature map's shape after each level.
    """
    import mlx.core as mx

    time = ops.ACTIVATIONS[unet.config.act_fn](unet.embed_time(t, None, None, None, x.dtype))
    x = unet.conv_in(x)
    skips, shapes = [x], [("in", x.shape)]
    for i, (block, texts) in enumerate(zip(unet.down_blocks, context, strict=False)):
        for x in block.down(skips[-1], time, texts):
            skips.append(x)
        shapes.append((f"down {i + 1}", x.shape))
    x = unet.mid_block.middle(x, time, context[len(unet.down_blocks)])
    shapes.append(("middle", x.shape))
    for i, (block, texts) in enumerate(zip(unet.up_blocks, context[-len(unet.up_blocks) :], strict=True)):
        if i == level:
            own = len(block.resnets)
            skips = skips[:-own] + [mx.zeros_like(skip) for skip in skips[-own:]]
        x = block.up(x, skips, time, texts, 0, len(block.resnets))
        shapes.append((f"up {i + 1}", x.shape))
    x = unet.conv_out(unet.conv_norm_out(x))
    return x, [*shapes, ("out", x.shape)]


def compute(model: Any, report: Report, values: Values) -> Seen:
    """Noise a painted picture half way, and ask for it with and without each level's skips."""
    import mlx.core as mx

    from ..diffusion.denoiser import Denoiser
    from ..diffusion.noise import unit_normal
    from ..diffusion.schedule import NoiseLevel

    unet = model.network
    if not isinstance(unet, UNet) or unet.config.addition_embed_type or "mid_block" not in unet:
        raise InputError("This lesson opens the U-Net of SD 1.x and 2.x: choose such a model, or the embedded one.")
    x_0 = painted(model, report, values, "Painting a picture to begin with")
    noise = noise_schedule(model)
    t = round(TIME * len(noise))
    level = NoiseLevel.from_alpha_bar(t, float(noise.alpha_bars[t]))
    x_t = level.noised(x_0, unit_normal(x_0.shape, mx.random.key(settings_of(values).seed + 1)))
    context = unet.project_text(model.encode_text(prompt_of(values)))
    estimates, changes = {}, {}
    shapes: list[tuple[str, Any]] = []
    whole: Any = None
    for i in (None, *range(len(unet.up_blocks))):
        name = NONE if i is None else f"up {i + 1}"
        report(f"Without the skips of: {name}", (0 if i is None else i + 1) / (len(unet.up_blocks) + 1))
        seen: list[tuple[str, Any]] = []

        def network(x: Any, t: float, step: int, i: int | None = i, seen: list = seen) -> Any:
            output, found = predict_without(unet, x.astype(unet.conv_in.weight.dtype), mx.array([t]), context, i)
            seen[:] = found
            return output

        estimate = Denoiser(network, model.scheduler_config.prediction_type)(x_t, level, 1).x_0
        whole, shapes = (estimate, seen) if whole is None else (whole, shapes)
        estimates[name] = decoded(model, estimate)
        changes[name] = float(np.sqrt(np.square(np.asarray(estimate - whole)).mean()))
    return Seen(tuple(_row(unet, *each) for each in shapes), decoded(model, x_t), estimates, changes)


def _row(unet: UNet, name: str, shape: Sequence[int]) -> dict[str, Any]:
    way, _, number = name.partition(" ")
    blocks = {"down": unet.down_blocks, "up": unet.up_blocks}.get(way)
    block = unet.mid_block if way == "middle" else blocks[int(number) - 1] if blocks else None
    return {
        "Level": name,
        "After it": f"{shape[1]} × {shape[2]}, {shape[3]} channels",
        "Residual blocks": len(block.resnets) if block else 0,
        "Transformers": sum(len(each.transformer_blocks) for each in block.attentions) if block else 0,
        "Skips": len(block.resnets) if way == "up" and block else 0,
    }


def show(found: Seen, values: Values) -> Sequence[Block]:
    name = values["without"]
    if name not in found.estimates:
        name = list(found.estimates)[-1]
    return [
        Strip(
            [
                Shown(found.noisy, "The noisy picture that the network sees", "xₜ"),
                Shown(found.estimates[NONE], "The estimate with all skips", "x̂₀, all skips"),
                Shown(found.estimates[name], f"The estimate without: {name}", f"x̂₀, without: {name}"),
            ],
            160,
        ),
        Say(f"The estimate's latents changed by **{found.changes[name]:.3f}** (their deviation is about 1)."),
        Table(found.rows),
    ]


LESSON = Lesson(
    key="unet",
    title="The U-Net and its skips",
    text=(
        "The network that says the noise has the shape of a U. On the way down, convolutions make the feature maps "
        "smaller and deeper: fewer places, more channels, so that a far corner can matter. On the way up they become "
        "large again. What was lost comes back through *skip connections*, which carry each level's features straight "
        "across to its partner. *Residual blocks* add to their input instead of replacing it, and are told the time; "
        "*transformers* look at all places at once, and at the prompt. Take one level's skips away: without the lowest "
        "the composition suffers, without the highest the detail."
    ),
    equations=(r"y = x + f(x, \text{time}), \qquad \text{up}_i = g\left([\,\text{up}_{i-1}, \text{down}_i\,]\right)",),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(Options("without", "Take away the skips of", (NONE, "up 1", "up 2", "up 3", "up 4"), "up 3"),),
    papers=(
        Paper("Ronneberger et al. 2015, U-Net", "https://arxiv.org/abs/1505.04597"),
        Paper("He et al. 2016, Deep residual learning", "https://arxiv.org/abs/1512.03385"),
    ),
    code=(predict_without,),
    cost="one picture, and a call of the network for each level",
)
