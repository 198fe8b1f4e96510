"""The training loop: gradients, accumulated and averaged; a step; progress; checkpoints; resuming from them.

What is trained is a `Task`. All of its randomness comes from the examples' numbers, and these from the step. So an
interrupted run resumes as if nothing had happened, and several processes compute together what one would alone.
"""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from .. import backend, ops
from ..backend import mx, nn
from ..errors import TrainingError
from .optimisation import Arrays, Layout, State, weights_dtype
from .recipe import Intervals, Recipe, learning_rate
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
    sheet: Path | None = None  # the newest sample sheet


FULL = (errno.ENOSPC, errno.EDQUOT)
LOSS_SCALE = 4096.0  # in float16, whose gradients would vanish (Micikevicius et al. 2018, arXiv:1710.03740, 3.2)


def _go_on() -> bool:
    return True


INTERVALS = Intervals()


def train(
    task: Task,
    recipe: Recipe,
    limit: Limit,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    intervals: Intervals = INTERVALS,
    between: Callable[[], bool] = _go_on,
) -> State:
    """Train until the limit, resuming from the state in `folder` if there is one, and return the final state.

    The state is saved periodically and at the end; sample sheets and exports use the averaged weights.

    `between` is called ahead of every step, in the run's own thread. It may take its time, which the run does not
    count, to let another job of that thread go first; the operations' usual forms are current meanwhile. Where it
    returns False the run saves its state and ends as it would at its limit; repeating the run resumes it. `report` may
    raise to stop at once. Raises `CheckpointError` for the state of another network, `TrainingError` where the
    loss is no longer finite (the last good state is saved) or the disk is full (the last saved state is whole), and
    OSError.
    """
    backend.prepare()
    run = _Run(task, recipe, limit, folder, intervals, mx.distributed.init())
    try:
        run.train(report, between)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise TrainingError(
            f"The disk of {str(folder)!r} is full. What was saved there last is whole: make room, and repeat the "
            f"command to resume after it."
        ) from None
    return run.state


