"""The diffusion's training: Denoising Diffusion Probabilistic Models (Ho et al. 2020, arXiv:2006.11239), algorithm 1.

    x_0 ~ data,  t ~ uniform,  eps ~ N(0, 1),  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps       (equation 4)
    loss = w(t) |target - U-Net(x_t, t, text)|^2,  target = eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0

x_0 are latents (Rombach et al. 2022). One caption in ten is left out, for classifier-free guidance (Ho and Salimans
2022). v is Salimans and Ho 2022's; w(t) is Hang et al. 2023's (`min_snr_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..backend import mx
from ..config import SchedulerConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.noise import NoiseStream
from ..diffusion.schedule import NoiseSchedule
from ..sampler import sampler_by_name
from .latents import SHARD, LatentCache
from .loop import Inputs, Loss
from .networks import TextToLatents, write_index, write_part
from .sheets import save_sheet

FIRST_SHARDS, STEPS_PER_SHARD = 4, 250  # the latents that there are at the first step, and then one shard more
MOST_SHARDS = 80
COLUMNS = 8  # of a sample sheet


def min_snr_weights(alpha_bars: np.ndarray, prediction_type: str, gamma: float) -> np.ndarray:
    """The loss's weight at each time, such that x_0's error never counts more than `gamma` times.

    An error of eps is one of x_0 times SNR = abar / (1 - abar), and an error of v one of x_0 times SNR + 1 (Salimans
    and Ho 2022, section 4): min(that, gamma) / that. Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    snr = alpha_bars / (1 - alpha_bars) + (prediction_type == "v_prediction")
    return np.minimum(snr, gamma) / snr


class DiffusionTask:
    """See the module's docstring. `folder` gets the checkpoint's unet/, text_encoder/ and scheduler/."""

    name = "diffusion"

    def __init__(
        self,
        cache: LatentCache,
        model: TextToLatents,
        scheduler: SchedulerConfig,
        folder: Path,
        batch: int,
        seed: int = 0,
        prompts: Sequence[str] = (),
        dropout: float = 0.1,
        gamma: float = 5.0,
    ):
        self.cache, self.model, self.scheduler, self.folder = cache, model, scheduler, folder
        self.batch_size, self.seed, self.prompts, self.dropout = batch, seed, prompts, dropout
        self.alpha_bars = NoiseSchedule.from_config(sampler_by_name("ddpm").resolve(scheduler)).alpha_bars
        self.weights = min_snr_weights(self.alpha_bars, scheduler.prediction_type, gamma).astype(np.float32)
        self.no_text = cache.tokenizer("")[0][0]

    def prepare(self, step: int) -> None:
        self.cache.grow(self.available(step))

    def batch(self, examples: Sequence[int]) -> Inputs:
        """x_0 and eps (B, h, w, C), t (B,), and texts' ids (B, 77)."""
        rows = []
        for number in examples:
            rng = np.random.default_rng((self.seed, number))
            mean, deviation, ids = self.cache.example(int(rng.integers(self.available(number // self.batch_size))))
            x_0 = mean + deviation * rng.standard_normal(mean.shape, np.float32)
            eps = rng.standard_normal(mean.shape, np.float32)
            rows.append((x_0, eps, self._time(number), self.no_text if rng.random() < self.dropout else ids))
        return tuple(np.stack(each) for each in zip(*rows, strict=True))

    def loss(self, x_0: mx.array, eps: mx.array, t: mx.array, ids: mx.array) -> Loss:
        alpha_bar = mx.array(self.alpha_bars)[t][:, None, None, None]
        alpha, sigma = mx.sqrt(alpha_bar), mx.sqrt(1 - alpha_bar)
        x_t = alpha * x_0 + sigma * eps
        target = eps if self.scheduler.prediction_type == "epsilon" else alpha * eps - sigma * x_0
        dtype = self.model.unet.conv_in.weight.dtype
        answer = self.model(x_t.astype(dtype), t.astype(mx.float32), ids).astype(mx.float32)
        squares = mx.square(target - answer).mean(axis=(1, 2, 3))
        return (mx.array(self.weights)[t] * squares).mean(), {"squares": squares.mean()}

    def available(self, step: int) -> int:
        """How many examples there are at a step: the latents' number grows, the same in every run."""
        count = SHARD * min(MOST_SHARDS, FIRST_SHARDS + step // STEPS_PER_SHARD)
        return min(count, self.cache.limit or count)

    def look(self, path: Path) -> dict[str, float]:
        """A picture for each prompt, the same noise every time."""
        pictures = self.generate(self.prompts)
        save_sheet(path, [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)])
        return {}

    def generate(self, prompts: Sequence[str], steps: int = 20, cfg_weight: float = 5.0, seed: int = 0) -> np.ndarray:
        """A picture (H, W, 3) in [0, 1] for each prompt, by Euler's method."""
        tokenizer, vae = self.cache.tokenizer, self.cache.vae
        ids = mx.array(np.concatenate([tokenizer([""] * len(prompts))[0], tokenizer(list(prompts))[0]]))
        context = self.model.unet.project_text(self.model.text_encoder(ids).last_hidden_state)
        side = self.cache.data.size // vae.config.downscale
        noise = NoiseStream(range(seed, seed + len(prompts)), (side, side, vae.config.latent_channels))
        sampler = sampler_by_name("euler")
        plan = sampler.plan(self.scheduler, steps)
        denoiser = Denoiser(
            lambda x, t, step: self.model.unet(x.astype(self._dtype), mx.array([t], mx.float32), context),
            self.scheduler.prediction_type,
            cfg_weight,
        )
        for step in sampler.sample(denoiser, plan.prior(noise()), plan, noise):
            mx.eval(step.x)
        pictures = [np.array(vae.decode(one).astype(mx.float32)) for one in mx.split(step.x, len(prompts))]
        return np.concatenate(pictures) / 2 + 0.5

    def export(self) -> None:
        side = self.cache.data.size // self.cache.vae.config.downscale
        write_part(self.folder, "unet", self.model.unet, sample_size=side)
        write_part(self.folder, "text_encoder", self.model.text_encoder)
        write_index(self.folder, self.scheduler)

    @property
    def _dtype(self) -> mx.Dtype:
        return self.model.unet.conv_in.weight.dtype

    def _time(self, number: int) -> int:
        """Uniform over all times, but spread evenly over a batch (Kingma et al. 2021, arXiv:2107.00630, I.1)."""
        step, place = divmod(number, self.batch_size)
        first = np.random.default_rng((self.seed, step, 1)).random()
        return int((first + place / self.batch_size) % 1 * len(self.alpha_bars))
