"""Jobs, their states and pictures, as plain objects that any thread may read."""

import dataclasses
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from ..attention import PictureMaps
from ..checks import MAX_SEED
from ..compare.plan import Cell, Plan
from ..morph import Morph
from ..prompts import prepared
from ..record.used import Used
from ..request import Request

QUICK_STEP = 0.5  # seconds

Report = Callable[[str, float | None], None]  # a message, and the fraction done if it is known


class Cancelled(Exception):
    """Raised in the worker's thread to stop a cancelled job."""


class State(StrEnum):
    """The state of a job or task; the values are words that a page can show."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAUSED = "paused"  # lets others go first
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Frame:
    """One recorded denoising step, small enough to keep them all; pages draw it.

    Holds x_t and the current estimate of x_0, (h, w, C) float16, and a JPEG of the estimate if it was decoded, in full
    or as a draft.
    """

    index: int  # 0 .. total
    total: int
    sigma: float
    latents: np.ndarray
    denoised: np.ndarray
    decoded: bytes | None = None
    draft: bytes | None = None
    pass_number: int = 1
    n_passes: int = 1  # 2 with a hires fix
    begins: bool = False  # what a pass begins with, before any estimate: `denoised` is x_t as well

    @property
    def n_bytes(self) -> int:
        """Its size in memory."""
        return self.latents.nbytes + self.denoised.nbytes + len(self.decoded or b"") + len(self.draft or b"")


@dataclass(eq=False)
class Picture:
    """One picture of a job: its steps so far and, when finished, its file (or its PNG bytes if saving failed)."""

    frames: list[Frame] = field(default_factory=list)
    seed: int | None = None
    seeds: dict[str, Any] = field(default_factory=dict)  # the engine's arguments
    used: Used | None = None  # by the engine, once it has begun
    size: tuple[int, int] = (0, 0)
    path: Path | None = None
    unsaved: bytes | None = None
    skipped: bool = False
    attention: PictureMaps | None = None  # where each word acts, if asked for
    batch: tuple[int, int] = (1, 0)  # how many were painted together, and its place among them
    first: np.ndarray | None = None  # latents (h, w, C) that the first of two passes painted, while in the second

    @property
    def n_bytes(self) -> int:
        """What is recorded of it, in memory."""
        maps = 0 if self.attention is None else self.attention.n_bytes
        return maps + sum(frame.n_bytes for frame in self.frames)

    def forget_steps(self) -> None:
        """Keep only the last step."""
        self.frames, self.attention = self.frames[-1:], None

    @property
    def variation_seed(self) -> int | None:
        """The seed of the variation, if it is one."""
        return self.seeds.get("variation_seed")

    @property
    def estimate(self) -> Frame | None:
        """The latest step that has an estimate of x_0; None before the first one."""
        return next((frame for frame in reversed(self.frames) if not frame.begins), None)

    @property
    def visible(self) -> bool:
        """Whether there is anything to show of it; one that was to stay as it was has no steps."""
        return self.estimate is not None or self.finished

    @property
    def finished(self) -> bool:
        """Whether there is a picture to show and download."""
        return self.path is not None or self.unsaved is not None

    @property
    def there(self) -> bool:
        """Whether it is finished, and its file still there."""
        return self.unsaved is not None or (self.path is not None and self.path.is_file())


class Work:
    """Something for the worker to do. Only its thread writes here (but for `cancel_event`); any thread may read.

    `model` names the model it needs, if any; `options` say how to load it. `needs` are all models with their options.
    """

    yields = False  # whether others go first, also once it runs: see Worker.give_way

    def __init__(self, model: str | None, options: Mapping[str, Any] | None = None) -> None:
        self.id = secrets.token_hex(6)
        self.model = model
        self.options = dict(options or {})
        self.needs = [] if model is None else [(model, self.options)]
        self.state = State.QUEUED
        self.note = ""  # what it is doing: "Loading ..."
        self.note_fraction: float | None = None
        self.error = ""
        self.refused = False  # failed for what was asked for, not for this machine or its files
        self.started: float | None = None
        self.ended: float | None = None
        self.cancel_event = threading.Event()

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (State.QUEUED, State.LOADING, State.RUNNING, State.PAUSED)

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop (which it does after the current step)."""
        return self.cancel_event.is_set()

    @property
    def elapsed(self) -> float:
        """Seconds since the worker started it."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started

    @property
    def fraction(self) -> float:
        """The fraction that is done, as far as it is known."""
        return self.note_fraction or 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the speed so far, or None if that is not known yet."""
        return self.elapsed * (1 / self.fraction - 1) if self.fraction and self.active else None

    def report(self, message: str, fraction: float | None = None) -> None:
        """Record the progress. Raises Cancelled if it was asked to stop."""
        self.note, self.note_fraction = message, fraction
        self.stop_if_cancelled()

    def stop_if_cancelled(self) -> None:
        """Raise Cancelled if it was asked to stop."""
        if self.cancelling:
            raise Cancelled