class _Run:
    """One session of a training, and its state."""

    def __init__(
        self, task: Task, recipe: Recipe, limit: Limit, folder: Path, intervals: Intervals, group: mx.distributed.Group
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.task, self.recipe, self.limit, self.folder, self.intervals = task, recipe, limit, folder, intervals
        self.group, self.first = group, group.rank() == 0
        self.dtype = weights_dtype(recipe.precision)
        self.state = resumed(task.model, folder / STATE, self.dtype)
        self.begun = time.monotonic() - self.state.seconds
        self.saved = self.looked = self.state.seconds
        self.sheet: Path | None = None

    def train(self, report: Callable[[Progress], None], between: Callable[[], bool]) -> None:
        task, state = self.task, self.state
        batches = _prefetched(task, self.recipe, state.step, self.group)
        while (done := _of_first(self.limit.done(state), self.group)) < 1:
            if not self._goes_on(between):
                break
            started = time.monotonic()
            rate = learning_rate(self.recipe, state.step, done)
            try:
                loss, figures, norm = self._step(next(batches), rate)
            except TrainingError as error:
                self._stop(error, rate)
            set_weights(task.model, state.layout, state.parameters, self.dtype)
            state.seconds = time.monotonic() - self.begun
            if self.first:
                self._after(report, {"loss": loss, **figures, "norm": norm}, rate, started)
        if self.first:
            state.save(self.folder / STATE, self.recipe)
            self._look()

    def _goes_on(self, between: Callable[[], bool]) -> bool:
        """Ask the first process's `between`; the time that it takes is not the run's."""
        paused = time.monotonic()
        with ops.use("usual"):
            goes_on = between() if self.first else True
        self.begun += time.monotonic() - paused
        return bool(_of_first(float(goes_on), self.group))

    def _step(self, parts: Sequence[Inputs], rate: float) -> tuple[mx.array, dict[str, mx.array], mx.array]:
        """One step; in float16 with the largest scale of the loss, by halves, at which the gradients are finite."""
        scale = LOSS_SCALE if self.dtype == mx.float16 else 1.0
        while True:
            loss, figures, gradients = averaged_gradients(self.task, parts, self.group, scale)
            if not math.isfinite(_number(loss)):
                raise TrainingError(f"The loss of step {self.state.step + 1} is not finite.")
            try:
                norm = self.state.update(gradients, self.recipe, rate)
            except TrainingError:
                if scale == 1:
                    raise
                scale /= 2
                continue
            mx.eval(self.state.arrays(), norm, figures)
            return loss, figures, norm

    def _stop(self, error: TrainingError, rate: float) -> None:
        """Save the state ahead of a step that failed, and say what to change."""
        good = all(bool(mx.isfinite(each).all()) for each in self.state.arrays())
        if self.first and good:
            self.state.save(self.folder / STATE, self.recipe)
        half = ", or compute in float32" * (self.dtype != mx.float32)
        raise TrainingError(
            f"{error} The state after step {self.state.step} is kept: lower the learning rate (it was {rate:.2g}), "
            f"for example to {self.recipe.learning_rate / 4:.2g}{half}, and repeat the command. If that does not "
            f"help, delete {str(self.folder)!r} and begin again."
        ) from None

    def _after(
        self, report: Callable[[Progress], None], figures: dict[str, mx.array], rate: float, started: float
    ) -> None:
        """What follows a step: the report, the sample sheet, the state, each in its interval."""
        state, intervals = self.state, self.intervals
        if state.step % intervals.report == 0 or state.step == 1:
            numbers = {name: _number(value) for name, value in figures.items()}
            _log(self.folder, step=state.step, seconds=round(state.seconds, 1), rate=rate, **numbers)
            speed = self.recipe.batch / (time.monotonic() - started)
            report(_progress(self.task, state, numbers, rate, self.limit, speed, self.sheet))
        by_steps = intervals.look_steps and state.step % intervals.look_steps == 0
        if state.seconds - self.looked > intervals.look or (by_steps and self.limit.done(state) < 1):
            self._look()
        if state.seconds - self.saved > intervals.save:
            self.saved = state.seconds
            state.save(self.folder / STATE, self.recipe)

    def _look(self) -> None:
        self.sheet = look(self.task, self.state, self.folder, self.dtype) or self.sheet
        self.looked = time.monotonic() - self.begun


def averaged_gradients(
    task: Task, parts: Sequence[Inputs], group: mx.distributed.Group, scale: float = 1.0
) -> tuple[mx.array, dict[str, mx.array], Arrays]:
    """Loss, figures and gradients, averaged over the parts of a batch, one after another, and over all processes.

    The loss is multiplied by `scale` while it is differentiated.
    """

    def scaled(*inputs: mx.array) -> Loss:
        loss, figures = task.loss(*inputs)
        return loss * scale, figures

    function = nn.value_and_grad(task.model, task.loss if scale == 1 else scaled)
    total: Any = None
    for inputs in parts:
        (loss, figures), tree = function(*map(mx.array, inputs))
        part = [loss, figures, {name: g.astype(mx.float32) for name, g in dict(tree_flatten(tree)).items()}]
        total = part if total is None else tree_map(mx.add, total, part)
        mx.eval(total)
    loss, figures, gradients = tree_map(lambda value: value / len(parts), total)
    if scale != 1:
        loss, gradients = loss / scale, {name: g / scale for name, g in gradients.items()}
    if group.size() > 1:
        gradients = dict(zip(gradients, nn.average_gradients(list(gradients.values()), group), strict=True))
        loss = mx.distributed.all_sum(loss, group=group) / group.size()
    return loss, figures, gradients


def resumed(model: nn.Module, path: Path, dtype: mx.Dtype | None = None) -> State:
    """The state from a file, or a fresh one where there is no file; the model gets its weights."""
    parameters = dict(tree_flatten(model.trainable_parameters()))
    state = State.load(path, parameters) if path.is_file() else State.fresh(parameters)
    mx.eval(state.arrays())
    set_weights(model, state.layout, state.parameters, dtype)
    return state


def set_weights(model: nn.Module, layout: Layout, parameters: mx.array, dtype: mx.Dtype | None = None) -> None:
    """Give a model the weights to compute with, by default in this machine's type; the state keeps float32."""
    weights = parameters.astype(dtype or weights_dtype("auto"))
    model.update(tree_unflatten(list(layout.named(weights).items())))


def look(task: Task, state: State, folder: Path, dtype: mx.Dtype | None = None) -> Path | None:
    """Sheet, measurements and export with the averaged weights; afterwards the model has its own again.

    Returns the sheet, if the task wrote one.
    """
    set_weights(task.model, state.layout, state.average, dtype)
    sheet = folder / f"{state.step:06d}.png"
    figures = task.look(sheet)
    task.export()
    _log(folder, step=state.step, seconds=round(state.seconds, 1), **figures)
    if lines := [line for line in read_log(folder) if "loss" in line]:
        steps, values = zip(*((line["step"], line["loss"]) for line in lines), strict=True)
        save_curve(folder / CURVE, steps, values, f"{task.name}: loss")
    set_weights(task.model, state.layout, state.parameters, dtype)
    return sheet if sheet.is_file() else None


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


def _progress(
    task: Task,
    state: State,
    figures: dict[str, float],
    rate: float,
    limit: Limit,
    speed: float,
    sheet: Path | None = None,
) -> Progress:
    done = limit.done(state)
    left = state.seconds * (1 - done) / done if done else float("nan")
    return Progress(task.name, state.step, figures, rate, done, left, speed, sheet)
