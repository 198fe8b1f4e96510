"""The training run of distil.py: its teacher, its examples, and the checkpoint folder that a student is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import atomic, families
from ..backend import mx
from ..config import SchedulerConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.noise import NoiseStream
from ..errors import InputError, UnsupportedCheckpointError
from ..model_io.checkpoint import Checkpoint
from ..model_io.export import folder_texts
from ..model_io.load_folder import read_index, read_json
from ..model_io.locate import load, locate
from ..model_io.quantised import quantisation_of
from ..recipes import of_checkpoint, of_index
from ..sampler import sampler_by_name
from ..unet import UNet
from .data import Data, Postcards
from .diffusion import COLUMNS, PROMPTS
from .distil import SAMPLER, Guided, distillation_loss, levels_of, nested_grids
from .latents import SHARD, LatentCache
from .loop import Inputs, Loss
from .networks import write_index, write_part
from .recipe import Recipe
from .runs import STATES
from .sheets import save_sheet

FIRST_SHARDS, STEPS_PER_SHARD, MOST_SHARDS = 2, 300, 6  # of latents: they only say where the teacher is asked
GUIDANCE_CHANNELS = 256  # of the embedded weight, as in latent consistency models
DROPOUT = 0.03  # the share of empty texts


class DistilTask:
    """One stage: a student of `steps[1]` steps learns from a teacher of `steps[0]`. `folder` gets the checkpoint."""

    name = "distil"

    def __init__(
        self,
        cache: LatentCache,
        teacher: Checkpoint,
        student: UNet,
        scheduler: SchedulerConfig,
        folder: Path,
        batch: int,
        seed: int = 0,
        steps: tuple[int, int] = (32, 16),
        weights: tuple[float, float, float] = (1.0, 5.0, 8.0),
        prompts: Sequence[str] = (),
    ):
        self.cache, self.teacher, self.model, self.scheduler = cache, teacher, student, scheduler
        self.folder, self.batch_size, self.seed, self.weights, self.prompts = folder, batch, seed, weights, prompts
        self.steps = steps[1]
        self.levels = nested_grids(scheduler, *steps).astype(np.float32)
        self.no_text = cache.tokenizer("")[0][0]

    def prepare(self, step: int) -> None:
        self.cache.grow(self.available(step))

    def available(self, step: int) -> int:
        """How many examples there are at a step: the cache grows on a fixed schedule, the same in every run."""
        count = SHARD * min(MOST_SHARDS, FIRST_SHARDS + step // STEPS_PER_SHARD)
        return min(count, self.cache.limit or count)

    def batch(self, examples: Sequence[int]) -> Inputs:
        """x_0 and eps (B, h, w, C), levels (B, n + 1, 3), guidance weights (B,), and the captions' ids (B, 77).

        The weights are spread between their ends with the usual one as the most frequent.
        """
        rows = []
        for number in examples:
            rng = np.random.default_rng((self.seed, number))
            mean, deviation, ids = self.cache.example(int(rng.integers(self.available(number // self.batch_size))))
            x_0 = mean + deviation * rng.standard_normal(mean.shape, np.float32)
            eps = rng.standard_normal(mean.shape, np.float32)
            w = np.float32(rng.triangular(*self.weights))
            rows.append(
                (x_0, eps, self.levels[self._place(number)], w, self.no_text if rng.random() < DROPOUT else ids)
            )
        return tuple(np.stack(each) for each in zip(*rows, strict=True))

    def loss(self, x_0: mx.array, eps: mx.array, levels: mx.array, w: mx.array, ids: mx.array) -> Loss:
        through = [levels_of(levels[:, i]) for i in range(levels.shape[1])]
        no_text, text = self._states(mx.array(self.no_text)[None]), self._states(ids)
        x = through[0].noised(x_0, eps)
        loss, squares = distillation_loss(Guided(self.model), Guided(self.teacher.unet), x, through, w, text, no_text)
        return loss, {"squares": squares}

    def look(self, path: Path) -> dict[str, float]:
        """Write a sheet with a picture for each prompt, from the same noise every time."""
        pictures = self.generate(self.prompts)
        save_sheet(path, [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)])
        return {}

    def generate(self, prompts: Sequence[str], seed: int = 0) -> np.ndarray:
        """A picture for each prompt in the student's steps, with the usual guidance: (N, H, W, 3) in [0, 1]."""
        student, vae = Guided(self.model), self.cache.vae
        ids = mx.array(self.cache.tokenizer(list(prompts))[0])
        context = student.context(self._states(ids), self._states(ids[:1]))
        w = mx.full((len(prompts),), self.weights[1])
        side = self.cache.data.size // vae.config.downscale
        noise = NoiseStream(range(seed, seed + len(prompts)), (side, side, vae.config.latent_channels))
        plan = sampler_by_name(SAMPLER).plan(self.scheduler, self.steps)
        denoiser = Denoiser(
            lambda x, t, step: student(x, mx.full((len(x),), t), w, context),
            self.scheduler.prediction_type,
            embedded_guidance=True,
        )
        for step in sampler_by_name(SAMPLER).sample(denoiser, plan.prior(noise()), plan, noise):
            mx.eval(step.x)
        pictures = [np.array(vae.decode(one).astype(mx.float32)) for one in mx.split(step.x, len(prompts))]
        return np.concatenate(pictures) / 2 + 0.5

    def export(self) -> None:
        side = self.cache.data.size // self.cache.vae.config.downscale
        write_part(self.folder, "unet", self.model, sample_size=side)
        recipe = {"steps": self.steps, "cfg": self.weights[1], "sampler": SAMPLER}
        write_index(self.folder, self.scheduler, "DDIMScheduler", recipe)

    def _states(self, ids: mx.array) -> mx.array:
        return self.teacher.text_encoders[0](ids).last_hidden_state.astype(mx.float32)

    def _place(self, number: int) -> int:
        """Uniform over the student's steps, stratified within a batch."""
        step, place = divmod(number, self.batch_size)
        first = np.random.default_rng((self.seed, step, 1)).random()
        return int((first + place / self.batch_size) % 1 * self.steps)


