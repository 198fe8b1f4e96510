"""The training run of ddpm.py: examples, sample sheets, and the folder that a finished model is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mlx.utils import tree_flatten, tree_unflatten

from .. import atomic
from ..backend import mx
from ..errors import CheckpointError, CheckpointNotFoundError, ConfigError
from .ddpm import DDPMConfig, PixelUNet, sample, training_loss
from .labelled import Labelled
from .loop import Inputs, Loss
from .recipe import Recipe
from .sheets import save_sheet

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
NO_LABEL_SHARE = 0.1  # of the examples, so that guidance has something to compare with (Ho and Salimans 2022)
SHEET_ROWS, SHEET_COLUMNS = 4, 10


class DDPMTask:
    """Algorithm 1 of Ho et al. 2020 on labelled pictures; `folder` gets the model."""

    name = "ddpm"

    def __init__(self, data: Labelled, model: PixelUNet, folder: Path, seed: int = 0):
        self.data, self.model, self.folder, self.seed = data, model, folder, seed

    def prepare(self, step: int) -> None:
        """Nothing: the examples need no other network."""

    def batch(self, examples: Sequence[int]) -> Inputs:
        """x_0 and eps (B, H, W, C), t (B,) and labels (B,): lines 2 to 4 of algorithm 1."""
        rows = []
        config = self.model.config
        for number in examples:
            picture, label = self.data.example(number)
            rng = np.random.default_rng((self.seed, number, 1))
            x_0 = picture.astype(np.float32) / 127.5 - 1
            dropped = not config.labels or rng.random() < NO_LABEL_SHARE
            t, eps = rng.integers(config.timesteps), rng.standard_normal(x_0.shape, np.float32)
            rows.append((x_0, t, eps, len(config.labels) if dropped else label))
        return tuple(np.stack(each) for each in zip(*rows, strict=True))

    def loss(self, x_0: mx.array, t: mx.array, eps: mx.array, labels: mx.array) -> Loss:
        """Line 5 of algorithm 1."""
        return training_loss(self.model, x_0, t, eps, labels), {}

    def look(self, path: Path) -> dict[str, float]:
        """Write a sheet of pictures from the same noise every time, a column per label."""
        n = len(self.model.config.labels)
        columns = [i if n else None for i in range(min(n, SHEET_COLUMNS) or SHEET_COLUMNS)]
        *_, (_, x, _) = (_evaluated(step) for step in sample(self.model, columns * SHEET_ROWS))
        pictures = (np.array(x) / 2 + 0.5).reshape(SHEET_ROWS, len(columns), *x.shape[1:])
        save_sheet(path, list(np.broadcast_to(pictures, (*pictures.shape[:-1], 3))))
        return {}

    def export(self) -> None:
        save(self.model, self.folder)


def _evaluated(step: tuple[int, mx.array, mx.array]) -> tuple[int, mx.array, mx.array]:
    mx.eval(step[1])
    return step


def new_task(
    data: Labelled,
    output: Path,
    recipe: Recipe,
    widths: Sequence[int] = DDPMConfig.widths,
    timesteps: int = DDPMConfig.timesteps,
    beta_start: float = DDPMConfig.beta_start,
    beta_end: float = DDPMConfig.beta_end,
    labelled: bool = True,
) -> DDPMTask:
    """Train a new model of these pictures: `output` gets its weights and configuration.

    Raises `ConfigError` for widths or betas that cannot be.
    """
    labels = data.labels if labelled else ()
    config = DDPMConfig(data.size, data.channels, tuple(widths), labels, timesteps, beta_start, beta_end)
    mx.random.seed(recipe.seed)
    return DDPMTask(data, PixelUNet(config), output, recipe.seed)


def save(model: PixelUNet, folder: Path) -> None:
    """Write a model to a folder: its configuration as YAML, and the weights in float16."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(model.config).items()}
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_whole(folder / CONFIG, yaml.safe_dump(values, sort_keys=False))
    tensors = {name: value.astype(mx.float16) for name, value in dict(tree_flatten(model.parameters())).items()}
    with atomic.written(folder / WEIGHTS) as temporary:
        mx.save_safetensors(str(temporary), tensors)


def load(folder: Path) -> PixelUNet:
    """Read what `save` wrote, in float32.

    Raises `CheckpointNotFoundError` where there is nothing, and `CheckpointError` for files of another kind.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointNotFoundError(
            f"There is no model of `train ddpm` at {str(folder)!r}: it would have {CONFIG} and {WEIGHTS}."
        )
    model = PixelUNet(_config(folder / CONFIG))
    try:
        tensors: Any = mx.load(str(folder / WEIGHTS))
    except RuntimeError as error:
        raise CheckpointError(f"{str(folder / WEIGHTS)!r} cannot be read ({error}).") from None
    wanted = {name: value.shape for name, value in dict(tree_flatten(model.parameters())).items()}
    if {name: value.shape for name, value in tensors.items()} != wanted:
        raise CheckpointError(f"{str(folder / WEIGHTS)!r} does not fit the {CONFIG} next to it.")
    model.update(tree_unflatten([(name, value.astype(mx.float32)) for name, value in tensors.items()]))
    mx.eval(model.parameters())
    return model


def _config(path: Path) -> DDPMConfig:
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return DDPMConfig(**known)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{str(path)!r} is not the configuration of such a model ({error}).") from None
