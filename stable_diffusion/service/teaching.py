"""Training in the worker's queue: what teaches a model from a few pictures, and lets paintings go first.

A run is a folder of `folder()`: its pictures with their captions, run.json with what was asked for, and what is learnt
with its state. So it can be resumed after a stop, a restart, or with more time. What was learnt is copied to where
LoRAs or embeddings are looked for.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic, catalogue
from ..adapters import files
from ..errors import InputError, PictureError, StableDiffusionError
from ..listing import visible
from ..pictures import reading
from ..places import home
from ..training.runs import RUNS, Option, Run
from .jobs import Cancelled, Report, Task
from .worker import Worker

if TYPE_CHECKING:
    from ..training.loop import Progress

TEACHING = {run.name: run for run in RUNS.values() if run.teaches}
CAPTION = ".txt"
ASKED = "run.json"
NAME = re.compile(r"[^\W_][\w .+-]{0,59}")
_HERE = ("data", "model", "full")  # options that the page answers itself; what it makes is a LoRA or a word


@dataclass(frozen=True)
class Example:
    """A picture to learn from, or a caption for one: its file's name and bytes."""

    name: str
    data: bytes

    @property
    def is_caption(self) -> bool:
        """Whether it is a caption."""
        return self.name.lower().endswith(CAPTION)


@dataclass(frozen=True)
class Asked:
    """What to train: a row of `TEACHING`, the name of what comes of it, the model, how long, and the row's options."""

    run: str
    name: str
    model: str
    minutes: float | None = None
    steps: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[str] = field(default_factory=list)  # pictures that cannot be opened, with why

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return folder() / self.name

    @property
    def pictures(self) -> Path:
        """What it learns from."""
        return self.folder / "pictures"

    @property
    def file(self) -> Path:
        """What it makes, in its own folder."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def kind(self) -> str:
        """Whether that is one of files.LORAS or files.EMBEDDINGS."""
        return files.EMBEDDINGS if self.run == "inversion" else files.LORAS

    @property
    def installed(self) -> Path:
        """Where it is found by its name."""
        return files.folders(self.kind)[0] / self.file.name

    @property
    def tag(self) -> str:
        """What to write into a prompt to use it."""
        return self.name if self.kind == files.EMBEDDINGS else f"<lora:{self.name}:1>"


def folder() -> Path:
    """Where runs live, each in a folder of its name."""
    return home() / "training"


def options(run: Run) -> tuple[Option, ...]:
    """A row's options that a page asks for."""
    return tuple(option for option in run.options if option.name not in _HERE)


def options_for(run: Run, model: str) -> tuple[Option, ...]:
    """The same with their defaults for a model's `source`."""
    defaults = run.defaults({"model": model})
    return tuple(replace(option, default=defaults[option.name]) for option in options(run))


