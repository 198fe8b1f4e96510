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
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

import models
import utils
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.picture import fit
from webui import preview
from webui.jobs import Frame, Job, Picture, Report, Request, State, Task, Work

MAX_WAITING = 50  # more than anyone means: a stuck key, or a page gone wild
MAX_KEPT = 20  # finished jobs whose steps can be replayed; their pictures stay on disk for good
MAX_RESULTS = 64  # of tasks, kept for whoever asks again
MAX_FRAME_BYTES = 256 << 20  # of recorded steps, over all jobs; the oldest are forgotten first
MAX_SEED = 2**53 - 1  # what a browser counts exactly
DECODE_EVERY = 0.2  # seconds at least between full decodes while painting; and they take half of the time at most
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}

log = logging.getLogger(__name__)


class QueueFullError(StableDiffusionError):
    """More jobs wait than the worker takes."""


class _Cancelled(Exception):
    """Raised inside the worker's thread where a cancelled job stops."""


def load_model(name: str, progress: Report) -> Any:
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
        self._tasks: OrderedDict[Hashable, Task] = OrderedDict()
        self._waiting: deque[Work] = deque()
        self._in_hand: Work | None = None
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
            self._enqueue(job)
            self._jobs[job.id] = job
        return job

    def compute(self, key: Hashable, model: str, function: Callable[[Any, Report], Any], soon: bool = False) -> Task:
        """Have `function(model, report)` run in the queue, or find the task that was given the same key before.

        What failed or was cancelled is not kept, and runs anew. `soon` puts it before all that waits. The function may
        call `report(note, fraction)`, which is also where a cancel takes effect. Raises QueueFullError.
        """
        with self._changed:
            task = self._tasks.get(key)
            if task is None or task.state in (State.FAILED, State.CANCELLED):
                task = Task(model, function)
                self._enqueue(task, soon)
                self._tasks[key] = task
            self._tasks.move_to_end(key)
            for old in [old for old, other in self._tasks.items() if not other.active][:-MAX_RESULTS]:
                del self._tasks[old]
        return task

    def task(self, key: Hashable) -> Task | None:
        """Find a task by its key, or None where there was none or its result is no longer kept."""
        with self._changed:
            return self._tasks.get(key)

    def decode(self, job: Job, frame: Frame) -> Task:
        """Have a recorded step's estimate decoded in full, for a replay. Raises QueueFullError."""

        def decode(model: Any, report: Report) -> None:
            import mlx.core as mx

            frame.decoded = _decoded_jpeg(model, mx.array(frame.denoised.astype(np.float32))[None])

        return self.compute((job.id, id(frame)), job.model, decode, soon=True)

    def job(self, job_id: str | None) -> Job | None:
        """Find a job by its id, or None where it is unknown or no longer kept."""
        with self._changed:
            return self._jobs.get(job_id) if job_id else None

    def position(self, work: Work) -> int:
        """Say how many come before this one, the one in hand included; 0 when it is in hand or over."""
        with self._changed:
            if work.state is not State.QUEUED or work not in self._waiting:
                return 0
            return self._waiting.index(work) + (self._in_hand is not None)

    def cancel(self, work: Work) -> None:
        """Stop a job: at once where it waits, after the step in hand where it runs. What it finished stays."""
        work.cancel_event.set()
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)
                self._end(work, State.CANCELLED)

    def skip(self, job: Job) -> None:
        """Leave the picture in hand unfinished after its step, and go on with the next one."""
        job.skip_event.set()

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            works: list[Work] = [*self._jobs.values(), *self._tasks.values()]
            self._changed.notify()
        for work in works:
            if work.active:
                self.cancel(work)
        self._thread.join(timeout)

    def _enqueue(self, work: Work, soon: bool = False) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} jobs are waiting already: let some finish, or cancel some.")
        (self._waiting.appendleft if soon else self._waiting.append)(work)
        self._changed.notify()

    # What only the worker's thread does

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                work = self._in_hand = self._waiting.popleft()
                work.started = time.time()
                work.state = State.LOADING
            self._run(work)
        self._drop_model()

    def _run(self, work: Work) -> None:
        try:
            model = self._model_for(work)
            work.state = State.RUNNING
            if isinstance(work, Job):
                self._paint_all(model, work)
            elif isinstance(work, Task):
                work.result = work.function(model, _reporter(work))
            state = State.DONE
        except _Cancelled:
            state = State.CANCELLED
        except Exception as error:
            work.error = in_plain_words(error)
            state = State.FAILED
        with self._changed:
            self._in_hand = None
            self._end(work, state)

    def _end(self, work: Work, state: State) -> None:
        work.ended = time.time()
        work.note = ""
        work.state = state
        over = [other.id for other in self._jobs.values() if not other.active]
        for job_id in over[:-MAX_KEPT]:
            del self._jobs[job_id]

    def _model_for(self, work: Work) -> Any:
        name = work.model
        if name != self._model_name or self._model is None:
            self._drop_model()
            report = _reporter(work)
            report(f"Loading {name}", None)
            self._model = load_model(name, report)
            self._model_name = name
            work.note = ""
        _stop_if_cancelled(work)
        return self._model

    def _drop_model(self) -> None:
        if self._model is not None:
            self._model = self._model_name = None
            release_memory()

    def _paint_all(self, model: Any, job: Job) -> None:
        job.latent_space = (model.name, model.family)
        for _ in range(job.request.n_images):
            if job.pictures:
                _stop_if_cancelled(job)
            self._paint(model, job)
            self._forget_old_frames()

    def _paint(self, model: Any, job: Job) -> None:
        """Make one picture: note every step, look for a cancel or a skip after each, save the end."""
        picture = Picture()
        job.pictures.append(picture)
        job.skip_event.clear()
        decodes = _Decodes(job)
        before = time.perf_counter()
        last = None
        with closing(model.generate_latents(job.request.prompt, **_arguments(job, model))) as steps:
            for step in steps:
                frame = _record(step)
                picture.seed = step.seed
                if step.index == step.total:
                    last = utils.to_picture(np.asarray(model.decode(step.latents), dtype=np.float32)[0])
                    frame.decoded = preview.jpeg(last)
                elif decodes.due(frame):
                    frame.decoded = decodes.make(model, step.denoised)
                picture.frames.append(frame)
                now = time.perf_counter()
                if step.index > 1:  # the first one carries the text encoder and whatever else is made once
                    job.step_seconds.append(now - before)
                before = now
                if last is None:  # a picture that is ready is kept, whatever was wished meanwhile
                    _stop_if_cancelled(job)
                    if job.skip_event.is_set():
                        picture.skipped = True
                        return
        if last is None:
            raise StableDiffusionError("The model made no step at all: nothing to show.")
        self._save(job, picture, last, model)

    def _save(self, job: Job, picture: Picture, image: Image.Image, model: Any) -> None:
        folder = self.outputs / datetime.now().strftime("%Y-%m-%d")
        picture.size = image.size
        parameters = _parameters(job.request, picture, model)
        try:
            suffix = SUFFIXES[job.request.file_format]
            picture.path = utils.save_new_picture(image, folder, parameters, suffix)
        except OSError as error:
            log.exception("could not save a picture in %s", folder)
            picture.unsaved = _png(image, parameters)
            job.warning = f"The picture could not be saved: {in_plain_words(error)} Download it from here to keep it."

    def _forget_old_frames(self) -> None:
        """Keep the recorded steps within MAX_FRAME_BYTES: of the oldest pictures, only the last step stays."""
        with self._changed:
            pictures = [picture for job in self._jobs.values() for picture in job.pictures]
        sizes = [sum(frame.n_bytes for frame in picture.frames) for picture in pictures]
        too_much = sum(sizes) - MAX_FRAME_BYTES
        for picture, size in zip(pictures[:-1], sizes, strict=False):
            if too_much <= 0:
                break
            picture.frames = picture.frames[-1:]
            too_much -= size


