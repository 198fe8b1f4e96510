"""A job's pictures, one after another: the engine's steps recorded, the result saved. For the worker's thread only."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..attention import AttentionMaps
from ..errors import StableDiffusionError
from ..pictures import arrays
from ..pictures.arrays import ONE_COLOUR
from ..pictures.formats import BY_KEY
from ..record import keys, long, picture_files
from ..record.parameters import Parameters
from ..request import Call, Request
from . import loras, masks, preview
from .jobs import Frame, Job, Picture
from .words import in_plain_words

DECODE_EVERY = 0.2  # seconds at least between two decodes while painting
FULL_SHARE, DRAFT_SHARE = 1 / 2, 1 / 8  # of the time, at most, for full decodes (on request) and for drafts
DRAFT_PATIENCE = 0.4  # seconds; with slower drafts, too few would arrive to be worth watching
VAE_WIDENED = "The model's VAE overflowed in half precision, so it runs in full precision from now on."
MAX_STAGES = 10  # of a picture's steps, into which attention maps are gathered
MAPS_SIDE = 64  # positions of attention at most that are kept along each side
SLOW_DRAFTS = 2  # one after another; a single one may be a hiccup of the machine

log = logging.getLogger(__name__)


@contextmanager
def overlaid(model: Any, request: Request) -> Iterator[None]:
    """Apply the request's LoRAs to the model, and take them off at the end. Raises what `set_loras` raises."""
    if request.loras:
        model.set_loras(loras.located(request.loras))
    try:
        yield
    finally:
        if request.loras:
            model.set_loras({})


def paint(model: Any, refiner: Any, job: Job, outputs: Path) -> None:
    """Paint the job's next picture: record every step, check for cancel and skip after each, save the result.

    `refiner` takes over from the model; None if there is none.

    Raises Cancelled, and whatever the engine raises; the steps recorded so far are kept.
    """
    picture = Picture()
    job.pictures.append(picture)
    job.skip_event.clear()
    request = _carrying(job.of_picture(len(job.pictures) - 1))
    call = request.to_call(model.default_size, refiner)
    seeds = picture.seeds = request.seeds_of(0)
    try:
        finished = _painted(model, job, picture, call, seeds)
    except BaseException:
        _keep_first(model, job, picture, request, call, outputs)
        raise
    if finished is None:
        _keep_first(model, job, picture, request, call, outputs)
        return
    picture.size = finished.size
    assert picture.used is not None
    _save(job, picture, finished, request, request.to_record(picture.used, call.size), outputs)


def _painted(model: Any, job: Job, picture: Picture, call: Call, seeds: dict[str, Any]) -> Image.Image | None:
    """Run a picture's generation; None if it was skipped."""
    decodes = Decodes(job)
    before = time.perf_counter()
    last = None
    new_pass = True
    watched: dict[str, Any] = {"progress": job.report} if {"hires", "tile"} & call.arguments.keys() else {}
    maps = AttentionMaps(MAX_STAGES) if job.request.attention else None
    watched |= {} if maps is None else {"attention": maps}
    with _kept(maps, picture), closing(model.generate_latents(**call.arguments | seeds | watched)) as steps:
        used = picture.used = steps.used
        picture.seed = seeds["seed"]
        for note in steps.notes:
            _warn(job, note)
        for step in steps:
            frame = _record(step)
            picture.seed = step.seed
            if step.index < step.total and step.ends_pass:
                picture.first = np.asarray(step.latents, dtype=np.float32)[0]
            if step.index == step.total:
                last = arrays.to_picture(np.asarray(model.decode(step.latents), dtype=np.float32)[0])
                frame.decoded = preview.jpeg(last)
            else:
                decodes.make(model, frame)
            picture.frames.append(frame)
            job.note = ""  # of what came between two passes
            now = time.perf_counter()
            if not new_pass:  # the first includes the text encoder and other one-time work
                job.step_seconds.append(now - before)
            before, new_pass = now, step.ends_pass
            if last is None:  # a finished picture is kept, even if a cancel came meanwhile
                job.stop_if_cancelled()
                if job.skip_event.is_set():
                    picture.skipped = True
                    return None
    if last is None:
        last = call.unchanged
    if last is None:
        raise StableDiffusionError("The model ran no step, so there is no picture.")
    if arrays.is_one_colour(last):
        _warn(job, f"The picture is a single colour. {ONE_COLOUR}")
    picture.used, picture.first = steps.used, None
    if steps.used.vae_precision != used.vae_precision:
        _warn(job, VAE_WIDENED)
    return call.finish(last)


@contextmanager
def _kept(maps: AttentionMaps | None, picture: Picture) -> Iterator[None]:
    """Keep at the end what has been recorded of the words, small, also of a picture that was stopped."""
    try:
        yield
    finally:
        if maps is not None and maps.pictures and maps.pictures[0].levels:
            picture.attention = maps.pictures[0].smaller(MAPS_SIDE)


def _keep_first(model: Any, job: Job, picture: Picture, request: Request, call: Call, outputs: Path) -> None:
    """Save what the first of two passes painted, if the second was stopped or failed, with a record of its own."""
    if picture.first is None or picture.used is None:
        return
    try:
        decoded = arrays.to_picture(_decoded(model.decode, picture.first))
    except Exception:
        log.exception("what the first pass painted cannot be decoded")
        return
    picture.size = decoded.size
    said = request.first_pass().to_record(picture.used, call.size)
    _save(job, picture, decoded, request, said, outputs)


