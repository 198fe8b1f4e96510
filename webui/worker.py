"""One thread that owns the engine, a queue in front of it, and jobs that any thread may read.

MLX arrays belong to the thread that made them, and a page's script may be stopped at any moment; so models are loaded,
pictures made and files written here, and everyone else gets plain objects: numbers, text, encoded pictures, paths.
"""

import errno
import gc
import io
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import models
import utils
from stable_diffusion.errors import StableDiffusionError
from webui import preview
from webui.jobs import Frame, Job, Picture, Request, State

MAX_WAITING = 50  # more than anyone means: a stuck key, or a page gone wild
MAX_KEPT = 20  # finished jobs whose steps can be replayed; their pictures stay on disk for good
MAX_SEED = 2**53 - 1  # what a browser counts exactly

log = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]


class QueueFullError(StableDiffusionError):
    """More jobs wait than the worker takes."""


class _Cancelled(Exception):
    """Raised inside the worker's thread where a cancelled job stops."""


def load_model(name: str, progress: Progress) -> Any:
    """Load a model of the catalogue; always called in the worker's thread. Tests put another function in its place."""
    from stable_diffusion import StableDiffusion

    return StableDiffusion(models.find(name).source, progress=progress)


def release_memory() -> None:
    """Give a dropped model's memory back to the machine."""
    gc.collect()
    import mlx.core as mx

    mx.clear_cache()


