"""Imagic: Text-Based Real Image Editing with Diffusion Models (Kawar et al. 2023, arXiv:2210.09276), section 3.2.

    A. e_opt: from the states e_tgt of the text that is asked for, gradient descent on the denoising loss of the one
       picture, with the U-Net as it is (equation 3): the nearest "text" that says what the picture shows
    B. the same loss, with e_opt as it is, tunes the U-Net until it paints the picture from e_opt
    C. e = amount * e_tgt + (1 - amount) * e_opt, painted by the tuned U-Net (equation 4)

An amount of 0 is the picture, larger ones approach the text. A and B are done once (`tune`), and kept in a file, so
that C can be repeated with any amount.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .. import atomic, checks, ops
from ..backend import mx, nn
from ..diffusion.call import check_size
from ..diffusion.denoiser import Denoiser
from ..diffusion.network import Conditioning
from ..diffusion.noise import NoiseStream
from ..diffusion.schedule import NoiseSchedule
from ..errors import InputError
from ..generation import GeneratedPicture
from ..pictures.arrays import to_picture
from ..record import keys
from ..record.parameters import Parameters
from ..sampler import a1111_name, sampler_by_name
from .optimisation import Arrays, State
from .recipe import Recipe

METADATA = "imagic"
PARTS = ("empty", "target", "optimised", "unet")  # of the tensors in a file
Report = Callable[[str, float], None]  # what is being done, and how much of all of it is done, from 0 to 1


@dataclass(frozen=True)
class Settings:
    """How long to tune; a step takes `batch` noise levels of the picture."""

    text_steps: int = 40
    text_rate: float = 1e-2
    unet_steps: int = 60
    unet_rate: float = 1e-4
    batch: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """What A and B found: states of the text, and what the U-Net's weights have gained; all by name."""

    text: str
    model: str
    size: tuple[int, int]  # width, height in pixels
    empty: Arrays  # the empty text's, for guidance: "text" (1, N, D), and SDXL's "pooled" (1, P)
    target: Arrays
    optimised: Arrays
    unet: Arrays

    def states(self, amount: float) -> Conditioning:
        """Equation 4."""
        mixed = {name: amount * self.target[name] + (1 - amount) * self.optimised[name] for name in self.target}
        return Conditioning(mixed["text"], mixed.get("pooled"))

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything to one file, whole; weights in float16."""
        parts = {part: getattr(self, part) for part in PARTS}
        parts["unet"] = {name: value.astype(mx.float16) for name, value in self.unet.items()}
        tensors = {f"{part}:{name}": value for part, values in parts.items() for name, value in values.items()}
        about = {"text": self.text, "model": self.model, "size": self.size}
        with atomic.written(Path(path)) as temporary:
            mx.save_safetensors(str(temporary), tensors, {METADATA: json.dumps(about)})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tuned:
        """Read what `save` wrote. Raises `InputError` for any other file."""
        try:
            loaded: Any = mx.load(os.fspath(path), return_metadata=True)
            tensors, about = loaded[0], json.loads(loaded[1][METADATA])
            parts = [
                {key.partition(":")[2]: value for key, value in tensors.items() if key.startswith(f"{part}:")}
                for part in PARTS
            ]
            return cls(about["text"], about["model"], tuple(about["size"]), *parts)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{os.fspath(path)!r} is not a file of `stable-diffusion imagic` ({error}): make one with --keep FILE."
            ) from None

    @contextlib.contextmanager
    def applied(self, sd: Any) -> Iterator[None]:
        """Within it, the model's U-Net is the tuned one. Raises `InputError` for another model."""
        own = dict(tree_flatten(sd.network.parameters()))
        if {name: value.shape for name, value in self.unet.items()} != {name: own[name].shape for name in self.unet}:
            raise InputError(f"This was tuned for {self.model!r}, and does not fit {sd.name!r}: choose that model.")
        tuned = [(name, own[name] + gained.astype(own[name].dtype)) for name, gained in self.unet.items()]
        sd.network.update(tree_unflatten(tuned))
        try:
            yield
        finally:
            sd.network.update(tree_unflatten(list(own.items())))

    def paint(
        self,
        sd: Any,
        amount: float,
        num_steps: int = 20,
        cfg_weight: float = 4.0,
        sampler: str = "euler",
        seed: int = 0,
    ) -> GeneratedPicture:
        """C: a picture at an `amount` from 0 to 2, from the noise of a seed, with its record. Raises `InputError`."""
        amount = checks.number("amount", amount, 0.0, 2.0)
        way = sampler_by_name(sampler)
        plan = way.plan(sd.scheduler_config, num_steps)
        with self.applied(sd):
            against = Conditioning(self.empty["text"], self.empty.get("pooled"), negative=True)
            texts = [against, self.states(amount)] if cfg_weight > 1 else [self.states(amount)]
            context = sd.network.prepare(texts, *self.size, mx.float32, cfg_weight)

            def predict(x: mx.array, t: float, step: int) -> mx.array:
                return sd.network.predict(x, mx.array([t], mx.float32), context)

            denoiser = Denoiser(predict, sd.scheduler_config.prediction_type, cfg_weight)
            width, height = (side // sd.downscale for side in self.size)
            noise = NoiseStream([seed], (height, width, sd.latent_channels))
            for step in way.sample(denoiser, plan.prior(noise()), plan, noise):
                mx.eval(step.x)
        picture = to_picture(np.asarray(sd.decode(step.x))[0])
        name, schedule = a1111_name(way)
        said = {keys.IMAGIC: f"{amount:g}"}
        about = {"width": self.size[0], "height": self.size[1], "model": self.model, "extra": said}
        return GeneratedPicture(
            picture,
            Parameters(self.text, "", num_steps, name, schedule, cfg_weight, seed, **about),  # type: ignore[arg-type]
        )


def tune(
    sd: Any,
    picture: Any,
    text: str,
    settings: Settings | None = None,
    report: Report = lambda what, done: None,
    width: int | None = None,
    height: int | None = None,
) -> Tuned:
    """A and B for a picture and the text that it is to follow. Afterwards the model is as it was.

    `report` may raise to cancel. Raises `InputError` and `PictureError`, and `InputError` for a quantised model.
    """
    if sd.bits is not None:
        raise InputError(f"{sd.name!r} is quantised to {sd.bits} bits, and cannot be tuned: load it without `bits`.")
    settings = settings or Settings()
    size = check_size(sd, width, height)
    x_0 = _mean(sd, picture, size)
    empty, target = map(_arrays, sd.condition(["", text]))
    task = _Task(sd, x_0, size, settings)
    steps = settings.text_steps + settings.unet_steps
    with ops.use("learning"):
        optimised = target
        state = State.fresh(target)
        loss_of_text = mx.value_and_grad(lambda states, *batch: task.loss(states, *batch))
        for step in range(settings.text_steps):
            _, gradients = loss_of_text(optimised, *task.batch(step))
            state.update(gradients, task.recipe, settings.text_rate)
            optimised = state.layout.named(state.parameters + 0.0)
            mx.eval(state.arrays(), optimised)
            report("Optimising the text", (step + 1) / steps)
        before = dict(tree_flatten(sd.network.trainable_parameters()))
        state = State.fresh(before)
        loss_of_unet = nn.value_and_grad(sd.network, lambda *batch: task.loss(optimised, *batch))
        try:
            for step in range(settings.unet_steps):
                _, found = loss_of_unet(*task.batch(settings.text_steps + step))
                state.update(dict(tree_flatten(found)), task.recipe, settings.unet_rate)
                mx.eval(state.arrays())
                sd.network.update(tree_unflatten(list(state.layout.named(state.parameters).items())))
                report("Tuning the U-Net", (settings.text_steps + step + 1) / steps)
        finally:
            sd.network.update(tree_unflatten(list(before.items())))
    after = state.layout.named(state.parameters)
    gained = {name: after[name] - value.astype(mx.float32) for name, value in before.items()}
    mx.eval(gained)
    return Tuned(text, sd.name, size, empty, target, optimised, gained)


class _Task:
    """The denoising loss of one picture's latents x_0 (1, h, w, C): equation 2."""

    def __init__(self, sd: Any, x_0: mx.array, size: tuple[int, int], settings: Settings):
        self.network, self.size, self.settings = sd.network, size, settings
        self.x_0, self.prediction_type = x_0, sd.scheduler_config.prediction_type
        self.alpha_bars = NoiseSchedule.from_config(sampler_by_name("ddpm").resolve(sd.scheduler_config)).alpha_bars
        self.recipe = Recipe(weight_decay=0.0)

    def batch(self, step: int) -> tuple[mx.array, ...]:
        """Times, alphas, sigmas and noise of a step; the times are spread evenly (Kingma et al. 2021)."""
        rng, count = np.random.default_rng((self.settings.seed, step)), self.settings.batch
        times = ((np.arange(count) + rng.random()) / count * len(self.alpha_bars)).astype(int)
        alpha_bars = self.alpha_bars[times][:, None, None, None]
        eps = rng.standard_normal((count, *self.x_0.shape[1:]), np.float32)
        return tuple(map(mx.array, (times.astype(np.float32), np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars), eps)))

    def loss(self, states: Arrays, t: mx.array, alpha: mx.array, sigma: mx.array, eps: mx.array) -> mx.array:
        """The mean squared error of the U-Net's answer for x_t, of its own prediction type."""
        texts = [Conditioning(states["text"], states.get("pooled"))] * len(t)
        context = self.network.prepare(texts, *self.size, mx.float32, 1.0)
        answer = self.network.predict(alpha * self.x_0 + sigma * eps, t, context).astype(mx.float32)
        targets = {"epsilon": eps, "v_prediction": alpha * eps - sigma * self.x_0}
        return mx.square(targets.get(self.prediction_type, self.x_0) - answer).mean()


def _mean(sd: Any, picture: Any, size: tuple[int, int]) -> mx.array:
    """A picture's latents (1, h, w, C), as `encode` samples them, evaluated."""
    latents = sd.encode(picture, *size).astype(mx.float32)
    mx.eval(latents)
    return latents


def _arrays(states: Conditioning) -> Arrays:
    found = {"text": states.text} if states.pooled is None else {"text": states.text, "pooled": states.pooled}
    return {name: value.astype(mx.float32) for name, value in found.items()}
