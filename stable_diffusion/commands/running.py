"""What the painting commands share: output files, running a generation, and progress messages."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NotFiniteError
from ..pictures.formats import WRITTEN_SUFFIXES

if TYPE_CHECKING:
    from ..record.inputs import InputFile
    from ..record.parameters import Parameters
    from ..record.used import Used
    from ..request import Request

BAR = "{desc}{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}, {elapsed} elapsed, {remaining} left"


class Output:
    """Where pictures go: a file, which is overwritten, or a folder, where each gets a new name."""

    def __init__(self, where: str | None, several: bool, carry: Sequence[InputFile] = ()):
        """Create the folder. `carry` are files to embed in the pictures.

        Raises `InputError` for a file type that is not written or cannot embed files, and where nothing can be written.
        """
        path = Path("outputs", date.today().isoformat()) if where is None else Path(where)
        self.several = several
        self.into_folder = means_folder(where)
        if not self.into_folder and path.suffix.lower() not in WRITTEN_SUFFIXES:
            raise InputError(
                f"--output {where!r} should end in {', '.join(WRITTEN_SUFFIXES)}, or in a slash to mean a folder."
            )
        if carry and not self.into_folder and path.suffix.lower() != ".png":
            raise InputError(f"--embed-inputs needs a PNG; --output {where!r} should end in .png.")
        self.path = path
        self.carry = carry
        self.folder = path if self.into_folder else path.parent
        why = cannot_write(self.folder)
        if why:
            raise InputError(f"{str(self.folder)!r} cannot be written to ({why}): choose another place with --output.")

    def save(self, picture: Any, number: int, parameters: Parameters) -> Path:
        """Save picture `number` (from 1) of the run, and return where."""
        from ..record import picture_files

        if self.into_folder:
            return picture_files.save_new_picture(picture, self.folder, parameters, carry=self.carry)
        return picture_files.save_picture(picture, self._file(number), parameters, self.carry)

    def preview(self, number: int, seed: int) -> Path:
        """The preview's file, next to the one that picture `number` will get."""
        from ..record import picture_files

        name = picture_files.free_path(self.folder, seed) if self.into_folder else self._file(number)
        return name.with_name(f"{name.stem}.preview.png")

    def _file(self, number: int) -> Path:
        return self.path.with_stem(f"{self.path.stem}-{number}") if self.several else self.path


def cannot_write(folder: Path) -> str | None:
    """Why no file can be created in a folder, which is created if it is missing; better told before painting."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None if os.access(folder, os.W_OK) else os.strerror(errno.EACCES)


def means_folder(where: str | None) -> bool:
    """Whether --output means a folder; None means today's."""
    return where is None or where.endswith(("/", "\\")) or Path(where).is_dir() or not Path(where).suffix


def _batches(request: Request) -> Iterator[range]:
    """The numbers of the pictures that are painted together: up to `batch_size`, and of the same prompts."""
    start = 0
    while start < request.n_images:
        end = min(start + request.batch_size, request.n_images)
        if request.texts:
            end = next((i for i in range(start, end) if request.texts[i] != request.texts[start]), end)
        yield range(start, end)
        start = end