class Task(Work):
    """A call of `function(model, report)`, which returns plain objects; without a model name, `model` is None."""

    def __init__(
        self,
        model: str | None,
        function: Callable[[Any, Report], Any],
        options: Mapping[str, Any] | None = None,
        yields: bool = False,
    ) -> None:
        super().__init__(model, options)
        self.function = function
        self.yields = yields
        self.result: Any = None


class Job(Work):
    """A request in the queue, and its pictures; without `save` these stay in memory.

    With `repeat` it is queued again with the next seeds whenever it is done, as a new job of the same `series`. A
    `sketch` gives way to everything else.
    """

    def __init__(
        self, request: Request, repeat: bool = False, series: str = "", save: bool = True, sketch: bool = False
    ) -> None:
        super().__init__(request.model, request.to_load())
        self.needs = needs_of(request)
        self.repeat = repeat  # any thread may change it
        self.series = series or self.id
        self.request = request
        self.save = save
        self.sketch = sketch
        self.drawn = prepared(request)  # what is painted
        self.warning = ""
        self.pictures: list[Picture] = []
        self.latent_space: tuple[str, ...] = ()  # names by which to look up the colours of latents
        self.step_seconds: deque[float] = deque(maxlen=8)
        self.drafting = True  # until drafts of the estimate turn out to be too slow
        self.skip_event = threading.Event()

    @property
    def n_images(self) -> int:
        """How many pictures it paints."""
        return self.drawn.n_images

    def of_picture(self, place: int) -> Request:
        """The request of one of its pictures, from 0."""
        return self.drawn.of_picture(place)

    def request_of(self, picture: Picture) -> Request:
        """The request of a picture that was begun."""
        return self.of_picture(self.pictures.index(picture))

    def batch_from(self, place: int) -> range:
        """The pictures that are painted together, from `place` on."""
        return self.drawn.batch_from(place)

    @property
    def frame(self) -> Frame | None:
        """The latest step, or None."""
        return next((picture.frames[-1] for picture in reversed(self.pictures) if picture.frames), None)

    @property
    def visible(self) -> bool:
        """Whether there is anything to show of its pictures."""
        return any(picture.visible for picture in self.pictures)

    @property
    def fraction(self) -> float:
        """The fraction of the denoising that is done, over all pictures."""
        done = 0.0
        for picture in self.pictures:
            if picture.finished or picture.skipped:
                done += 1
            elif picture.frames:
                done += picture.frames[-1].index / picture.frames[-1].total
        return min(1.0, done / self.n_images)

    @property
    def steps_per_second(self) -> float | None:
        """The speed of the last few steps, or None before the second one."""
        seconds = sum(self.step_seconds)
        return len(self.step_seconds) / seconds if seconds > 0 else None

    @property
    def quick(self) -> bool:
        """Whether a decode, which takes about as long as a step or two, is fast enough to wait for."""
        return bool(self.step_seconds) and min(self.step_seconds) < QUICK_STEP

    @property
    def seconds_left(self) -> float | None:
        """Seconds of denoising left at the current speed, or None if that is not known yet."""
        frame, pace = self.frame, self.steps_per_second
        if frame is None or pace is None or not self.active:
            return None
        steps = frame.total * self.n_images * (1 - self.fraction)
        return steps / pace