def keep(model: Any, job: Job, picture: Picture, outputs: Path) -> None:
    """Finish a picture that was stopped: decode and save its last estimate of x_0, and record how far it came."""
    if picture.finished or not picture.frames or picture.used is None:
        return
    frame = picture.frames[-1]
    request = _carrying(job.of_picture(job.pictures.index(picture)))
    decoded = arrays.to_picture(_decoded(model.decode, frame.denoised))
    call = request.to_call(model.default_size)
    finished = call.finish(decoded)
    said = request.to_record(picture.used, call.size)
    said.extra[keys.STOPPED] = f"{frame.index} of {frame.total} steps"
    frame.decoded = preview.jpeg(decoded)
    picture.size = finished.size
    _save(job, picture, finished, request, said, outputs)


def decoded_jpeg(decode: Callable[[Any], Any], latents: np.ndarray) -> bytes:
    """Decode latents (h, w, C) with one of the model's functions, to a small JPEG."""
    return preview.jpeg(arrays.to_picture(_decoded(decode, latents)))


def _decoded(decode: Callable[[Any], Any], latents: np.ndarray) -> np.ndarray:
    import mlx.core as mx

    return np.asarray(decode(mx.array(latents.astype(np.float32))[None]), dtype=np.float32)[0]


def halved(latents: np.ndarray) -> np.ndarray:
    """Latents (h, w, C) at half the size, each the mean of four: they decode in a quarter of the time."""
    height, width, channels = latents.shape
    even = np.pad(latents.astype(np.float32), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return even.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((1, 3))


class Decodes:
    """Decides when to decode an estimate while painting.

    In full if requested, or if nothing else can show colours; else as a draft of half the size, where the machine is
    quick enough for drafts to cost little.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._next = 0.0
        self._slow = 0

    def make(self, model: Any, frame: Frame) -> None:
        """Decode the frame's estimate if it is time to, and schedule the next; a failure does not cost the picture."""
        start = time.perf_counter()
        if start < self._next:
            return
        try:
            self._decode(model, frame, start)
        except Exception:
            log.exception("a preview failed; there are no more for this picture")
            self._next = math.inf

    def _decode(self, model: Any, frame: Frame, start: float) -> None:
        if self._in_full(frame):
            frame.decoded = decoded_jpeg(model.preview, frame.denoised)
            share = FULL_SHARE
        elif "auto" in self._job.request.previews and self._job.quick and self._job.drafting:
            frame.draft = decoded_jpeg(model.preview, halved(frame.denoised))
            share = DRAFT_SHARE
            self._slow = self._slow + 1 if time.perf_counter() - start > DRAFT_PATIENCE else 0
            self._job.drafting = self._slow < SLOW_DRAFTS
        else:
            return
        now = time.perf_counter()
        self._next = now + max(DECODE_EVERY, (now - start) * (1 / share - 1))

    def _in_full(self, frame: Frame) -> bool:
        requested = self._job.request.previews
        colours = "fast" in requested or "auto" in requested
        return "full" in requested or (colours and not preview.knows_colours(frame.denoised, self._job.latent_space))


def _record(step: Any) -> Frame:
    x_t, x_0 = (np.asarray(array, dtype=np.float32)[0].astype(np.float16) for array in (step.latents, step.denoised))
    found = Frame(step.index, step.total, float(step.sigma), x_t, x_0)
    found.pass_number, found.n_passes = step.pass_number, step.n_passes
    return found


def _carrying(request: Request) -> Request:
    """The request with the files that a PNG carries: a painted mask exists nowhere else.

    The picture is carried as the file that it was, and as a PNG only if it was changed here.
    """
    if request.mask is None or request.picture is None or not BY_KEY[request.file_format].carries_files:
        return request
    picture_file = request.picture_file or masks.picture_file(request.picture)
    return dataclasses.replace(request, picture_file=picture_file, mask_file=masks.mask_file(request.mask))


def _save(job: Job, picture: Picture, image: Image.Image, request: Request, said: Parameters, outputs: Path) -> None:
    """Save a finished picture; if its format refuses, as PNG; if the disk refuses, keep it for a download."""
    record = None if request.no_record else said
    if not job.save:
        picture.unsaved = picture_files.encoded(image, BY_KEY[request.file_format].suffix, record)
        return
    folder = outputs / datetime.now().strftime("%Y-%m-%d")
    carries = request.mask_file is not None and not request.no_record
    files = (request.picture_file, request.mask_file) if carries else ()
    carry = [file for file in files if file is not None]
    suffixes = dict.fromkeys((BY_KEY[request.file_format].suffix, BY_KEY["png"].suffix))
    for suffix in suffixes:
        try:
            picture.path = picture_files.save_new_picture(image, folder, record, suffix, carry)
            if record is not None and long.too_long(picture.path, record):
                job.warning = (
                    "A JPEG cannot hold a record as long as this one: it is whole in the .txt file next to it."
                )
            return
        except Exception as error:
            log.exception("could not save a picture in %s", folder)
            job.warning = f"The picture could not be saved as {suffix[1:]}: {in_plain_words(error)}"
            if isinstance(error, OSError):
                break
    picture.unsaved = picture_files.encoded(image, BY_KEY["png"].suffix, record)
    job.warning = f"{job.warning} Download it from here to keep it."


def _warn(job: Job, note: str) -> None:
    if note not in job.warning:
        job.warning = f"{job.warning} {note}".strip()
