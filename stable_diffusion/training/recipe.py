"""The numbers of a training run, and its learning rate over time. No MLX: a page or `--help` can show them."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
    average_decay: float = 0.999
    seed: int = 0


def learning_rate(recipe: Recipe, step: int, done: float) -> float:
    """Linear warm-up over steps, times half a cosine over the fraction of the run that is `done`, 0 to 1."""
    cosine = recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return recipe.learning_rate * cosine * min(1.0, (step + 1) / recipe.warm_up)
