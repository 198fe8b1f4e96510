"""The numbers of a training run, and its learning rate over time. No MLX: a page or `--help` can show them."""

from __future__ import annotations

import math
from dataclasses import dataclass

PRECISIONS = ("auto", "float32", "bfloat16", "float16")  # auto: bfloat16 on a GPU, where it is faster, else float32


@dataclass(frozen=True)
class Recipe:
    """How the weights are moved. A step takes `batch` examples, in `accumulate` parts one after another."""

    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    final_rate: float = 0.02  # where the cosine ends, as a fraction of learning_rate
    warm_up: int = 200  # steps
    beta_1: float = 0.9
    beta_2: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0  # the largest norm of a gradient
    average_decay: float = 0.999  # 0 keeps no average
    seed: int = 0
    precision: str = "auto"  # that networks compute in; the state always keeps float32


@dataclass(frozen=True)
class Intervals:
    """How often the loop reports, saves and looks."""

    report: int = 20  # steps
    save: float = 120.0  # seconds
    look: float = 480.0  # seconds
    look_steps: int = 0  # steps; 0: not by steps


def learning_rate(recipe: Recipe, step: int, done: float) -> float:
    """Linear warm-up over steps, times half a cosine over the fraction of the run that is `done`, 0 to 1."""
    cosine = recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return recipe.learning_rate * cosine * min(1.0, (step + 1) / recipe.warm_up)
