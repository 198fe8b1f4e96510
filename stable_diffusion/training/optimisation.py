"""AdamW and the average of the weights: everything that a run must keep to resume exactly."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import atomic, backend, ops
from ..backend import mx
from ..errors import CheckpointError, TrainingError
from ..model_io.safetensors_file import write_safetensors
from .recipe import Recipe

Arrays = dict[str, mx.array]
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
STATE_PARTS = ("parameters", "average", "first_moment", "second_moment")


def weights_dtype(precision: str) -> mx.Dtype:
    """The type that networks compute in; "auto" is bfloat16 on a GPU, where it is faster, and float32 elsewhere."""
    return DTYPES.get(precision, mx.bfloat16 if backend.has_gpu() else mx.float32)


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in one long vector: matrices and kernels, which decay, before biases and norms.

    One vector, because a step is about twenty operations: on hundreds of small arrays, launching them would dominate.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, parameters: Arrays) -> Layout:
        return cls({name: parameters[name].shape for name in sorted(parameters, key=lambda n: parameters[n].ndim < 2)})

    def flat(self, arrays: Arrays) -> mx.array:
        return mx.concatenate([arrays[name].reshape(-1) for name in self.shapes]).astype(mx.float32)

    def named(self, flat: mx.array) -> Arrays:
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes.values()))
        parts = mx.split(flat, ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def decaying(self) -> int:
        """How many elements at the start of the vector belong to matrices and kernels."""
        return sum(math.prod(shape) for shape in self.shapes.values() if len(shape) > 1)


@dataclass
class State:
    """The weights, their average and the optimiser's moments after `step` steps and `seconds` of work; float32."""

    layout: Layout
    parameters: mx.array
    average: mx.array
    first_moment: mx.array
    second_moment: mx.array
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def fresh(cls, parameters: Arrays) -> State:
        """The state before the first step."""
        layout = Layout.of(parameters)
        flat = layout.flat(parameters)
        return cls(layout, flat, flat + 0.0, mx.zeros_like(flat), mx.zeros_like(flat))

    def update(self, gradients: Arrays, recipe: Recipe, rate: float) -> mx.array:
        """One step of AdamW, then of the average; returns the gradients' norm.

        Biases and norms do not decay. Gradients whose norm exceeds `recipe.clip` are scaled down to it. Raises
        `TrainingError`, and changes nothing, if the norm is not finite.
        """
        g = self.layout.flat(gradients)
        norm = mx.sqrt(mx.square(g).sum())
        if not bool(mx.isfinite(norm)):
            raise TrainingError(f"The gradients of step {self.step + 1} are not finite.")
        self.step += 1
        numbers = ops.AdamW(
            beta_1=recipe.beta_1,
            beta_2=recipe.beta_2,
            rate=rate,
            decay=recipe.weight_decay,
            decaying=self.layout.decaying(),
            step=self.step,
            keep=min(recipe.average_decay, self.step / (self.step + 10)),
        )
        shrink = mx.minimum(1.0, recipe.clip / (norm + 1e-12))
        self.parameters, self.average, self.first_moment, self.second_moment = ops.adamw(
            self.parameters, self.average, self.first_moment, self.second_moment, g, shrink, numbers
        )
        return norm

    def arrays(self) -> list[mx.array]:
        return [getattr(self, part) for part in STATE_PARTS]

    def save(self, path: Path, recipe: Recipe) -> None:
        """Write everything to one file, atomically. Raises OSError."""
        tensors = {
            f"{part}:{name}": value
            for part in STATE_PARTS
            for name, value in self.layout.named(getattr(self, part)).items()
        }
        progress = {"step": self.step, "seconds": self.seconds, "recipe": dataclasses.asdict(recipe)}
        with atomic.written(path) as temporary:
            write_safetensors(temporary, tensors, {"training": json.dumps(progress)}, lambda count: None)

    @classmethod
    def load(cls, path: Path, parameters: Arrays) -> State:
        """Read what `save` wrote for these parameters. Raises `CheckpointError` for any other file."""
        try:
            loaded: Any = mx.load(str(path), return_metadata=True)
            tensors, progress = loaded[0], json.loads(loaded[1]["training"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{str(path)!r} is not the state of a training run ({error}): move it away") from None
        parts: dict[str, Arrays] = {part: {} for part in STATE_PARTS}
        for key, value in tensors.items():
            part, _, name = key.partition(":")
            parts.setdefault(part, {})[name] = value
        layout = Layout.of(parameters)
        if any({name: value.shape for name, value in part.items()} != layout.shapes for part in parts.values()):
            raise CheckpointError(
                f"{str(path)!r} holds the training state of another network: choose another --output, or move it away"
            )
        flat = {part: layout.flat(values) for part, values in parts.items()}
        return cls(layout, **flat, step=progress["step"], seconds=progress["seconds"])
