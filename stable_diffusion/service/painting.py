"""A job's pictures, batch by batch: the engine's steps recorded, the result saved. For the worker's thread only."""

import dataclasses
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..attention import AttentionMaps
from ..errors import InputError, NotFiniteError, StableDiffusionError
from ..pictures import arrays
from ..pictures.arrays import ONE_COLOUR
from ..pictures.formats import BY_KEY, WRITTEN
from ..record import keys, long, picture_files
from ..record.parameters import Parameters
from ..request import Call, Request
from . import loras, masks, preview
from .jobs import Frame, Job, Picture, Series
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
    """Paint the job's next batch: record every step, check for cancel and skip after each, save the results.

    `refiner` takes over from the model; None if there is none. A batch that the engine refuses, such as for the memory
    it would need, is painted one by one.

    Raises Cancelled, and whatever the engine raises; the steps recorded so far are kept.
    """
    places = job.batch_from(len(job.pictures))
    job.skip_event.clear()
    request = _carrying(job.of_picture(places[0]))
    call = request.to_call(model.default_size, refiner)
    maps = AttentionMaps(MAX_STAGES) if job.request.attention else None
    try:
        steps = _begun(model, job, call, request, len(places), maps)
    except InputError as error:
        if len(places) == 1:
            raise
        log.info("a batch of %d is painted one by one: %s", len(places), error)
        places = places[:1]
        steps = _begun(model, job, call, request, 1, maps)
    pictures = [_picture(job, place, (len(places), i)) for i, place in enumerate(places)]
    job.pictures += pictures
    try:
        finished = _painted(model, job, pictures, call, steps, maps)
    except BaseException:
        _keep_first(model, job, pictures, call, outputs)
        raise
    if finished is None:
        _keep_first(model, job, pictures, call, outputs)
        return
    images, problem = finished
    for picture, image in zip(pictures, images, strict=True):
        if image is not None:
            picture.size = image.size
            _save(job, picture, image, *_of(job, picture, request, call.size), outputs)
    if problem is not None:
        raise problem


def check_texts(model: Any, refiner: Any = None, *, job: Series) -> None:
    """Raise what the engine refuses, before anything is painted: one cell of each pair of texts is begun."""
    pairs = {(cell.request.prompt, cell.request.blend_prompt): cell.request for cell in job.cells}
    with overlaid(model, job.cells[0].request):
        for request in pairs.values():
            call = request.to_call(model.default_size, refiner)
            model.generate_latents(**call.arguments | request.seeds_of(0)).close()


def _begun(model: Any, job: Job, call: Call, request: Request, n_images: int, maps: AttentionMaps | None) -> Any:
    """The generation of a batch; raises what is refused."""
    more: dict[str, Any] = {"progress": job.report} if {"hires", "tile"} & call.arguments.keys() else {}
    more |= {"with_start": True} | ({} if maps is None else {"attention": maps})
    if n_images > 1:
        more["n_images"] = n_images
    return model.generate_latents(**call.arguments | request.seeds_of(0) | more)


def _picture(job: Job, place: int, batch: tuple[int, int]) -> Picture:
    request = job.of_picture(place)
    return Picture(seed=request.seed, seeds=request.seeds_of(0), batch=batch)


def _of(job: Job, picture: Picture, like: Request, size: tuple[int, int]) -> tuple[Request, Parameters]:
    """A picture's own request, with the files of one `like` it, and its record."""
    request = job.request_of(picture)
    request = dataclasses.replace(request, picture_file=like.picture_file, mask_file=like.mask_file)
    assert picture.used is not None
    said = request.to_record(picture.used, size)
    said.extra |= keys.of_batch(*picture.batch)
    return request, said


def _painted(
    model: Any, job: Job, pictures: Sequence[Picture], call: Call, generation: Any, maps: AttentionMaps | None
) -> tuple[list[Image.Image | None], NotFiniteError | None] | None:
    """Run the generation of a batch; None if it was skipped. A picture that is NaN is None, and then says why."""
    decodes, decoding = Decodes(job), job.request_of(pictures[0]).decoding
    before = time.perf_counter()
    last: np.ndarray | None = None
    problem = None
    new_pass = True
    with _kept(maps, pictures), closing(generation) as steps:
        used = steps.used
        for picture in pictures:
            picture.used = used
        for note in steps.notes:
            _warn(job, note)
        for step in steps:
            frames = _record(step)
            if step.index < step.total and step.ends_pass:
                for picture, latents in zip(pictures, np.asarray(step.latents, dtype=np.float32), strict=True):
                    picture.first = latents
            if step.index == step.total:
                last, problem = _decoded_batch(model, step.latents, decoding)
                for frame, image in zip(frames, last, strict=True):
                    frame.decoded = preview.jpeg(arrays.to_picture(image)) if np.isfinite(image).all() else None
            else:
                decodes.make(partial(model.preview, **decoding), frames[-1])  # the one that is shown
            for picture, frame in zip(pictures, frames, strict=True):
                picture.frames.append(frame)
            job.note = ""  # of what came between two passes
            now = time.perf_counter()
            if not (new_pass or step.begins_pass):  # the first includes the text encoder and other one-time work
                job.step_seconds.append((now - before) / len(pictures))
            before, new_pass = now, step.ends_pass or step.begins_pass
            if last is None:  # a finished picture is kept, even if a cancel came meanwhile
                job.stop_if_cancelled()
                if job.skip_event.is_set():
                    for picture in pictures:
                        picture.skipped = True
                    return None
    if last is None and call.unchanged is not None:
        last = np.stack([np.asarray(call.unchanged, np.float32) / 255] * len(pictures))
    if last is None:
        raise StableDiffusionError("The model ran no step, so there is no picture.")
    if steps.used.vae_precision != used.vae_precision:
        _warn(job, VAE_WIDENED)
    found: list[Image.Image | None] = []
    for picture, values in zip(pictures, last, strict=True):
        picture.used, picture.first = steps.used, None
        image = arrays.to_picture(values) if np.isfinite(values).all() else None
        if image is not None and arrays.is_one_colour(image):
            _warn(job, f"The picture is a single colour. {ONE_COLOUR}")
        found.append(None if image is None else call.finish(image))
    return found, problem


