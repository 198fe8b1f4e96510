"""What a page asks for and what becomes of it, as plain objects that any thread may read."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..record.inputs import InputFile

QUICK_STEP = 0.5  # seconds

Report = Callable[[str, float | None], None]  # what is going on, and how much of it is done where that is known


class Cancelled(Exception):
    """Raised in the worker's thread where a cancelled job stops."""


class State(StrEnum):
    """Where a job is in its life; the values are words that a page can show."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    Sizes are in pixels, None: the model's own. A seed of None is drawn. Strength and fit count with an input picture
    only, and what follows the mask (of the input picture's size, white where painted) with a mask only. `previews` are
    the kinds of `preview.KINDS` that the live panel shows.
    """

    prompt: str
    negative: str = ""
    model: str = "postcards-tiny"
    sampler: str = "euler"
    steps: int = 20
    cfg: float = 7.5
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    n_images: int = 1
    loras: tuple[tuple[str, float], ...] = ()  # names and strengths
    clip_skip: int | None = None
    variation_seed: int | None = None  # None is drawn; counts with a strength only
    variation_strength: float = 0.0
    input_picture: Image.Image | None = field(default=None, compare=False, repr=False)
    input_file: InputFile | None = field(default=None, compare=False, repr=False)  # that it was read from
    strength: float = 0.7
    fit: str = "crop"  # of an input picture of another shape: "crop", "pad", "stretch"
    mask: Image.Image | None = field(default=None, compare=False, repr=False)
    mask_mode: str = "repaint"  # a key of masks.MODES
    masked_content: str = "original"  # a key of masks.CONTENTS
    mask_blur: int = 4  # pixels
    inpaint_area: str = "whole"  # a key of masks.AREAS
    mask_padding: int = 32  # pixels around the mask that are looked at, where the area is "masked"
    file_format: str = "png"  # a key of painting.SUFFIXES
    previews: tuple[str, ...] = ("auto", "latents")


@dataclass(eq=False)
class Frame:
    """One denoising step as it was recorded, small enough to keep every one; pages make pictures of it.

    x_t and the current estimate of x_0, (h, w, C) float16, and where the estimate was decoded, in full or as a draft, a
    JPEG of it.
    """

    index: int  # 1 .. total
    total: int
    sigma: float
    latents: np.ndarray
    denoised: np.ndarray
    decoded: bytes | None = None
    draft: bytes | None = None

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        return self.latents.nbytes + self.denoised.nbytes + len(self.decoded or b"") + len(self.draft or b"")


@dataclass(eq=False)
class Picture:
    """One picture of a job: its steps so far and, when finished, its file (or its PNG bytes, where saving failed)."""

    frames: list[Frame] = field(default_factory=list)
    seed: int | None = None
    variation_seed: int | None = None
    size: tuple[int, int] = (0, 0)
    path: Path | None = None
    unsaved: bytes | None = None
    skipped: bool = False

    @property
    def finished(self) -> bool:
        """Whether there is a picture to show and download."""
        return self.path is not None or self.unsaved is not None


class Work:
    """Something for the worker to do. Written by its thread alone (but for the wish to cancel); read by anyone."""

    def __init__(self, model: str) -> None:
        self.id = secrets.token_hex(6)
        self.model = model
        self.state = State.QUEUED
        self.note = ""  # what is going on, in words: "Loading ..."
        self.note_fraction: float | None = None
        self.error = ""
        self.submitted = time.time()
        self.started: float | None = None
        self.ended: float | None = None
        self.cancel_event = threading.Event()

    @property
    def active(self) -> bool:
        """Whether something is still to come."""
        return self.state in (State.QUEUED, State.LOADING, State.RUNNING)

    @property
    def cancelling(self) -> bool:
        """Whether somebody wished to cancel it (it ends after the step in hand)."""
        return self.cancel_event.is_set()

    @property
    def elapsed(self) -> float:
        """Seconds since the worker took it up."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started

    def report(self, message: str, fraction: float | None = None) -> None:
        """Note what is going on, and how much of it is done. Raises Cancelled."""
        self.note, self.note_fraction = message, fraction
        self.stop_if_cancelled()

    def stop_if_cancelled(self) -> None:
        """Raise Cancelled where somebody wished to cancel it."""
        if self.cancelling:
            raise Cancelled


class Task(Work):
    """Something other than painting that needs the model: `function(model, report)` gives plain objects."""

    def __init__(self, model: str, function: Callable[[Any, Report], Any]) -> None:
        super().__init__(model)
        self.function = function
        self.result: Any = None


class Job(Work):
    """A request on its way."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.model)
        self.request = request
        self.warning = ""
        self.pictures: list[Picture] = []
        self.latent_space: tuple[str, ...] = ()  # names under which utils may know how latents become colours
        self.step_seconds: deque[float] = deque(maxlen=8)
        self.drafting = True  # while drafts of the estimate are quick enough to be worth making
        self.skip_event = threading.Event()

    @property
    def frame(self) -> Frame | None:
        """The newest step there is."""
        return next((picture.frames[-1] for picture in reversed(self.pictures) if picture.frames), None)

    @property
    def fraction(self) -> float:
        """How much of the denoising is done, 0 to 1, over all pictures."""
        done = 0.0
        for picture in self.pictures:
            if picture.finished or picture.skipped:
                done += 1
            elif picture.frames:
                done += picture.frames[-1].index / picture.frames[-1].total
        return min(1.0, done / self.request.n_images)

    @property
    def steps_per_second(self) -> float | None:
        """The pace of the last few steps, or None before the second one."""
        seconds = sum(self.step_seconds)
        return len(self.step_seconds) / seconds if seconds > 0 else None

    @property
    def quick(self) -> bool:
        """Whether a decode, which takes about as long as a step or two, is something to wait for."""
        return bool(self.step_seconds) and min(self.step_seconds) < QUICK_STEP

    @property
    def seconds_left(self) -> float | None:
        """Seconds of denoising still to come at the present pace, or None where nothing can be said yet."""
        frame, pace = self.frame, self.steps_per_second
        if frame is None or pace is None or not self.active:
            return None
        steps = frame.total * self.request.n_images * (1 - self.fraction)
        return steps / pace
