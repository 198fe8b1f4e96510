"""Pictures enlarged by the worker, for page and API: a task that needs no diffusion model."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError, PictureError, StableDiffusionError
from ..pictures import reading
from ..record import picture_files
from ..record.parameters import Parameters
from ..upscaling.enlarging import Enlarger, Upscale
from ..upscaling.settings import Upscaling
from ..upscaling.upscalers import Upscaler
from .jobs import Report, Task
from .words import in_plain_words
from .worker import Worker

log = logging.getLogger(__name__)
SUFFIX = ".png"


@dataclass(frozen=True)
class Source:
    """A picture to enlarge: its file's name and bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Enlarged:
    """What a picture became: its file, or its bytes if that was not wanted or could not be written."""

    source: Source
    size: tuple[int, int]
    path: Path | None
    unsaved: bytes | None

    def read(self) -> bytes | None:
        """The file's bytes; None if it was deleted."""
        try:
            return self.path.read_bytes() if self.path is not None else self.unsaved
        except OSError:
            return None


class Enlarging:
    """Some pictures in the worker's queue, enlarged one after the other; finished ones stay if it is cancelled.

    Only the worker's thread adds to `results`, `failures` and `warning`; any thread may read.
    """

    def __init__(self, worker: Worker, sources: Sequence[Source], settings: Upscaling, save: bool = True):
        """Raises `InputError` for pictures that cannot be enlarged so far, and `QueueFullError`."""
        for source in sources:
            check(source, settings)
        self.sources = list(sources)
        self.settings = settings
        self.save = save
        self.results: list[Enlarged] = []
        self.failures: list[tuple[str, str]] = []  # the source's name, and why
        self.warning = ""
        self._worker = worker
        self.task: Task = worker.compute(object(), self._run)

    def _run(self, model: Any, report: Report) -> None:
        report(f"Loading {self.settings.upscaler}", None)
        upscale = Upscale(self.settings, self._enlarger)
        for i, source in enumerate(self.sources):
            count = f", {i + 1} of {len(self.sources)}" if len(self.sources) > 1 else ""
            note = f"Enlarging {source.name}{count}"

            def progress(done: int, total: int, i: int = i, note: str = note) -> None:
                report(note, (i + done / total) / len(self.sources))

            try:
                picture = reading.open_picture(source.data, under=None)
                self.results.append(self._saved(source, upscale(picture, progress)))
            except StableDiffusionError as error:
                if len(self.sources) == 1:
                    raise
                self.failures.append((source.name, in_plain_words(error)))

    def _enlarger(self, upscaler: Upscaler) -> Enlarger:
        """An upscaler that the worker keeps for the next task, until its file changes."""
        stamp = None if upscaler.path is None else (upscaler.path, upscaler.path.stat().st_mtime_ns)
        kept = self._worker.kept
        if (key := (upscaler.name, stamp)) not in kept:
            if len(kept) > 1:  # two are what a mixture takes
                kept.clear()
            kept[key] = Enlarger(upscaler)
        return kept[key]

    def _saved(self, source: Source, picture: Image.Image) -> Enlarged:
        said = self.settings.recorded(_record(source))
        path = None
        if self.save:
            try:
                folder = self._worker.outputs / datetime.now().strftime("%Y-%m-%d")
                path = picture_files.save_new_picture(picture, folder, said, SUFFIX)
            except OSError as error:
                log.exception("could not save a picture")
                self.warning = f"{in_plain_words(error)} What was not saved can be downloaded here."
        data = None if path is not None else picture_files.encoded(picture, SUFFIX, said)
        return Enlarged(source, picture.size, path, data)


def check(source: Source, settings: Upscaling) -> tuple[int, int]:
    """(width, height) of the result, from the picture's header. Raises `InputError` if it would be too large.

    The gallery shows pictures of up to `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(source.data), formats=reading.pillow_formats()) as image:
            size = image.size
    except Exception:  # Pillow's readers raise a dozen kinds
        raise PictureError(f"{source.name!r} is not a picture that can be read.") from None
    width, height = settings.result_size(size)
    if max(width * height, size[0] * size[1]) > reading.MAX_PIXELS:
        raise InputError(
            f"{source.name!r} would become {width} x {height} pixels, more than {reading.MAX_PIXELS // 10**6} million: "
            f"choose a smaller factor or size."
        )
    return width, height


def _record(source: Source) -> Parameters | None:
    try:
        record = picture_files.read_record(io.BytesIO(source.data))
    except PictureError:
        return None
    return record.parameters if record else None
