"""A job's pictures, one after another: the engine's steps recorded, the end saved; for the worker's thread alone."""

import io
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from .. import catalogue
from ..errors import StableDiffusionError
from ..pictures import arrays
from ..pictures.inpainting import Inpainting
from ..pictures.reading import fit
from ..record import inputs, picture_files
from ..record.parameters import Parameters
from ..record.used import Used
from . import loras, masks, preview
from .jobs import Frame, Job, Picture, Request
from .words import in_plain_words

DECODE_EVERY = 0.2  # seconds at least between two decodes while painting
FULL_SHARE, DRAFT_SHARE = 1 / 2, 1 / 8  # of the time, at most: of full decodes, which are asked for, and of drafts
DRAFT_PATIENCE = 0.4  # seconds; of drafts that take longer, too few would come to be worth watching
SLOW_DRAFTS = 2  # one after another; a single one may be a hiccup of the machine
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}

log = logging.getLogger(__name__)


@contextmanager
def overlaid(model: Any, request: Request) -> Iterator[None]:
    """The model with the request's LoRAs over it, until the end. Raises what `set_loras` raises."""
    if request.loras:
        model.set_loras(loras.located(request.loras))
    try:
        yield
    finally:
        if request.loras:
            model.set_loras({})


def paint(model: Any, job: Job, outputs: Path) -> None:
    """Make the job's next picture: note every step, look for a cancel or a skip after each, save the end.

    Raises Cancelled, and whatever the engine raises; what was recorded until then stays.
    """
    picture = Picture()
    job.pictures.append(picture)
    job.skip_event.clear()
    decodes = Decodes(job)
    if job.request.variation_strength:
        picture.variation_seed = _variation_seed(job)
    inpainting = masks.inpainting(job.request, *_size(job.request, model))
    before = time.perf_counter()
    last = None
    with closing(model.generate_latents(job.request.prompt, **arguments(job, model, inpainting))) as steps:
        used = steps.used
        model_hash = _model_hash(job.request.model)
        for step in steps:
            frame = _record(step)
            picture.seed = step.seed
            if step.index == step.total:
                last = arrays.to_picture(np.asarray(model.decode(step.latents), dtype=np.float32)[0])
                frame.decoded = preview.jpeg(last)
            else:
                decodes.make(model, frame)
            picture.frames.append(frame)
            now = time.perf_counter()
            if step.index > 1:  # the first one carries the text encoder and whatever else is made once
                job.step_seconds.append(now - before)
            before = now
            if last is None:  # a picture that is ready is kept, whatever was wished meanwhile
                job.stop_if_cancelled()
                if job.skip_event.is_set():
                    picture.skipped = True
                    return
    if last is None:
        raise StableDiffusionError("The model made no step at all: nothing to show.")
    picture.size = (inpainting.original if inpainting else last).size
    said = parameters(job.request, picture, used, model_hash, _size(job.request, model))
    _save(job, picture, inpainting.finish(last) if inpainting else last, said, outputs)


def decoded_jpeg(decode: Callable[[Any], Any], latents: np.ndarray) -> bytes:
    """Have (h, w, C) decoded by one of the model's functions, and make a small JPEG of it."""
    import mlx.core as mx

    pictures = decode(mx.array(latents.astype(np.float32))[None])
    return preview.jpeg(arrays.to_picture(np.asarray(pictures, dtype=np.float32)[0]))


