"""Training the diffusion: Denoising Diffusion Probabilistic Models (Ho et al. 2020, arXiv:2006.11239), algorithm 1.

    x_0 ~ data,  t ~ uniform,  eps ~ N(0, 1),  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps       (equation 4)
    loss = w(t) |target - U-Net(x_t, t, text)|^2,  target = eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0

x_0 are latents (Rombach et al. 2022). One caption in ten is dropped, for classifier-free guidance (Ho and Salimans
2022). v is from Salimans and Ho 2022; w(t) from Hang et al. 2023 (`min_snr_weights`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Sized
from pathlib import Path

import numpy as np

from ..backend import mx
from ..config import CLIPTextConfig, SchedulerConfig, UNetConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.noise import NoiseStream
from ..diffusion.schedule import NoiseSchedule
from ..sampler import sampler_by_name
from ..text.tokenizer import Tokenizer
from .data import Data, Postcards
from .latents import SHARD, LatentCache
from .loop import Inputs, Loss
from .networks import SCHEDULER, TEXT_ENCODER, UNET, TextToLatents, load_autoencoder, write_index, write_part
from .recipe import Recipe
from .runs import STATES
from .sheets import save_sheet
from .vocabulary import write_tokenizer

FIRST_SHARDS, STEPS_PER_SHARD = 4, 250  # latents at the first step, and the steps until one shard is added
MOST_SHARDS = 80
COLUMNS = 8  # in a sample sheet
CAPTIONS = 2000  # from which the vocabulary is learnt
PROMPTS = (  # for the sample sheets of postcards
    "a red house on green hills at sunset, with clouds",
    "a blue tent in snowy mountains at night, with stars",
    "a white lighthouse by the sea by day, with birds",
    "a green cactus in the desert at sunset, with the sun",
    "a yellow sailboat on the sea at night, with the moon",
    "a purple hot air balloon over the desert by day, a clear sky",
    "a pink windmill on green hills by day, with a rainbow",
    "an orange tree in snowy mountains at sunset, with birds",
    "a black house by the sea at night, a clear sky",
    "a white tent on green hills by day, with the sun",
    "a red sailboat on the sea by day, with a rainbow",
    "a blue windmill in snowy mountains at sunset, with clouds",
    "a yellow house in the desert at night, with stars",
    "an orange hot air balloon over the sea at sunset, with birds",
    "a purple cactus in the desert by day, with clouds",
    "a green tree on green hills at night, with the moon",
)


def min_snr_weights(alpha_bars: np.ndarray, prediction_type: str, gamma: float) -> np.ndarray:
    """The loss weight at each time, (T,), which caps the effective weight of x_0's squared error at `gamma`.

    eps's squared error is x_0's times SNR = abar / (1 - abar), and v's is x_0's times SNR + 1 (Salimans and Ho 2022,
    section 4). With that factor the weight is min(factor, gamma) / factor (Hang et al. 2023, arXiv:2303.09556, 3.4).
    """
    snr = alpha_bars / (1 - alpha_bars) + (prediction_type == "v_prediction")
    return np.minimum(snr, gamma) / snr


class DiffusionTask:
    """The task of the module's docstring. `folder` gets the checkpoint's unet/, text_encoder/ and scheduler/."""

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
        """x_0 and eps (B, h, w, C), t (B,), and the captions' token ids (B, 77)."""
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
        """How many examples there are at a step: the cache grows on a fixed schedule, the same in every run."""
        count = SHARD * min(MOST_SHARDS, FIRST_SHARDS + step // STEPS_PER_SHARD)
        return min(count, self.cache.limit or count)

    def look(self, path: Path) -> dict[str, float]:
        """Write a sheet with a picture for each prompt, from the same noise every time."""
        pictures = self.generate(self.prompts)
        save_sheet(path, [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)])
        return {}

    def generate(self, prompts: Sequence[str], steps: int = 20, cfg_weight: float = 5.0, seed: int = 0) -> np.ndarray:
        """A picture for each prompt by Euler's method: (N, H, W, 3) in [0, 1]."""
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
        """Uniform over all times, stratified within a batch (Kingma et al. 2021, arXiv:2107.00630, I.1)."""
        step, place = divmod(number, self.batch_size)
        first = np.random.default_rng((self.seed, step, 1)).random()
        return int((first + place / self.batch_size) % 1 * len(self.alpha_bars))


def new_task(
    data: Data,
    output: Path,
    recipe: Recipe,
    vae: str | Path | None = None,
    prompts: Sequence[str] = (),
    sizes: tuple[CLIPTextConfig, UNetConfig] = (TEXT_ENCODER, UNET),
) -> DiffusionTask:
    """Train a new text encoder and U-Net: `output` becomes a checkpoint folder.

    `vae` is a vae/ folder, by default the one in `output`; another is copied there. The vocabulary is learnt from the
    data's captions first, unless `output` has one. Raises `CheckpointNotFoundError` where there is no autoencoder.
    """
    autoencoder = load_autoencoder(Path(vae or output / "vae"))
    if vae:
        write_part(output, "vae", autoencoder)
    if not (output / "tokenizer" / "merges.txt").is_file():
        count = min(CAPTIONS, len(data)) if isinstance(data, Sized) else CAPTIONS
        write_tokenizer(output / "tokenizer", (data.example(i)[1] for i in range(count)))
    tokenizer = Tokenizer.from_files(output / "tokenizer")
    text, unet = sizes
    text = dataclasses.replace(text, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    cache = LatentCache(data, autoencoder, tokenizer, output / STATES / "latents")
    if not prompts:
        prompts = PROMPTS if isinstance(data, Postcards) else [data.example(i)[1] for i in range(len(PROMPTS))]
    model = TextToLatents(text, unet, recipe.seed)
    return DiffusionTask(cache, model, SCHEDULER, output, recipe.batch, recipe.seed, prompts)