def is_sketch(work: Work | None) -> bool:
    """Whether work gives way to everything else."""
    return isinstance(work, Job) and work.sketch


def goes_on(work: Work) -> bool:
    """Whether work is a job that repeats another one, as it does until it is stopped."""
    return isinstance(work, Job) and work.series != work.id


def needs_of(request: Request) -> list[tuple[str, dict[str, Any]]]:
    """The models that a request needs, with how they are loaded."""
    needs = [(request.model, request.to_load())]
    if request.refiner is not None and request.refined:
        needs.append((request.refiner, request.to_load(refiner=True)))
    return needs


class Series(Job):
    """Pictures with settings of their own, and maybe models, in the queue: cells, painted in this order.

    `known` are finished pictures by their cells' digests, which are not painted again. A cell that fails does not stop
    the others.
    """

    def __init__(self, cells: Sequence[Cell], known: Mapping[str, Picture] | None = None, save: bool = True) -> None:
        super().__init__(cells[0].request, save=save)
        self.known = {digest: picture for digest, picture in (known or {}).items() if picture.there}
        self.all_cells = list(cells)
        self.cells = [cell for cell in cells if cell.digest not in self.known]
        self.problems: dict[str, str] = {}  # by digest, in words

    @property
    def n_images(self) -> int:
        """How many pictures it paints."""
        return max(len(self.cells), 1)

    def of_picture(self, place: int) -> Request:
        """The request of the cell that is painted in this place."""
        return self.cells[place].request

    def batch_from(self, place: int) -> range:
        """One cell at a time."""
        return range(place, place + 1)

    def picture_of(self, cell: Cell) -> Picture | None:
        """A cell's picture, if it has been begun."""
        if cell.digest in self.known:
            return self.known[cell.digest]
        places = {each.digest: place for place, each in enumerate(self.cells)}
        place = places.get(cell.digest, len(self.pictures))
        return self.pictures[place] if place < len(self.pictures) else None

    def finished(self) -> dict[str, Picture]:
        """The pictures of its cells that are there, by the cells' digests."""
        kept = self.kept()
        return {cell.digest: kept[cell.digest] for cell in self.all_cells if cell.digest in kept}

    def kept(self) -> dict[str, Picture]:
        """All pictures that are there, those of earlier series among them: what the next one need not paint."""
        own = {cell.digest: picture for cell, picture in zip(self.cells, self.pictures, strict=False)}
        return {digest: picture for digest, picture in (self.known | own).items() if picture.there}


class Comparison(Series):
    """A grid in the queue."""

    def __init__(self, plan: Plan, known: Mapping[str, Picture] | None = None, save: bool = True) -> None:
        super().__init__(plan.order, known, save)
        self.plan = plan


class Morphing(Series):
    """A morph in the queue; its frames are checked before the first one is painted."""

    def __init__(self, morph: Morph, known: Mapping[str, Picture] | None = None) -> None:
        super().__init__(morph.order, known)
        self.morph = morph


def next_request(request: Request, n_painted: int | None = None) -> Request:
    """What a repeating job continues with: the seeds after those of this request; seeds that are drawn stay so."""
    name = "variation_seed" if request.variation_strength else "seed"
    seed = getattr(request, name)
    if seed is None:
        return request
    n_images = n_painted or request.n_images
    following = seed + n_images
    seeds: dict[str, Any] = {name: following if following + n_images <= MAX_SEED else 0}
    return dataclasses.replace(request, **seeds)