def new_task(
    data: Data,
    output: Path,
    recipe: Recipe,
    teacher: str | Path = "postcards-tiny",
    teacher_steps: int = 32,
    student_steps: int = 16,
    least_guidance: float = 1.0,
    guidance: float = 5.0,
    most_guidance: float = 8.0,
    prompts: Sequence[str] = (),
) -> DistilTask:
    """Teach a student, which begins as its teacher: `output` becomes a checkpoint folder.

    Raises `InputError` for steps or weights that do not fit, and for a teacher that cannot be one: quantised, already
    distilled by other means or to another number of steps, or not predicting v.
    """
    if not least_guidance <= guidance <= most_guidance or least_guidance == most_guidance:
        raise InputError(
            f"guidance = {guidance!r} should lie between least_guidance ({least_guidance!r}) and most_guidance "
            f"({most_guidance!r}), which should differ."
        )
    name, folder = locate(teacher, float16=False)
    checkpoint = load(folder, mx.float32)
    check_teacher(name, folder, checkpoint, teacher_steps)
    scheduler = dataclasses.replace(checkpoint.scheduler, timestep_spacing="trailing", set_alpha_to_one=True)
    nested_grids(scheduler, teacher_steps, student_steps)
    copy_parts(checkpoint, folder, output)
    cache = LatentCache(data, checkpoint.vae, checkpoint.tokenizers[0], output / STATES / "latents")
    if not prompts:
        prompts = PROMPTS if isinstance(data, Postcards) else [data.example(i)[1] for i in range(len(PROMPTS))]
    return DistilTask(
        cache,
        checkpoint,
        student_of(checkpoint.unet),
        scheduler,
        output,
        recipe.batch,
        recipe.seed,
        (teacher_steps, student_steps),
        (least_guidance, guidance, most_guidance),
        prompts,
    )


def check_teacher(name: str, folder: Path, checkpoint: Checkpoint, steps: int) -> None:
    """Raise `InputError` or `UnsupportedCheckpointError` for a model that cannot teach `steps` steps."""
    if found := quantisation_of(checkpoint.unet):
        raise InputError(
            f"{name!r} is quantised to {found.bits} bits: give the model that it was made from as teacher."
        )
    family = families.get(checkpoint.family)
    if checkpoint.pooled or checkpoint.unet.in_channels != checkpoint.vae.config.latent_channels:
        raise UnsupportedCheckpointError(
            f"{name!r} ({family.title}) asks for more than latents, time and text: only models of the kind of Stable "
            "Diffusion 1.x and 2.x that paint from text can be distilled."
        )
    is_folder = folder.is_dir()
    said = of_index(read_index(folder), family.key) if is_folder else None
    if said:
        if said.steps != steps:
            raise InputError(f"{name!r} was distilled to {said.steps} steps: give --teacher-steps {said.steps}.")
    else:
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json") if is_folder else None
        few = of_checkpoint(name, family.key, None, scheduler, checkpoint.unet.embeds_guidance)
        if few:
            raise InputError(
                f"{name!r} is already distilled ({few.in_words}) Give the model that it was made from as teacher."
            )
    if checkpoint.scheduler.prediction_type != "v_prediction":
        raise UnsupportedCheckpointError(
            f"{name!r} predicts {checkpoint.scheduler.prediction_type}; a teacher should predict v, which tells x_0 "
            "even where all is noise (Salimans and Ho 2022, section 4)."
        )


def student_of(teacher: UNet) -> UNet:
    """A U-Net with the teacher's weights that takes guidance as an input, which at first changes nothing."""
    channels = teacher.config.time_cond_proj_dim or GUIDANCE_CHANNELS
    student = UNet(dataclasses.replace(teacher.config, time_cond_proj_dim=channels))
    if not teacher.embeds_guidance:
        student.time_embedding.cond_proj.weight = mx.zeros_like(student.time_embedding.cond_proj.weight)
    student.update(teacher.parameters())
    return student


def copy_parts(checkpoint: Checkpoint, source: Path, output: Path) -> None:
    """Write the parts that a student shares with its teacher: text encoder, tokenizer and VAE."""
    write_part(output, "text_encoder", checkpoint.text_encoders[0])
    write_part(output, "vae", checkpoint.vae)
    for name, content in folder_texts(checkpoint, source, own=False).items():
        if name.startswith("tokenizer/"):
            atomic.write_whole(output / name, content)