def past() -> list[Asked]:
    """The runs that can be resumed, the newest first."""
    try:
        found = [each / ASKED for each in visible(folder()) if (each / ASKED).is_file()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [asked for path in found if (asked := _read(path)) is not None]


def _read(path: Path) -> Asked | None:
    try:
        asked = Asked(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return asked if asked.run in TEACHING and asked.name == path.parent.name else None


def begin(asked: Asked, examples: Sequence[Example]) -> Asked:
    """Make the folder of a new run, without the pictures that cannot be opened, which are `skipped`.

    Raises `InputError` for what cannot be trained so, and OSError.
    """
    if not NAME.fullmatch(asked.name) or asked.name.endswith("."):
        raise InputError(
            f"{asked.name!r} cannot be a name: begin with a letter or digit, and use letters, digits, spaces, and "
            f"- + . _, 60 at most."
        )
    if asked.folder.exists():
        raise InputError(f"There is a run {asked.name!r} already: resume it, delete it, or choose another name.")
    if asked.installed.exists():
        raise InputError(f"{str(asked.installed)!r} exists already: choose another name.")
    values = {each.name: each.check(each.name, asked.values[each.name])
              for each in options(TEACHING[asked.run]) if asked.values.get(each.name) is not None}  # fmt: skip
    problems = {example.name: _problem(example) for example in examples}
    skipped = [f"{name} ({problem})" for name, problem in problems.items() if problem]
    good = [example for example in examples if not problems[example.name]]
    if all(each.is_caption for each in good):
        why = f" None of these can be opened: {', '.join(skipped[:5])}." if skipped else ""
        raise InputError(f"There are no pictures to learn from.{why} Give five to twenty of one subject or style.")
    asked = replace(asked, values=values, skipped=skipped)
    try:
        _write(asked, good)
    except BaseException:
        shutil.rmtree(asked.folder, ignore_errors=True)
        raise
    return asked


def _problem(example: Example) -> str:
    """Why a picture cannot be used, or ""."""
    if example.is_caption:
        return ""
    try:
        reading.open_picture(example.data)
    except PictureError as error:
        return str(error)
    return ""


def _write(asked: Asked, examples: Sequence[Example]) -> None:
    asked.pictures.mkdir(parents=True)
    for example in examples:
        target = asked.pictures / Path(example.name).name[-120:].lstrip(".")
        if target.exists():
            raise InputError(f"There are two files named {example.name!r}: rename one.")
        atomic.write_whole(target, example.data)
    note(asked)


def note(asked: Asked) -> None:
    """Keep what was asked for. Raises OSError."""
    atomic.write_whole(asked.folder / ASKED, json.dumps(asdict(asked), indent=1) + "\n")


def delete(asked: Asked) -> None:
    """Delete a run's folder; what it has taught stays where LoRAs and embeddings are."""
    shutil.rmtree(asked.folder, ignore_errors=True)


_latest: weakref.WeakKeyDictionary[Worker, Teaching] = weakref.WeakKeyDictionary()


def latest(worker: Worker) -> Teaching | None:
    """The run that was queued last, whichever tab asked for it."""
    return _latest.get(worker)


class Teaching:
    """A run in the worker's queue. Only the worker's thread writes to it; any thread may read."""

    def __init__(self, worker: Worker, asked: Asked):
        """Raises `QueueFullError`."""
        self.asked = asked
        self.progress: Progress | None = None
        self.losses: list[tuple[int, float]] = []
        self.sheet: Path | None = None  # the newest sample sheet
        self._worker, self._key = worker, object()
        self.task: Task = worker.compute(self._key, self._run, yields=True)
        _latest[worker] = self

    def _run(self, model: Any, report: Report) -> None:
        from ..training.loop import LOG, Limit, read_log

        asked, run = self.asked, TEACHING[self.asked.run]
        task = self._worker.task(self._key)
        assert task is not None
        title = f"Training {asked.name}"
        states = run.states(asked.file)
        lines = read_log(states) if (states / LOG).is_file() else []
        self.losses = [(int(line["step"]), line["loss"]) for line in lines if "loss" in line]

        def between() -> bool:
            self._worker.give_way()
            return not task.cancelling

        def hear(progress: Progress) -> None:
            self.progress, self.sheet = progress, progress.sheet or self.sheet
            if "loss" in progress.figures:
                self.losses.append((progress.step, progress.figures["loss"]))
            with contextlib.suppress(Cancelled):  # `between` ends the run, with its state saved
                report(f"{title}: step {progress.step}", progress.done)

        def prepare(message: str, fraction: float | None = None) -> None:
            report(f"{title}: {message}", fraction)

        prepare("reading pictures")
        limit = Limit(asked.minutes, asked.steps)
        values = dict(asked.values) | {"model": catalogue.find_listed(asked.model).source, "data": str(asked.pictures)}
        run.start(asked.file, limit, hear, between, prepare, **values)
        self.sheet = newest_sheet(states) or self.sheet
        if asked.file.is_file():
            install(asked)
        task.stop_if_cancelled()


def install(asked: Asked) -> None:
    """Copy what was learnt to where it is found by its name. Raises `StableDiffusionError` where that fails."""
    try:
        with atomic.written(asked.installed) as path:
            shutil.copyfile(asked.file, path)
    except OSError as error:
        raise StableDiffusionError(
            f"{str(asked.file)!r} is finished, but cannot be copied to {str(asked.installed.parent)!r} "
            f"({error.strerror}): copy it yourself."
        ) from None


def newest_sheet(states: Path) -> Path | None:
    """The sample sheet that a run wrote last."""
    return max(states.glob("[0-9]*.png"), default=None)
