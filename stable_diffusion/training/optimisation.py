"""AdamW, the learning rate over time, and the average of the weights; all that a training must keep to go on exactly.

Parameters are flat here: name -> array, so that everything is one line for all of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ops
from ..backend import mx
from ..errors import CheckpointError

Arrays = dict[str, mx.array]
STATE_PARTS = ("parameters", "average", "first_moment", "second_moment")


@dataclass(frozen=True)
class Recipe:
    """How the weights are moved. One step takes `batch` examples, in `accumulate` parts one after another."""

    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    final_rate: float = 0.02  # of the cosine, as a share of learning_rate
    warm_up: int = 200  # steps
    beta_1: float = 0.9
    beta_2: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0  # the largest norm of a gradient
    average_decay: float = 0.999
    seed: int = 0


def learning_rate(recipe: Recipe, step: int, done: float) -> float:
    """A linear warm-up over steps, times half a cosine over the share of the time that is `done`, 0 to 1."""
    cosine = recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return recipe.learning_rate * cosine * min(1.0, (step + 1) / recipe.warm_up)


@dataclass
class State:
    """The weights, their average and the optimiser's moments after `step` steps and so many `seconds`."""

    parameters: Arrays
    average: Arrays
    first_moment: Arrays
    second_moment: Arrays
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def fresh(cls, parameters: Arrays) -> State:
        """The state of a training before its first step."""
        zeros = {name: mx.zeros_like(value) for name, value in parameters.items()}
        return cls(dict(parameters), dict(parameters), zeros, dict(zeros))

    def update(self, gradients: Arrays, recipe: Recipe, rate: float) -> mx.array:
        """One step of AdamW (Loshchilov and Hutter 2019, algorithm 2), then of the average; returns the norm, lazy.

        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  p <- p - rate (m' / (sqrt(v') + 1e-8) + decay p), where
        ' corrects for the zeros that m and v began as. Vectors (biases, norms) do not decay.
        """
        norm = mx.sqrt(sum((mx.square(g).sum() for g in gradients.values()), mx.array(0.0)))
        shrink = mx.minimum(1.0, recipe.clip / (norm + 1e-12))
        self.step += 1
        first, second = 1 - recipe.beta_1**self.step, 1 - recipe.beta_2**self.step
        keep = min(recipe.average_decay, self.step / (self.step + 10))
        for name, g in gradients.items():
            g = g * shrink
            p = self.parameters[name]
            m = self.first_moment[name] = recipe.beta_1 * self.first_moment[name] + (1 - recipe.beta_1) * g
            v = self.second_moment[name] = recipe.beta_2 * self.second_moment[name] + (1 - recipe.beta_2) * g * g
            v = v * (1 / second) + 1e-16
            p = p * (1 - rate * recipe.weight_decay) if p.ndim > 1 else p
            self.parameters[name] = p = p - (rate / first) * m * ops.rsqrt(v)
            self.average[name] = p + keep * (self.average[name] - p)
        return norm

    def arrays(self) -> list[Arrays]:
        return [getattr(self, part) for part in STATE_PARTS]

    def save(self, path: Path, recipe: Recipe) -> None:
        """Write everything to one file, which is whole or not there."""
        tensors = {f"{part}:{name}": value for part in STATE_PARTS for name, value in getattr(self, part).items()}
        told = {"step": self.step, "seconds": self.seconds, "recipe": dataclasses.asdict(recipe)}
        temporary = path.with_name(f".{path.stem}.new.safetensors")
        mx.save_safetensors(str(temporary), tensors, {"training": json.dumps(told)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path, names: set[str]) -> State:
        """Read what `save` wrote. Raises `CheckpointError` for a file of another network, or of something else."""
        try:
            loaded: Any = mx.load(str(path), return_metadata=True)
            tensors, told = loaded[0], json.loads(loaded[1]["training"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{str(path)!r} is no state of a training ({error}): move it away") from None
        parts: dict[str, Arrays] = {part: {} for part in STATE_PARTS}
        for key, value in tensors.items():
            part, _, name = key.partition(":")
            parts.setdefault(part, {})[name] = value
        if any(set(part) != names for part in parts.values()):
            raise CheckpointError(
                f"{str(path)!r} holds the training of another network: give another --output, or move it away"
            )
        return cls(**parts, step=told["step"], seconds=told["seconds"])
