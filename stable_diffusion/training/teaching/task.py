"""One step of teaching: diffusion.py's loss, on a few pictures and their captions, in networks of which little changes.

With pictures of a class, the loss is that of the subject plus `prior_weight` times that of the class (Ruiz et al. 2023,
arXiv:2208.12242, equation 2). Offset noise is Guttenberg's (2023): a part of eps is the same all over a channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import ops
from ...backend import mx, nn
from ...diffusion.schedule import NoiseSchedule
from ...errors import PictureError, TrainingError
from ...pipeline import StableDiffusion
from ...sampler import sampler_by_name
from ..diffusion import min_snr_weights
from ..loop import Inputs, Loss
from ..recipe import Recipe
from ..sheets import save_sheet
from .base import Base
from .latents import PictureLatents
from .pictures import Order, Size, TaughtPicture, bucket_of, buckets
from .words import Captions

SHEET_STEPS = 20  # of each picture in a sample sheet


@dataclass(frozen=True)
class Example:
    """A picture to learn from, and the number of its caption."""

    picture: TaughtPicture
    caption: int


@dataclass(frozen=True)
class Settings:
    """How examples are made and what counts: the options of the rows in runs.py that have these names."""

    side: int
    buckets: bool = True
    flip: bool = True
    drop_captions: float = 0.1
    min_snr: float = 5.0
    offset_noise: float = 0.0
    prior_weight: float = 1.0
    samples: int = 4
    sample_prompts: tuple[str, ...] = ()

    def bucket(self, picture: TaughtPicture) -> Size:
        """The size at which a picture is seen."""
        return bucket_of(picture.size, buckets(self.side)) if self.buckets else (self.side, self.side)


class TeachingTask:
    """A `loop.Task`. `subject` is what is to be learnt, `kept` what the class's pictures keep.

    `write` writes the result from the networks as they are.
    """

    def __init__(
        self,
        name: str,
        base: Base,
        captions: Captions,
        subject: Sequence[Example],
        kept: Sequence[Example],
        settings: Settings,
        recipe: Recipe,
        states: Path,
        painter: Callable[[], StableDiffusion],
        write: Callable[[], None],
    ):
        self.name, self.base, self.captions, self.settings = name, base, captions, settings
        self.subject, self.kept, self.recipe = list(subject), list(kept), recipe
        self.painter, self.write = painter, write
        self.latents = PictureLatents(base.checkpoint.vae, base.name, states)
        self.order = Order.of([settings.bucket(each.picture) for each in self.subject], recipe.batch, recipe.seed)
        scheduler = base.checkpoint.scheduler
        self.prediction_type = scheduler.prediction_type
        self.alpha_bars = NoiseSchedule.from_config(sampler_by_name("ddpm").resolve(scheduler)).alpha_bars
        self.weights = np.ones(len(self.alpha_bars), np.float32)
        if settings.min_snr:
            clear = np.maximum(self.alpha_bars, 1e-12)  # zero terminal SNR
            self.weights = min_snr_weights(clear, self.prediction_type, settings.min_snr).astype(np.float32)

    @property
    def model(self) -> nn.Module:
        return self.base.networks

    def prepare(self, step: int) -> None:
        """The captions' states, and the latents of the pictures of a step that no step before it needed."""
        self.captions.prepare()
        size, _ = self.order.step(step)
        for number in range(step * self.recipe.batch, (step + 1) * self.recipe.batch):
            for example, mirrored in self._chosen(number):
                try:
                    self.latents.prepare(example.picture, size, mirrored)
                except PictureError as error:
                    raise TrainingError(f"{error} It could be opened before: put it back, and resume.") from None

    def batch(self, examples: Sequence[int]) -> Inputs:
        """x_0, eps (B, h, w, C), t (B,), of the class or not (B,), time ids (B, 6), and the captions' rows.

        The class's examples follow the subject's.
        """
        rows: list[list[tuple]] = [[], []]
        for number in examples:
            for kind, (example, mirrored) in enumerate(self._chosen(number)):
                rows[kind].append(self._row(number, kind, example, mirrored))
        *arrays, captions = zip(*rows[0], *rows[1], strict=True)
        kinds = np.repeat(np.arange(2, dtype=np.float32), [len(each) for each in rows])
        x_0, eps, t, time_ids = map(np.stack, arrays)
        return x_0, eps, t, kinds, time_ids, *self.captions.rows(captions)

    def loss(
        self, x_0: mx.array, eps: mx.array, t: mx.array, kinds: mx.array, time_ids: mx.array, *captions: mx.array
    ) -> Loss:
        alpha_bar = mx.array(self.alpha_bars)[t][:, None, None, None]
        alpha, sigma = mx.sqrt(alpha_bar), mx.sqrt(1 - alpha_bar)
        x_t = alpha * x_0 + sigma * eps
        target = eps if self.prediction_type == "epsilon" else alpha * eps - sigma * x_0
        text, pooled = self.captions.states(captions)
        unet, dtype = self.base.networks.unet, self.base.dtype
        context = unet.project_text(text.astype(dtype))
        ids = None if pooled is None else time_ids
        answer = unet(x_t.astype(dtype), t.astype(mx.float32), context, pooled, ids).astype(mx.float32)
        squares = mx.square(target - answer).mean(axis=(1, 2, 3))
        weighted = mx.array(self.weights)[t] * squares
        own = (weighted * (1 - kinds)).sum() / (1 - kinds).sum()
        if not self.kept:
            return own, {"squares": squares.mean()}
        of_class = (weighted * kinds).sum() / kinds.sum()
        return own + self.settings.prior_weight * of_class, {"subject": own, "class": of_class}

    def look(self, path: Path) -> dict[str, float]:
        """Write a sheet of pictures of the sample texts, from the same seeds every time."""
        prompts, count = self.settings.sample_prompts, self.settings.samples
        if not prompts or not count:
            return {}
        asked = [prompts[i % len(prompts)] for i in range(count)]
        painted = []
        with ops.use("usual"):
            for i, prompt in enumerate(asked):
                painted += self.painter().generate(prompt, num_steps=SHEET_STEPS, seed=i, prompt_language="plain")
        save_sheet(path, [np.stack([np.asarray(each.image, np.float32) / 255 for each in painted])])
        return {}

    def export(self) -> None:
        self.write()

    def _chosen(self, number: int) -> list[tuple[Example, bool]]:
        """What a number stands for, and with it an example of the class; whether each is mirrored."""
        step, place = divmod(number, self.recipe.batch)
        rng = np.random.default_rng((self.recipe.seed, number, 1))
        mirrored = [self.settings.flip and rng.random() < 0.5 for _ in range(2)]
        chosen = [(self.subject[self.order.step(step)[1][place]], mirrored[0])]
        if self.kept:
            chosen.append((self.kept[int(rng.integers(len(self.kept)))], mirrored[1]))
        return chosen

    def _row(self, number: int, kind: int, example: Example, mirrored: bool) -> tuple:
        """x_0, eps, t, time ids and the number of the caption."""
        rng = np.random.default_rng((self.recipe.seed, number, 4 + kind))
        size, _ = self.order.step(number // self.recipe.batch)
        shape = self.latents.shape(size)
        x_0 = self.latents.sample(example.picture, size, mirrored, rng.standard_normal(shape, np.float32))
        eps = rng.standard_normal(shape, np.float32)
        if self.settings.offset_noise:
            eps = eps + np.float32(self.settings.offset_noise) * rng.standard_normal((1, 1, shape[2]), np.float32)
        caption = example.caption if rng.random() >= self.settings.drop_captions else self.captions.nothing
        return x_0, eps, self._time(number, kind), example.picture.time_ids(size), caption

    def _time(self, number: int, kind: int) -> int:
        """Uniform over all times, stratified within a batch (Kingma et al. 2021, arXiv:2107.00630, I.1)."""
        step, place = divmod(number, self.recipe.batch)
        first = np.random.default_rng((self.recipe.seed, step, 6 + kind)).random()
        return int((first + place / self.recipe.batch) % 1 * len(self.alpha_bars))