def halved(latents: np.ndarray) -> np.ndarray:
    """Latents (h, w, C) at half the size, each the mean of four: they decode in a quarter of the time."""
    height, width, channels = latents.shape
    even = np.pad(latents.astype(np.float32), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return even.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((1, 3))


class Decodes:
    """When to decode an estimate while painting.

    In full where that is asked for, or nothing else can show colours; as a draft of half the size where nothing is
    asked for, and the machine is quick enough that drafts cost little.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._next = 0.0
        self._slow = 0

    def make(self, model: Any, frame: Frame) -> None:
        """Decode the frame's estimate, if it is time to, and put off the next one."""
        start = time.perf_counter()
        if start < self._next:
            return
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
        wished = self._job.request.previews
        colours = "fast" in wished or "auto" in wished
        return "full" in wished or (colours and not preview.knows_colours(frame.denoised, self._job.latent_space))


def arguments(job: Job, model: Any, inpainting: Inpainting | None = None) -> dict[str, Any]:
    """Say a request in the engine's words, for the picture in hand: its seed is the first one's plus its place."""
    request, place = job.request, len(job.pictures) - 1
    first = request.seed if place == 0 else job.pictures[0].seed
    said: dict[str, Any] = {
        "negative_text": request.negative or None,
        "num_steps": request.steps,
        "cfg_weight": request.cfg,
        "width": request.width,
        "height": request.height,
        "seed": None if first is None else first + place,
        "sampler": request.sampler,
    }
    if request.clip_skip is not None:
        said["clip_skip"] = request.clip_skip
    if request.variation_strength:  # then the first noise is always the seed's, and is turned towards another one's
        said |= {
            "seed": first,
            "variation_seed": job.pictures[-1].variation_seed,
            "variation_strength": request.variation_strength,
        }
    if inpainting is not None:
        said |= {
            "input_image": inpainting.picture,
            "mask_image": inpainting.mask,
            "masked_content": request.masked_content,
            "denoising_strength": request.strength,
        }
    elif request.input_picture is not None:
        said |= {
            "input_image": fit(request.input_picture, *_size(request, model), request.fit),
            "denoising_strength": request.strength,
        }
    return said


def _variation_seed(job: Job) -> int:
    """That of the picture in hand: the first one's, which is drawn where none was asked for, plus its place."""
    place = len(job.pictures) - 1
    first = job.request.variation_seed if place == 0 else job.pictures[0].variation_seed
    return secrets.randbelow(2**32 - place) if first is None else first + place


def _size(request: Request, model: Any) -> tuple[int, int]:
    """The width and height that are painted, in pixels."""
    width, height = model.default_size
    return request.width or width, request.height or height


def parameters(
    request: Request, picture: Picture, used: Used, model_hash: str | None, painted: tuple[int, int]
) -> Parameters:
    """Gather what the saved file says about how it was made; `painted` is the size that was painted under a mask."""
    from ..record import keys
    from ..sampler import a1111_name

    sampler, schedule = a1111_name(request.sampler)
    width, height = picture.size if request.mask is None else painted
    return Parameters(
        prompt=request.prompt,
        negative=request.negative,
        steps=request.steps,
        sampler=sampler,
        schedule=schedule,
        cfg=request.cfg,
        seed=picture.seed,
        width=width,
        height=height,
        model=used.model,
        model_hash=model_hash,
        strength=request.strength if request.input_picture is not None else None,
        extra=(keys.of_fit(request.fit) if request.mask is None and request.input_picture else masks.said(request))
        | ({} if request.clip_skip is None else {keys.CLIP_SKIP: str(request.clip_skip)})
        | keys.of_variation(picture.variation_seed or 0, request.variation_strength)
        | keys.of_used(used),
    )


def _model_hash(name: str) -> str | None:
    try:
        return catalogue.short_hash(catalogue.find(name).source)
    except (StableDiffusionError, OSError):  # the file went away meanwhile: no reason to lose a picture
        return None


def _record(step: Any) -> Frame:
    x_t, x_0 = (np.asarray(array, dtype=np.float32)[0].astype(np.float16) for array in (step.latents, step.denoised))
    return Frame(step.index, step.total, float(step.sigma), x_t, x_0)


def _save(job: Job, picture: Picture, image: Image.Image, said: Parameters, outputs: Path) -> None:
    folder = outputs / datetime.now().strftime("%Y-%m-%d")
    carry = []
    if job.request.file_format == "png":  # which alone can carry what it was painted from
        carry = masks.files(job.request)
    file = job.request.input_file
    said.extra |= inputs.record(*carry) if carry or file is None else inputs.record(file)
    try:
        picture.path = picture_files.save_new_picture(image, folder, said, SUFFIXES[job.request.file_format], carry)
    except OSError as error:
        log.exception("could not save a picture in %s", folder)
        picture.unsaved = _png(image, said)
        job.warning = f"The picture could not be saved: {in_plain_words(error)} Download it from here to keep it."


def _png(image: Image.Image, said: Parameters) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", said.to_text().encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
