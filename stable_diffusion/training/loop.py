"""The training loop: gradients, accumulated and averaged; a step; progress; checkpoints; resuming from them.

What is trained is a `Task`. All of its randomness comes from the examples' numbers, and these from the step. So an
interrupted run resumes as if nothing had happened, and several processes compute together what one would alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from .. import backend
from ..backend import mx, nn
from .optimisation import Arrays, Layout, State
from .recipe import Recipe, learning_rate
from .sheets import save_curve

STATE, LOG, CURVE = "state.safetensors", "log.jsonl", "curve.png"
Inputs = tuple[np.ndarray, ...]
Loss = tuple[mx.array, dict[str, mx.array]]  # the mean over a batch, and further figures to report


class Task(Protocol):
    """What is trained: a model, numbered examples, a loss, and how to inspect and export it."""

    name: str

    @property
    def model(self) -> nn.Module:
        """The network whose trainable parameters are updated."""

    def prepare(self, step: int) -> None:
        """Compute what the batch of a step needs from other networks."""

    def batch(self, examples: Sequence[int]) -> Inputs:
        """The arguments of `loss` for these examples, always the same. Runs in a thread of its own: no MLX."""

    @property
    def loss(self) -> Callable[..., Loss]:
        """A method that takes what `batch` returns, with the model's current weights."""

    def look(self, path: Path) -> dict[str, float]:
        """Write a sample sheet with the model's current weights to `path`, and return measurements."""

    def export(self) -> None:
        """Write the model with its current weights into the checkpoint folder."""


@dataclass(frozen=True)
class Limit:
    """How long to train: minutes of work, all sessions together, or steps; whichever ends first."""

    minutes: float | None = None
    steps: int | None = None

    def done(self, state: State) -> float:
        """The fraction that is done, 0 to 1."""
        shares = [state.seconds / (60 * self.minutes)] if self.minutes else []
        shares += [state.step / self.steps] if self.steps else []
        return min(1.0, max(shares, default=1.0))


@dataclass(frozen=True)
class Progress:
    """What is reported about a step."""

    task: str
    step: int
    figures: dict[str, float]  # "loss" among them
    rate: float
    done: float  # 0 to 1
    seconds_left: float
    examples_per_second: float


@dataclass(frozen=True)
class Intervals:
    """How often the loop reports (in steps), saves and looks (in seconds)."""

    report: int = 20  # steps
    save: float = 120.0
    look: float = 480.0


INTERVALS = Intervals()


def train(
    task: Task,
    recipe: Recipe,
    limit: Limit,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    intervals: Intervals = INTERVALS,
) -> State:
    """Train until the limit, resuming from the state in `folder` if there is one, and return the final state.

    The state is saved periodically and at the end; sample sheets and exports use the averaged weights. Raises
    `CheckpointError` for the state of another network, and OSError.
    """
    backend.prepare()
    group = mx.distributed.init()
    first = group.rank() == 0
    folder.mkdir(parents=True, exist_ok=True)
    state = resumed(task.model, folder / STATE)
    begun = time.monotonic() - state.seconds
    saved = looked = state.seconds
    batches = _prefetched(task, recipe, state.step, group)
    while (done := _of_first(limit.done(state), group)) < 1:
        started = time.monotonic()
        rate = learning_rate(recipe, state.step, done)
        loss, figures, gradients = averaged_gradients(task, next(batches), group)
        norm = state.update(gradients, recipe, rate)
        mx.eval(state.arrays(), loss, norm, figures)
        set_weights(task.model, state.layout, state.parameters)
        state.seconds = time.monotonic() - begun
        if not first:
            continue
        if state.step % intervals.report == 0 or state.step == 1:
            numbers = {name: _number(value) for name, value in {"loss": loss, **figures, "norm": norm}.items()}
            _log(folder, step=state.step, seconds=round(state.seconds, 1), rate=rate, **numbers)
            seconds = time.monotonic() - started
            report(_progress(task, state, numbers, rate, limit, recipe.batch / seconds))
        if state.seconds - looked > intervals.look:
            look(task, state, folder)
            looked = time.monotonic() - begun
        if state.seconds - saved > intervals.save:
            saved = state.seconds
            state.save(folder / STATE, recipe)
    if first:
        state.save(folder / STATE, recipe)
        look(task, state, folder)
    return state