class Painter:
    """Runs the generations of one command: a progress bar, previews, and each picture saved once it is finished."""

    def __init__(self, sd: Any, refiner: Any, request: Request, output: Output, preview_every: int, quiet: bool):
        self.sd = sd
        self.request = request
        self.call = request.to_call(sd.default_size, refiner)
        self.output = output
        self.preview_every = preview_every
        self.quiet = quiet
        self.problem: NotFiniteError | None = None  # of some pictures of a batch
        self.first: tuple[Any, Used] | None = None  # latents that the first of two passes painted, while in the second

    def paint(self, only: int | None = None) -> list[Path]:
        """Paint the request's pictures, `batch_size` at a time, and print the files, even when interrupted.

        `only` is the one picture to save, counted from 0.
        """
        import numpy as np

        from ..pictures import arrays

        request = self.request
        batches = list(_batches(request))
        paths: list[Path] = []
        lines = []
        bar = self.bar()

        def save(request: Request, batch: range, pictures: Any, used: Used) -> None:
            for i, picture in zip(batch, pictures, strict=True):
                if only in (None, i) and np.isfinite(picture).all():
                    made = self._record(request, used, batch, i)
                    painted = self.call.finish(arrays.to_picture(picture))
                    paths.append(self.output.save(painted, i + 1, made))
                    lines.append(str(paths[-1]) if self.quiet else f"{paths[-1]}  (seed {made.seed})")

        try:
            for batch in batches:
                save(request, batch, *self._batch(batch, bar, len(batches)))
        except BaseException:
            if self.first is not None:  # stopped in the second pass: what the first one painted is kept
                latents, used = self.first
                with contextlib.suppress(NotFiniteError):
                    save(request.first_pass(), batch, self._decoded(latents), used)
            raise
        finally:
            bar.close()
            for line in lines:
                print(line)
        if self.problem is not None:
            raise self.problem
        return paths

    def bar(self) -> Any:
        """A progress bar, for the caller to close."""
        from tqdm import tqdm

        return tqdm(total=0, bar_format=BAR, disable=self.quiet, leave=True)

    def run(self, more: dict[str, Any], bar: Any, n_runs: int, preview: Path | None = None) -> tuple[Any, Used]:
        """One generation's pictures (B, H, W, 3), float32 in [0, 1], and what painted them.

        `more` adds to the request's arguments; the preview file is deleted at the end.
        """
        import numpy as np

        latents = self.first = None
        try:
            generation = self.sd.generate_latents(**self.call.arguments | more)
            for step in generation:
                latents = step.latents
                np.asarray(latents)  # evaluated, so that the bar shows what is done
                if step.ends_pass and step.pass_number < step.n_passes:
                    self.first = latents, generation.used
                bar.total = step.total * n_runs
                bar.update()
                if preview and step.index % self.preview_every == 0 and step.index < step.total:
                    with contextlib.suppress(NotFiniteError):
                        self._write_preview(np.asarray(self.sd.decode(step.denoised)), preview)
            pictures = self._decoded(latents)
            self.first = None
            return pictures, generation.used
        finally:
            if preview:
                preview.unlink(missing_ok=True)

    def _decoded(self, latents: Any) -> Any:
        """Finished pictures; those that are NaN are left for `paint` to leave out, unless there is no other."""
        import numpy as np

        try:
            return np.asarray(self.sd.decode(latents))
        except NotFiniteError as error:
            if error.pictures is None:
                raise
            self.problem = error
            return error.pictures

    def _batch(self, batch: range, bar: Any, n_batches: int) -> tuple[Any, Used]:
        """The pictures of one batch (B, H, W, 3), and what painted them."""
        own = self.request.of_picture(batch[0])
        texts = {"text": own.prompt, "negative_text": own.negative or None}
        preview = self.output.preview(batch[0] + 1, own.seed or 0) if self.preview_every else None
        return self.run({"n_images": len(batch), **texts, **own.seeds_of(0)}, bar, n_batches, preview)

    def _record(self, request: Request, used: Used, batch: range, number: int) -> Parameters:
        """The record of one picture; `number` counts from 0."""
        from ..record import keys

        made = request.of_picture(number).to_record(used, self.call.size)
        made.extra |= keys.of_batch(len(batch), number - batch[0])
        return made

    @staticmethod
    def _write_preview(pictures: Any, path: Path) -> None:
        from ..pictures import arrays
        from ..record import picture_files

        picture_files.save_picture(arrays.grid(list(pictures)), path)


class Report:
    """Prints the engine's messages while it downloads and loads, to stderr; on a terminal with a percentage."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.message = ""
        self.live = sys.stderr.isatty()

    def __call__(self, message: str, fraction: float | None = None) -> None:
        if self.quiet:
            return
        new = message != self.message
        if new:
            self.end()
            self.message = message
        if self.live:
            percent = "" if fraction is None else f" {fraction:4.0%}"
            print(f"\r\033[K{message}{percent}", end="", file=sys.stderr, flush=True)
        elif new:
            print(message, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Finish the line."""
        if self.live and self.message:
            print(file=sys.stderr)
        self.message = ""