@contextmanager
def _kept(maps: AttentionMaps | None, pictures: Sequence[Picture]) -> Iterator[None]:
    """Keep at the end what has been recorded of the words, small, also of pictures that were stopped."""
    try:
        yield
    finally:
        for picture, found in zip(pictures, () if maps is None else maps.pictures, strict=False):
            if found.levels:
                picture.attention = found.smaller(MAPS_SIDE)


def _decoded_batch(model: Any, latents: Any, decoding: Mapping[str, str]) -> tuple[np.ndarray, NotFiniteError | None]:
    """Finished pictures (B, H, W, 3); with those that are whole, the error of those that are NaN."""
    try:
        return np.asarray(model.decode(latents, **decoding), dtype=np.float32), None
    except NotFiniteError as error:
        if error.pictures is None:
            raise
        return np.asarray(error.pictures, dtype=np.float32), error


def _keep_first(model: Any, job: Job, pictures: Sequence[Picture], call: Call, outputs: Path) -> None:
    """Save what the first of two passes painted, if the second was stopped or failed, with a record of its own."""
    for picture in pictures:
        if picture.first is None or picture.used is None:
            continue
        request = _carrying(job.request_of(picture))
        try:
            decoded = arrays.to_picture(_decoded(partial(model.decode, **request.decoding), picture.first))
        except Exception:
            log.exception("what the first pass painted cannot be decoded")
            return
        picture.size = decoded.size
        said = request.first_pass().to_record(picture.used, call.size)
        _save(job, picture, decoded, request, said, outputs)


def keep(model: Any, job: Job, picture: Picture, outputs: Path) -> None:
    """Save a picture that is in memory alone.

    One that was stopped is finished for that: its last estimate of x_0 is decoded, and how far it came is recorded.
    """
    if picture.unsaved is not None:
        _save_encoded(job, picture, outputs)
        return
    frame = picture.estimate
    if picture.finished or frame is None or picture.used is None:
        return
    request = _carrying(job.request_of(picture))
    decoded = arrays.to_picture(_decoded(partial(model.decode, **request.decoding), frame.denoised))
    call = request.to_call(model.default_size)
    finished = call.finish(decoded)
    said = request.to_record(picture.used, call.size)
    said.extra |= keys.of_batch(*picture.batch)
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

    def make(self, decode: Callable[[Any], Any], frame: Frame) -> None:
        """Decode the frame's estimate if it is time to, and schedule the next; a failure does not cost the picture."""
        start = time.perf_counter()
        if start < self._next:
            return
        try:
            self._decode(decode, frame, start)
        except Exception:
            log.exception("a preview failed; there are no more for this picture")
            self._next = math.inf

    def _decode(self, decode: Callable[[Any], Any], frame: Frame, start: float) -> None:
        if self._in_full(frame):
            frame.decoded = decoded_jpeg(decode, frame.denoised)
            share = FULL_SHARE
        elif "auto" in self._job.request.previews and self._job.quick and self._job.drafting:
            frame.draft = decoded_jpeg(decode, halved(frame.denoised))
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


def _record(step: Any) -> list[Frame]:
    """A step of each picture of the batch, or what it begins with."""
    found = []
    for x_t, x_0 in zip(*(np.asarray(each, dtype=np.float32) for each in (step.latents, step.denoised)), strict=True):
        frame = Frame(step.index, step.total, float(step.sigma), x_t.astype(np.float16), x_0.astype(np.float16))
        frame.pass_number, frame.n_passes, frame.begins = step.pass_number, step.n_passes, step.begins_pass
        found.append(frame)
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


def _save_encoded(job: Job, picture: Picture, outputs: Path) -> None:
    """Save the file that a picture is already."""
    assert picture.unsaved is not None
    record = picture_files.read_parameters(io.BytesIO(picture.unsaved))
    with Image.open(io.BytesIO(picture.unsaved)) as opened:
        suffix = next(each.suffix for each in WRITTEN if each.pillow == opened.format)
    folder = outputs / datetime.now().strftime("%Y-%m-%d")
    picture.path = picture_files.save_new_picture(picture.unsaved, folder, record, suffix)
    picture.unsaved = None


def _warn(job: Job, note: str) -> None:
    if note not in job.warning:
        job.warning = f"{job.warning} {note}".strip()