def averaged_gradients(
    task: Task, parts: Sequence[Inputs], group: mx.distributed.Group
) -> tuple[mx.array, dict[str, mx.array], Arrays]:
    """Loss, figures and gradients, averaged over the parts of a batch, one after another, and over all processes."""
    function = nn.value_and_grad(task.model, task.loss)
    total: Any = None
    for inputs in parts:
        (loss, figures), tree = function(*map(mx.array, inputs))
        part = [loss, figures, {name: g.astype(mx.float32) for name, g in dict(tree_flatten(tree)).items()}]
        total = part if total is None else tree_map(mx.add, total, part)
        mx.eval(total)
    loss, figures, gradients = tree_map(lambda value: value / len(parts), total)
    if group.size() > 1:
        gradients = dict(zip(gradients, nn.average_gradients(list(gradients.values()), group), strict=True))
        loss = mx.distributed.all_sum(loss, group=group) / group.size()
    return loss, figures, gradients


def resumed(model: nn.Module, path: Path) -> State:
    """The state from a file, or a fresh one where there is no file; the model gets its weights."""
    parameters = dict(tree_flatten(model.trainable_parameters()))
    state = State.load(path, parameters) if path.is_file() else State.fresh(parameters)
    mx.eval(state.arrays())
    set_weights(model, state.layout, state.parameters)
    return state


def set_weights(model: nn.Module, layout: Layout, parameters: mx.array) -> None:
    """Give a model the weights to compute with: bfloat16 on a GPU, where it is faster; the state keeps float32."""
    dtype = mx.bfloat16 if backend.has_gpu() else mx.float32
    model.update(tree_unflatten(list(layout.named(parameters.astype(dtype)).items())))


def look(task: Task, state: State, folder: Path) -> None:
    """Sheet, measurements and export with the averaged weights; afterwards the model has its own again."""
    set_weights(task.model, state.layout, state.average)
    _log(folder, step=state.step, seconds=round(state.seconds, 1), **task.look(folder / f"{state.step:06d}.png"))
    task.export()
    if lines := [line for line in read_log(folder) if "loss" in line]:
        steps, values = zip(*((line["step"], line["loss"]) for line in lines), strict=True)
        save_curve(folder / CURVE, steps, values, f"{task.name}: loss")
    set_weights(task.model, state.layout, state.parameters)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, for steps and for sheets; where a step was repeated, only the last line."""
    lines = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return list({(line["step"], "loss" in line): line for line in lines}.values())


def _log(folder: Path, **values: float) -> None:
    with open(folder / LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps({k: float(f"{v:.6g}") for k, v in values.items()}) + "\n")


def _prefetched(task: Task, recipe: Recipe, step: int, group: mx.distributed.Group) -> Iterator[list[Inputs]]:
    """The batches from `step` on, each in its parts; the next one is prepared during the current step."""

    def prepared(step: int) -> list[Inputs]:
        numbers = range(step * recipe.batch, (step + 1) * recipe.batch)[group.rank() :: group.size()]
        return [task.batch(numbers[i :: recipe.accumulate]) for i in range(recipe.accumulate)]

    with ThreadPoolExecutor(1) as pool:
        task.prepare(step)
        coming = pool.submit(prepared, step)
        while True:
            step += 1
            now = coming.result()
            task.prepare(step)
            coming = pool.submit(prepared, step)
            yield now


def _of_first(value: float, group: mx.distributed.Group) -> float:
    """The first process's value, for all of them: their clocks differ."""
    if group.size() == 1:
        return value
    return _number(mx.distributed.all_sum(mx.array(value if group.rank() == 0 else 0.0), group=group))


def _number(value: mx.array) -> float:
    return float(np.array(value))


def _progress(task: Task, state: State, figures: dict[str, float], rate: float, limit: Limit, speed: float) -> Progress:
    done = limit.done(state)
    left = state.seconds * (1 - done) / done if done else float("nan")
    return Progress(task.name, state.step, figures, rate, done, left, speed)
