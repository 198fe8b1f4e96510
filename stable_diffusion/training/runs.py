"""A whole training, from the data to a checkpoint's folder: what the command calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence, Sized
from pathlib import Path

from .. import ops
from ..backend import mx
from ..config import AutoencoderConfig, CLIPTextConfig, UNetConfig
from ..errors import CheckpointNotFoundError
from ..model_io import names
from ..model_io.load_folder import read_json
from ..model_io.strict import load_weights
from ..text.tokenizer import Tokenizer
from ..vae import Autoencoder
from . import networks
from .data import Data, Postcards
from .diffusion import DiffusionTask
from .latents import LatentCache
from .loop import INTERVALS, Intervals, Limit, Progress, train
from .optimisation import Recipe, State
from .vae import AutoencoderTask, DecoderTask
from .vocabulary import write_tokenizer

STATES = "training"  # the folder beside the checkpoint's parts that holds states, logs, sheets and latents
RECIPES = {
    "vae": Recipe(batch=4, learning_rate=1e-3, warm_up=100),
    "decoder": Recipe(batch=4, learning_rate=5e-4, warm_up=100),
    "diffusion": Recipe(batch=16, learning_rate=7e-4, warm_up=200, average_decay=0.998),
}
CAPTIONS = 2000  # that the vocabulary is learnt from
PROMPTS = (
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


def train_vae(
    data: Data,
    output: Path,
    limit: Limit,
    recipe: Recipe = RECIPES["vae"],
    report: Callable[[Progress], None] = lambda progress: None,
    config: AutoencoderConfig = networks.VAE,
    intervals: Intervals = INTERVALS,
) -> State:
    """Train an autoencoder, or go on with it: `output` gets vae/ and training/vae/. Raises as `loop.train` does."""
    with ops.differentiable():
        model = networks.new_autoencoder(config, recipe.seed)
        task = AutoencoderTask(data, model, output, recipe.batch, recipe.seed)
        return train(task, recipe, limit, output / STATES / task.name, report, intervals)


def train_decoder(
    data: Data,
    output: Path,
    limit: Limit,
    recipe: Recipe = RECIPES["decoder"],
    report: Callable[[Progress], None] = lambda progress: None,
    intervals: Intervals = INTERVALS,
) -> State:
    """Go on with the decoder of `output` alone: the latents, and a diffusion of them, stay what they are.

    Raises `CheckpointNotFoundError` where there is no autoencoder, and as `loop.train` does.
    """
    with ops.differentiable():
        task = DecoderTask(data, load_autoencoder(output / "vae"), output, recipe.batch, recipe.seed)
        return train(task, recipe, limit, output / STATES / task.name, report, intervals)


def train_diffusion(
    data: Data,
    output: Path,
    limit: Limit,
    recipe: Recipe = RECIPES["diffusion"],
    report: Callable[[Progress], None] = lambda progress: None,
    vae: Path | None = None,
    prompts: Sequence[str] = (),
    intervals: Intervals = INTERVALS,
    sizes: tuple[CLIPTextConfig, UNetConfig] = (networks.TEXT_ENCODER, networks.UNET),
) -> State:
    """Train a text encoder and a U-Net, or go on with them: `output` becomes a checkpoint's folder.

    `vae` is a vae/ folder, by default that of `output`. The vocabulary is learnt from the data's captions first.
    Raises `CheckpointNotFoundError` where there is no autoencoder, and as `loop.train` does.
    """
    with ops.differentiable():
        autoencoder = load_autoencoder(vae or output / "vae")
    if vae:
        networks.write_part(output, "vae", autoencoder)
    if not (output / "tokenizer" / "merges.txt").is_file():
        write_tokenizer(output / "tokenizer", (data.example(i)[1] for i in range(_captions(data))))
    tokenizer = Tokenizer.from_files(output / "tokenizer")
    text, unet = sizes
    text = dataclasses.replace(text, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    cache = LatentCache(data, autoencoder, tokenizer, output / STATES / "latents")
    with ops.differentiable():
        model = networks.TextToLatents(text, unet, recipe.seed)
        task = DiffusionTask(
            cache, model, networks.SCHEDULER, output, recipe.batch, recipe.seed, prompts or _prompts(data)
        )
        return train(task, recipe, limit, output / STATES / task.name, report, intervals)


def load_autoencoder(folder: Path) -> Autoencoder:
    """A vae/ folder's network. Raises `CheckpointNotFoundError`, and what loading a checkpoint raises."""
    file = folder / "diffusion_pytorch_model.safetensors"
    if not file.is_file():
        raise CheckpointNotFoundError(
            f"There is no autoencoder at {str(folder)!r}: train one first (train vae), or name one with --vae."
        )
    model = Autoencoder(AutoencoderConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json")))
    load_weights(model, [file], names.VAE, mx.float32)
    return model


def _captions(data: Data) -> int:
    return min(CAPTIONS, len(data)) if isinstance(data, Sized) else CAPTIONS


def _prompts(data: Data) -> Sequence[str]:
    return PROMPTS if isinstance(data, Postcards) else [data.example(i)[1] for i in range(len(PROMPTS))]