class Worker:
    """The queue over all browser tabs and the one thread behind it.

    Finished pictures are saved at once under `outputs`/YYYY-MM-DD/.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._model: Any = None
        self._model_name: str | None = None
        self._thread = threading.Thread(target=self._serve, name="stable-diffusion", daemon=True)
        self._thread.start()

    # What any thread may call

    def submit(self, request: Request) -> Job:
        """Put a request at the end of the queue. Raises QueueFullError."""
        job = Job(request)
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFullError(f"{MAX_WAITING} jobs are waiting already: let some finish, or cancel some.")
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify()
        return job

    def job(self, job_id: str | None) -> Job | None:
        """Find a job by its id, or None where it is unknown or no longer kept."""
        with self._changed:
            return self._jobs.get(job_id) if job_id else None

    def position(self, job: Job) -> int:
        """Say how many jobs come before this one, the running one included; 0 when it is in hand or over."""
        with self._changed:
            if job.state is not State.QUEUED or job not in self._waiting:
                return 0
            running = any(other.state in (State.LOADING, State.RUNNING) for other in self._jobs.values())
            return self._waiting.index(job) + running

    def cancel(self, job: Job) -> None:
        """Stop a job: at once where it waits, after the step in hand where it runs. What it finished stays."""
        job.cancel_event.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, State.CANCELLED)

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs.values())
            self._changed.notify()
        for job in jobs:
            if job.active:
                self.cancel(job)
        self._thread.join(timeout)

    # What only the worker's thread does

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                job = self._waiting.popleft()
                job.started = time.time()
                job.state = State.LOADING
            self._run(job)
        self._drop_model()

    def _run(self, job: Job) -> None:
        try:
            model = self._model_for(job)
            job.state = State.RUNNING
            for _ in range(job.request.n_images):
                self._paint(model, job)
            state = State.DONE
        except _Cancelled:
            state = State.CANCELLED
        except Exception as error:
            job.error = in_plain_words(error)
            state = State.FAILED
        with self._changed:
            self._end(job, state)

    def _end(self, job: Job, state: State) -> None:
        job.ended = time.time()
        job.note = ""
        job.state = state
        over = [other.id for other in self._jobs.values() if not other.active]
        for job_id in over[:-MAX_KEPT]:
            del self._jobs[job_id]

    def _model_for(self, job: Job) -> Any:
        name = job.request.model
        if name != self._model_name or self._model is None:
            self._drop_model()

            def progress(message: str, fraction: float | None = None) -> None:
                job.note, job.note_fraction = message, fraction
                _stop_if_cancelled(job)

            progress(f"Loading {name}")
            self._model = load_model(name, progress)
            self._model_name = name
            job.note = ""
        _stop_if_cancelled(job)
        return self._model

    def _drop_model(self) -> None:
        if self._model is not None:
            self._model = self._model_name = None
            release_memory()

    def _paint(self, model: Any, job: Job) -> None:
        """Make one picture: note every step, look for a cancel after each, save the end."""
        picture = Picture()
        job.pictures.append(picture)
        before = time.perf_counter()
        last = None
        with closing(model.generate_latents(job.request.prompt, **_arguments(job))) as steps:
            for step in steps:
                latents = np.asarray(step.latents, dtype=np.float32)[0]
                picture.seed = step.seed
                if step.index == step.total:
                    last = utils.to_picture(np.asarray(model.decode(step.latents), dtype=np.float32)[0])
                picture.frames.append(
                    Frame(
                        step.index,
                        step.total,
                        float(step.sigma),
                        preview.latents_jpeg(latents),
                        preview.estimate_jpeg(model, step.denoised, job.request.preview, last),
                    )
                )
                now = time.perf_counter()
                if step.index > 1:  # the first one carries the text encoder and whatever else is made once
                    job.step_seconds.append(now - before)
                before = now
                if last is None:  # a picture that is ready is kept, whatever was wished meanwhile
                    _stop_if_cancelled(job)
        if last is None:
            raise StableDiffusionError("The model made no step at all: nothing to show.")
        self._save(job, picture, last, model)
        if len(job.pictures) < job.request.n_images:
            _stop_if_cancelled(job)

    def _save(self, job: Job, picture: Picture, image: Image.Image, model: Any) -> None:
        folder = self.outputs / datetime.now().strftime("%Y-%m-%d")
        picture.size = image.size
        try:
            picture.path = utils.save_new_picture(image, folder, _parameters(job.request, picture, model))
        except OSError as error:
            log.exception("could not save a picture in %s", folder)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            picture.unsaved = buffer.getvalue()
            job.warning = f"The picture could not be saved: {in_plain_words(error)} Download it from here to keep it."


def _arguments(job: Job) -> dict[str, Any]:
    """Say a request in the engine's words, for the picture in hand: its seed is the first one's plus its place."""
    request, place = job.request, len(job.pictures) - 1
    first = request.seed if place == 0 else job.pictures[0].seed
    arguments: dict[str, Any] = {
        "negative_text": request.negative or None,
        "num_steps": request.steps,
        "cfg_weight": request.cfg,
        "width": request.width,
        "height": request.height,
        "seed": None if first is None else first + place,
        "sampler": request.sampler,
    }
    if request.input_picture is not None:
        arguments |= {"input_image": request.input_picture, "denoising_strength": request.strength}
    return arguments


def _parameters(request: Request, picture: Picture, model: Any) -> "utils.Parameters":
    """Gather what the saved file says about how it was made."""
    from stable_diffusion.sampler import a1111_name

    sampler, schedule = a1111_name(request.sampler)
    return utils.Parameters(
        prompt=request.prompt,
        negative=request.negative,
        steps=request.steps,
        sampler=sampler,
        schedule=schedule,
        cfg=request.cfg,
        seed=picture.seed,
        width=picture.size[0],
        height=picture.size[1],
        model=getattr(model, "name", request.model),
        model_hash=_model_hash(request.model),
        strength=request.strength if request.input_picture is not None else None,
    )


def _model_hash(name: str) -> str | None:
    try:
        return models.short_hash(models.find(name).source)
    except (StableDiffusionError, OSError):  # the file went away meanwhile: no reason to lose a picture
        return None


def _stop_if_cancelled(job: Job) -> None:
    if job.cancelling:
        raise _Cancelled


OUT_OF_MEMORY = re.compile(
    r"out of memory|unable to allocate|failed to allocate|malloc|insufficient memory", re.IGNORECASE
)


def in_plain_words(error: BaseException) -> str:
    """Say an error as a person may read it; what nobody foresaw goes to the terminal in full."""
    if isinstance(error, StableDiffusionError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space and try again."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "The machine ran out of memory. Choose a smaller width and height, or a smaller model."
    if isinstance(error, PermissionError):
        return f"No permission to write or read {error.filename}."
    log.error("a job failed", exc_info=error)
    return f"Something went wrong that nobody foresaw ({type(error).__name__}: {error}). The terminal says more."
