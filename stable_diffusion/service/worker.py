"""One thread that owns the engine, and its queue.

MLX arrays belong to the thread that made them, and a page's script may be stopped at any moment; so models are loaded,
pictures painted and files written here, and everyone else gets plain objects: numbers, text, encoded pictures, paths.
"""

import atexit
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .. import catalogue
from ..compare.plan import Plan
from ..errors import CheckpointNotFoundError, InputError, StableDiffusionError, UnsupportedCheckpointError
from ..morph import Morph
from ..request import Request
from .jobs import (
    Cancelled,
    Comparison,
    Frame,
    Job,
    Morphing,
    Picture,
    Report,
    Series,
    State,
    Task,
    Work,
    goes_on,
    is_sketch,
    needs_of,
    next_request,
)
from .paces import Paces
from .painting import check_texts, decoded_jpeg, keep, overlaid, paint
from .words import in_plain_words

MAX_WAITING = 50  # more than anyone queues on purpose: a stuck key, or a client in a loop
MAX_KEPT = 20  # finished jobs that can be replayed; their pictures stay on disk
MAX_RESULTS = 64  # of finished tasks that are kept
MAX_FRAME_BYTES = 256 << 20  # of recorded steps, over all jobs; the oldest are forgotten first


AnyJob = TypeVar("AnyJob", bound=Job)


class QueueFullError(StableDiffusionError):
    """The queue is full."""


def load_model(name: str, progress: Report, vae: str | None = None, **options: Any) -> Any:
    """Load a model of the catalogue; always called in the worker's thread. Tests replace this function.

    `vae` is one of the catalogue's, by its file name; `options` are other arguments of `StableDiffusion`.
    """
    from .. import StableDiffusion

    if vae is not None:
        if vae not in (known := catalogue.vaes()):
            raise CheckpointNotFoundError(f"There is no VAE {vae!r}: put it into models/VAE, or choose another one.")
        options["vae"] = known[vae]
    return StableDiffusion(catalogue.find_listed(name).source, progress=progress, **options)


def release_memory() -> None:
    """Give the memory of a dropped model back to the system."""
    from .. import backend

    backend.give_back_memory()


def release_thread() -> None:
    """Free what MLX keeps for the current thread (streams, compiled functions), which is about to end.

    MLX expects this of every thread but the main one. Otherwise its destructors run when the system ends the thread,
    for which `Thread.join` does not wait, and abort the process if the interpreter is shutting down by then.
    """
    if mlx := sys.modules.get("mlx.core"):
        mlx.clear_streams()


def _key(name: str, options: Mapping[str, Any]) -> Hashable:
    """What tells a model in memory from others."""
    return name, tuple(sorted(options.items()))