class _Decodes:
    """When to decode an estimate in full while painting: where that is wished, or nothing else can show colours."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._next = 0.0

    def due(self, frame: Frame) -> bool:
        """Whether this step's estimate is to be decoded."""
        previews = self._job.request.previews
        wished = "full" in previews or (
            "fast" in previews and not preview.knows_colours(frame.denoised, self._job.latent_space)
        )
        return wished and time.perf_counter() >= self._next

    def make(self, model: Any, denoised: Any) -> bytes:
        """Decode (1, h, w, C), and put off the next one."""
        start = time.perf_counter()
        decoded = _decoded_jpeg(model, denoised)
        now = time.perf_counter()
        self._next = now + max(DECODE_EVERY, now - start)
        return decoded


def _decoded_jpeg(model: Any, denoised: Any) -> bytes:
    return preview.jpeg(utils.to_picture(np.asarray(model.decode(denoised), dtype=np.float32)[0]))


def _record(step: Any) -> Frame:
    x_t, x_0 = (np.asarray(array, dtype=np.float32)[0].astype(np.float16) for array in (step.latents, step.denoised))
    return Frame(step.index, step.total, float(step.sigma), x_t, x_0)


def _png(image: Image.Image, parameters: "utils.Parameters") -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters.to_text().encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _arguments(job: Job, model: Any) -> dict[str, Any]:
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
        width, height = model.default_size
        size = (request.width or width, request.height or height)
        arguments |= {
            "input_image": fit(request.input_picture, *size, request.fit),
            "denoising_strength": request.strength,
        }
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


def _reporter(work: Work) -> Report:
    def report(message: str, fraction: float | None = None) -> None:
        work.note, work.note_fraction = message, fraction
        _stop_if_cancelled(work)

    return report


def _stop_if_cancelled(work: Work) -> None:
    if work.cancelling:
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
