"""What the painting commands share: running a generation, and progress messages."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ranks
from ..errors import NotFiniteError
from .agreement import agree_on_engine
from .output import Output, Results

if TYPE_CHECKING:
    from ..record.parameters import Parameters
    from ..record.used import Used
    from ..request import Request

MAX_STAGES = 20  # of the steps, into which attention maps are gathered
BAR = "{desc}{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}, {elapsed} elapsed, {remaining} left"


def _batches(request: Request) -> Iterator[range]:
    start = 0
    while start < request.n_images:
        batch = request.batch_from(start)
        yield batch
        start = batch.stop


class Painter:
    """Runs the generations of one command: a progress bar, previews, and each picture saved once it is finished."""

    def __init__(self, sd: Any, refiner: Any, request: Request, output: Output, preview_every: int, quiet: bool):
        self.sd = sd
        self._refiner = refiner
        self.take(request)
        self.output = output
        self.results = Results(output, quiet)
        self.group = ranks.group()
        self.preview_every = 0 if self.group.rank else preview_every
        self.quiet = quiet
        self.steps = 0  # that were done here
        self.problem: NotFiniteError | None = None  # of some pictures of a batch
        self.maps: Any = None  # of the words in the latest batch, if asked for
        self.first: tuple[Any, Used] | None = None  # latents that the first of two passes painted, while in the second

    def paint(self, only: int | None = None) -> list[Path]:
        """Paint the request's pictures, `batch_size` at a time, and print the files, even when interrupted.

        `only` is the one picture to save, counted from 0. Of several machines each paints some batches, and rank 0
        saves them all; its paths are returned there.
        """
        import numpy as np

        from ..pictures import arrays

        request = self.request
        batches = list(_batches(request))
        results = self.results
        self.agree(self._arguments(batches[0]))
        bar = self.bar()

        def save(request: Request, batch: range, pictures: Any, used: Used) -> None:
            for i, picture in zip(batch, pictures, strict=True):
                if only in (None, i) and np.isfinite(picture).all():
                    made = self._record(request, used, batch, i)
                    painted = arrays.to_picture(picture)
                    path = results.add(i, self.call.finish(painted), made)
                    if self.maps is not None and self.maps.pictures and path is not None:
                        _write_maps(self.maps.pictures[i - batch[0]], painted, path)

        try:
            for place in self.group.share(len(batches)):
                batch = batches[place]
                save(request, batch, *self._batch(batch, bar, len(batches)))
            self.wait(bar)
        except BaseException:
            if self.first is not None:  # stopped in the second pass: what the first one painted is kept
                (latents, used), self.maps = self.first, None
                with contextlib.suppress(NotFiniteError):
                    save(request.first_pass(), batch, self._decoded(latents), used)
            raise
        finally:
            results.gather()
            bar.close()
            results.list_files()
        if self.problem is not None:
            raise self.problem
        results.complete(request.n_images)
        return results.paths

    def take(self, request: Request) -> None:
        """Paint this request from now on, with the same models."""
        self.request = request
        self.call = request.to_call(self.sd.default_size, self._refiner)

    def agree(self, first: dict[str, Any]) -> None:
        """Refuse early if other machines of this run have loaded something else; `first` are arguments of a picture."""
        if self.group.size > 1:
            agree_on_engine(self.sd, self.sd.generate_latents(**self.call.arguments | first).used)

    def wait(self, bar: Any) -> None:
        """Wait for the pictures of the other machines; one that is not rank 0 says what it could not paint."""
        if self.group.rank and self.problem is not None:
            self.results.report(self.problem)
            self.problem = None
        if self.group.rank == 0:
            for _ in self.results.wait():
                self._show(bar)

    def _show(self, bar: Any) -> None:
        bar.update(self.steps + self.group.steps - bar.n)

    def bar(self) -> Any:
        """A progress bar, for the caller to close."""
        from tqdm import tqdm

        return tqdm(total=0, bar_format=BAR, disable=self.quiet or self.group.rank > 0, leave=True)

    def run(self, more: dict[str, Any], bar: Any, n_runs: int, preview: Path | None = None) -> tuple[Any, Used]:
        """One generation's pictures (B, H, W, 3), float32 in [0, 1], and what painted them.

        `more` adds to the request's arguments; the preview file is deleted at the end.
        """
        import numpy as np

        latents = self.first = None
        start = time.monotonic()
        try:
            watched = {} if self.maps is None else {"attention": self.maps}
            generation = self.sd.generate_latents(**self.call.arguments | more | watched)
            for step in generation:
                latents = step.latents
                np.asarray(latents)  # evaluated, so that the bar shows what is done
                if step.ends_pass and step.pass_number < step.n_passes:
                    self.first = latents, generation.used
                self.steps += 1
                self.group.advance(self.steps, (time.monotonic() - start) / step.index * (step.total - step.index))
                self.results.gather()
                bar.total = step.total * n_runs
                self._show(bar)
                if preview and step.index % self.preview_every == 0 and step.index < step.total:
                    with contextlib.suppress(NotFiniteError):
                        pictures = self.sd.decode(step.denoised, **self.request.decoding)
                        self._write_preview(np.asarray(pictures), preview)
            pictures = self._unchanged(more) if latents is None else self._decoded(latents)
            self.first = None
            return pictures, generation.used
        finally:
            if preview:
                preview.unlink(missing_ok=True)

    def _unchanged(self, more: dict[str, Any]) -> Any:
        """The input picture, as often as asked for, where no step was run."""
        import numpy as np

        one = np.asarray(self.call.unchanged, np.float32) / 255
        return np.stack([one] * more.get("n_images", 1))

    def _decoded(self, latents: Any) -> Any:
        """Finished pictures; those that are NaN are left for `paint` to leave out, unless there is no other."""
        import numpy as np

        try:
            return np.asarray(self.sd.decode(latents, **self.request.decoding))
        except NotFiniteError as error:
            if error.pictures is None:
                raise
            self.problem = error
            return error.pictures

    def one(self, bar: Any, n_runs: int) -> tuple[Any, Parameters]:
        """The request's only picture, finished, and its record. Raises `NotFiniteError` as well."""
        from ..pictures import arrays

        own = self.request.of_picture(0)
        pictures, used = self.run(own.seeds_of(0), bar, n_runs)
        if self.problem is not None:
            raise self.problem
        return self.call.finish(arrays.to_picture(pictures[0])), own.to_record(used, self.call.size)

    def _batch(self, batch: range, bar: Any, n_batches: int) -> tuple[Any, Used]:
        """The pictures of one batch (B, H, W, 3), and what painted them."""
        if self.request.attention:
            from ..attention import AttentionMaps

            self.maps = AttentionMaps(MAX_STAGES)
        own = self._arguments(batch)
        preview = self.output.preview(batch[0] + 1, own["seed"]) if self.preview_every else None
        return self.run(own, bar, n_batches, preview)

    def _arguments(self, batch: range) -> dict[str, Any]:
        """The engine's arguments that are a batch's own."""
        own = self.request.of_picture(batch[0])
        texts = {"text": own.text, "negative_text": own.negative or None}
        second = {} if own.hires is None else {"hires": own.hires}
        return {"n_images": len(batch), **texts, **second, **own.seeds_of(0)}

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


def _write_maps(maps: Any, painted: Any, path: Path) -> None:
    """Where each word acts, next to a picture's file: a sheet of overlays, and all numbers."""
    from ..record import picture_files

    if maps.levels:  # of an empty prompt there are none
        picture_files.save_picture(maps.sheet(painted), path.with_name(f"{path.stem}.attention.png"))
        maps.save(path.with_name(f"{path.stem}.attention.npz"))


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
            message = ranks.group().label + message
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