class Worker:
    """The thread that owns the engine, with the queue of its jobs (pictures) and tasks (anything else).

    Finished pictures are saved at once under `outputs`/YYYY-MM-DD/. The end of the process closes its workers.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self._jobs: dict[str, Job] = {}
        self._tasks: OrderedDict[Hashable, Task] = OrderedDict()
        self._waiting: deque[Work] = deque()
        self._in_hand: Work | None = None
        self._paused: Work | None = None  # what has given way to what is in hand
        self._changed = threading.Condition()
        self._closed = False
        self._models: dict[Hashable, Any] = {}  # in memory, by name and options
        self.paces = Paces()
        self.kept: dict[Hashable, Any] = {}  # what tasks leave for the next ones; for the worker's thread alone
        self._thread = threading.Thread(target=self._serve, name="stable-diffusion", daemon=True)
        self._thread.start()
        # A thread that returns from MLX to an interpreter that is shutting down is unwound through C++ frames, which
        # aborts the process (status 134). So the process waits for the current step before it ends.
        atexit.register(self.close, None)

    # --- Called by any thread

    def submit(self, request: Request, repeat: bool = False, save: bool = True) -> Job:
        """Append a request to the queue, with `repeat` until it is cancelled. Raises QueueFullError.

        Without `save` its pictures stay in memory.
        """
        return self._add(Job(request, repeat, save=save))

    def sketch(self, request: Request, before: Job | None = None) -> Job | None:
        """Paint a request at once without saving it, in place of the sketch `before` if that is not finished yet.

        None if there is anything else to do, or if its model is not in memory: a sketch delays nobody. Whatever is
        queued later stops it after the current step. Raises `InputError` for prompts that cannot be drawn from.
        """
        if before is not None and before.active:
            self.cancel(before)
        job = Job(request, save=False, sketch=True)
        with self._changed:
            if not self.ready_for(job):
                return None
            return self._add(job)

    def ready_for(self, job: Job) -> bool:
        """Whether a job could begin at once: nothing but sketches to do, and its models in memory."""
        loaded = list(self._models)
        return all(map(is_sketch, self.queue())) and all(_key(*need) in loaded for need in job.needs)

    def compare(self, plan: Plan, known: Mapping[str, Picture] | None = None, save: bool = True) -> Comparison:
        """Append a grid to the queue; `known` are pictures by digests of cells that need not be painted again.

        Without `save` its pictures stay in memory. Raises QueueFullError.
        """
        return self._add(Comparison(plan, known, save))

    def morph(self, morph: Morph, known: Mapping[str, Picture] | None = None) -> Morphing:
        """Append a morph to the queue; `known` as in `compare`. Raises QueueFullError."""
        return self._add(Morphing(morph, known))

    def latest_comparison(self) -> Comparison | None:
        """The grid that was queued last, of those that are kept."""
        return self._latest_of(Comparison)

    def latest_morph(self) -> Morphing | None:
        """The morph that was queued last, of those that are kept."""
        return self._latest_of(Morphing)

    def _latest_of(self, kind: type[AnyJob]) -> AnyJob | None:
        with self._changed:
            return next((job for job in reversed(self._jobs.values()) if isinstance(job, kind)), None)

    def _add(self, job: AnyJob) -> AnyJob:
        with self._changed:
            self._enqueue(job)
            self._jobs[job.id] = job
        return job

    def compute(
        self,
        key: Hashable,
        function: Callable[[Any, Report], Any],
        model: str | None = None,
        soon: bool = False,
        options: Mapping[str, Any] | None = None,
        yields: bool = False,
    ) -> Task:
        """Queue a call of `function(model, report)`, or return the earlier task with the same key.

        `model` names the model that the function is given, loaded with `options`. Without one it is given None,
        and the model in memory stays. A task that failed or was cancelled is not kept, so it runs again. `soon` puts
        this one at the head of the queue. One that `yields` starts when nothing waits but jobs that repeat, and calls
        `give_way` now and then. The function may call `report(note, fraction)`, which also raises Cancelled when it
        should stop. Raises QueueFullError.
        """
        with self._changed:
            task = self._tasks.get(key)
            if task is None or task.state in (State.FAILED, State.CANCELLED):
                task = Task(model, function, options, yields)
                self._enqueue(task, soon)
                self._tasks[key] = task
            self._tasks.move_to_end(key)
            for old in [old for old, other in self._tasks.items() if not other.active][:-MAX_RESULTS]:
                del self._tasks[old]
        return task

    def task(self, key: Hashable) -> Task | None:
        """The task with this key, or None if it is unknown or no longer kept."""
        with self._changed:
            return self._tasks.get(key)

    def decode(self, job: Job, frame: Frame) -> Task:
        """Queue a full decode of a recorded step's estimate, for a replay. Raises QueueFullError."""

        def decode(model: Any, report: Report) -> None:
            picture = next((each for each in job.pictures if frame in each.frames), None)
            decoding = {} if picture is None else job.request_of(picture).decoding
            frame.decoded = decoded_jpeg(partial(model.decode, **decoding), frame.denoised)

        return self.compute((job.id, id(frame)), decode, job.model, True, job.options)

    def keep(self, job: Job, picture: Picture) -> Task:
        """Queue the saving of a finished picture that is in memory alone, or of a stopped one as far as it came.

        Raises QueueFullError.
        """

        def save(model: Any, report: Report) -> None:
            keep(model, job, picture, self.outputs)

        model = None if picture.unsaved is not None else job.model
        return self.compute((job.id, "keep", id(picture)), save, model, True, job.options)

    def queue(self) -> list[Work]:
        """What runs, and what waits in its order."""
        with self._changed:
            begun = [work for work in (self._in_hand, self._paused) if work is not None]
            return [*begun, *sorted(self._waiting, key=lambda work: work.yields)]

    def move(self, work: Work, by: int) -> None:
        """Move waiting work by this many places, negative towards the front; other work stays."""
        with self._changed:
            if work in self._waiting:
                place = self._waiting.index(work) + by
                self._waiting.remove(work)
                self._waiting.insert(max(0, place), work)

    def latest(self, job: Job) -> Job:
        """The newest job of the same series, which is the job itself unless it repeats."""
        with self._changed:
            return next((other for other in reversed(self._jobs.values()) if other.series == job.series), job)

    def job(self, job_id: str | None) -> Job | None:
        """The job with this id, or None if it is unknown or no longer kept."""
        with self._changed:
            return self._jobs.get(job_id) if job_id else None

    def unload(self) -> Task:
        """Queue a task that drops the model in memory. Raises QueueFullError."""
        return self.compute(object(), lambda model, report: self._drop_models())

    def position(self, work: Work) -> int:
        """How many come before this one, including the running one; 0 if it is running or over."""
        if work.state is not State.QUEUED:
            return 0
        queue = self.queue()
        before = queue[: queue.index(work)] if work in queue else []
        return sum(work.yields or not other.yields for other in before)

    def cancel(self, work: Work) -> None:
        """Stop a job or task: at once if it waits, after the current step if it runs. Finished pictures are kept."""
        work.cancel_event.set()
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)
                self._end(work, State.CANCELLED)

    def skip(self, job: Job) -> None:
        """Abandon the current picture after the current step, and continue with the next one."""
        job.skip_event.set()

    def close(self, timeout: float | None = 10.0) -> None:
        """Cancel everything and end the thread.

        Waits up to `timeout` seconds for the current step (None: as long as it takes, as at the process's end).
        """
        with self._changed:
            self._closed = True
            works: list[Work] = [*self._jobs.values(), *self._tasks.values()]
            self._changed.notify()
        for work in works:
            if work.active:
                self.cancel(work)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            atexit.unregister(self.close)

    def _enqueue(self, work: Work, soon: bool = False) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} jobs are waiting already: let some finish, or cancel some.")
        if not is_sketch(work):
            for other in filter(is_sketch, self.queue()):
                self.cancel(other)
        (self._waiting.appendleft if soon else self._waiting.append)(work)
        self._changed.notify()

    # --- Called by the worker's thread alone

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                work = self._next()
                self._begin(work)
            self._run(work)
        self._drop_models()
        release_thread()

    def _next(self) -> Work:
        """The first that waits; what yields lets all others go first but those that only go on repeating."""
        long = [work for work in self._waiting if work.yields]
        others = [work for work in self._waiting if not work.yields]
        return long[0] if long and all(goes_on(work) for work in others) else others[0]

    def give_way(self) -> None:
        """Run what waits, then return. A task that `yields` calls this where it can be interrupted, in its own thread.

        Other such tasks wait until it ends, and a job that repeats gets one turn. The task may have been cancelled
        meanwhile, which is for it to look at.
        """
        long = self._in_hand
        assert long is not None and long.yields
        had: set[str] = set()
        while True:
            with self._changed:
                waiting = (work for work in self._waiting if not work.yields)
                work = next((work for work in waiting if getattr(work, "series", "") not in had), None)
                if work is None or self._closed:
                    break
                if isinstance(work, Job):
                    had.add(work.series)
                self._paused, long.state = long, State.PAUSED
                self._begin(work)
            self._run(work)
            with self._changed:
                self._in_hand, self._paused, long.state = long, None, State.RUNNING

    def _begin(self, work: Work) -> None:
        self._waiting.remove(work)
        self._in_hand = work
        work.started = time.time()
        work.state = State.LOADING

    def _run(self, work: Work) -> None:
        try:
            if isinstance(work, Series):
                self._paint_cells(work)
            elif isinstance(work, Job):
                models = self._models_for(work)
                work.state = State.RUNNING
                began = time.perf_counter()
                self._paint_all(*models, job=work)
                self._note_pace(work, time.perf_counter() - began)
            elif isinstance(work, Task):
                models = self._models_for(work)
                work.state = State.RUNNING
                work.result = work.function(models[0] if models else None, work.report)
            state = State.DONE
        except Cancelled:
            state = State.CANCELLED
        except Exception as error:
            work.error = in_plain_words(error)
            work.refused = isinstance(error, (InputError, UnsupportedCheckpointError))
            state = State.FAILED
        with self._changed:
            self._in_hand = None
            self._end(work, state)
            if isinstance(work, Job) and work.repeat and state is State.DONE and not (work.cancelling or self._closed):
                self._repeat(work)

    def _end(self, work: Work, state: State) -> None:
        work.ended = time.time()
        work.note = ""
        work.state = state
        over = [other for other in self._jobs.values() if not other.active]
        for sketches in (False, True):  # which may be many, and must not push out the others
            for old in [other for other in over if other.sketch is sketches][:-MAX_KEPT]:
                del self._jobs[old.id]

    def _repeat(self, done: Job) -> None:
        job = Job(next_request(done.request, done.n_images), True, done.series)
        try:
            self._enqueue(job)
        except QueueFullError as error:
            done.warning = str(error)
            return
        self._jobs[job.id] = job

    def _models_for(self, work: Work) -> list[Any]:
        """The models that work needs, loaded. A job, and whatever has to load one, first drops those it does not need.

        So the refiner stays in memory while the steps of a picture are looked at.
        """
        wanted = {_key(*need): need for need in work.needs}
        if isinstance(work, Job) or not wanted.keys() <= self._models.keys():
            self._drop_models(keep=wanted.keys())
        for key, (name, options) in wanted.items():
            if key not in self._models:
                work.report(f"Loading {name}")
                self._models[key] = load_model(name, work.report, **options)
                work.note = ""
        work.stop_if_cancelled()
        return [self._models[key] for key in wanted]

    def _drop_models(self, keep: Collection[Hashable] = ()) -> None:
        """Drop the models in memory, but for those to `keep`, and then also what tasks have left."""
        if not keep or self._models.keys() - set(keep):
            self.kept.clear()
        if self._models.keys() - set(keep):
            self._models = {key: model for key, model in self._models.items() if key in keep}
            release_memory()

    def _paint_all(self, model: Any, refiner: Any = None, *, job: Job) -> None:
        job.latent_space = (model.name, model.family)
        job.drawn = job.drawn.enlarged(job.report)
        with overlaid(model, job.request):
            while len(job.pictures) < job.n_images:
                if job.pictures:
                    job.stop_if_cancelled()
                paint(model, refiner, job, self.outputs)
                self._forget_old_frames()

    def _note_pace(self, job: Job, seconds: float) -> None:
        """Note how long a picture took, if that was all."""
        if job.n_images == 1 and job.frame is not None and job.frame.n_passes == 1 and job.pictures[0].finished:
            self.paces.note(job.request, seconds, list(job.step_seconds))

    def _paint_cells(self, job: Series) -> None:
        """Paint cell after cell; a grid's order is that of the fewest loads."""
        if isinstance(job, Morphing) and job.cells:
            check_texts(*self._models_for(job), job=job)
        for place, cell in enumerate(job.cells):
            job.stop_if_cancelled()
            try:
                job.needs = needs_of(cell.request)
                models = self._models_for(job)
                job.state = State.RUNNING
                job.latent_space = (models[0].name, models[0].family)
                with overlaid(models[0], cell.request):
                    paint(models[0], models[1] if len(models) > 1 else None, job, self.outputs)
            except Cancelled:
                raise
            except Exception as error:
                job.problems[cell.digest] = in_plain_words(error)
            while len(job.pictures) <= place:  # one whose model did not load
                job.pictures.append(Picture())
            self._forget_old_frames()

    def _forget_old_frames(self) -> None:
        """Keep the recorded steps within MAX_FRAME_BYTES: the oldest pictures lose all steps but the last."""
        with self._changed:
            pictures = [picture for job in self._jobs.values() for picture in job.pictures]
        sizes = [picture.n_bytes for picture in pictures]
        too_much = sum(sizes) - MAX_FRAME_BYTES
        for picture, size in zip(pictures[:-1], sizes, strict=False):
            if too_much <= 0:
                break
            picture.forget_steps()
            too_much -= size
