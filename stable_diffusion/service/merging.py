"""A merge of checkpoints in the worker's queue: a task that needs no diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import catalogue
from ..checks import number
from ..errors import InputError
from ..model_io.convert import SUFFIX
from ..model_io.merge import ADD_DIFFERENCE, merge
from .jobs import Report, Task
from .worker import Worker

MAX_NAME = 100  # characters
FORBIDDEN = '/\\:*?"<>|'


class Merging:
    """Two or three models of the catalogue, merged into a new one; cancelled, it leaves nothing behind."""

    def __init__(
        self,
        worker: Worker,
        models: Sequence[catalogue.Model],
        name: str,
        multiplier: float,
        mode: str,
        float16: bool = False,
    ):
        """Raises `InputError` for a name that cannot be used and for models that are the same, and `QueueFullError`."""
        number("multiplier", multiplier, 0, 2)
        self.target = target(name)
        mixed = models[1:] if mode == ADD_DIFFERENCE else models
        if len({model.source for model in mixed}) < len(mixed):
            raise InputError(f"{mixed[0].name!r} is chosen twice, which would change nothing: choose another model.")
        sources = [model.source for model in models]

        def run(model: Any, report: Report) -> None:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            merge(sources, self.target, multiplier, mode, float16, progress=report)

        self.task: Task = worker.compute(object(), run)

    @property
    def name(self) -> str:
        """How the result is listed."""
        return self.target.name


def target(name: str) -> Path:
    """The file of a new model, in the first folder of models. Raises `InputError` for a name that cannot be used."""
    found = name.strip().removesuffix(SUFFIX).strip()
    if not found:
        raise InputError("The new model needs a name.")
    if len(found) > MAX_NAME or found.startswith(".") or any(c in FORBIDDEN or not c.isprintable() for c in found):
        raise InputError(
            f"{found[:MAX_NAME]!r} cannot be a file's name: take up to {MAX_NAME} letters, digits, blanks, - and _."
        )
    path = catalogue.model_folders()[0] / f"{found}{SUFFIX}"
    taken = {model.name.casefold() for model in catalogue.all()}
    if path.exists() or {found.casefold(), path.name.casefold()} & taken:
        raise InputError(f"There is a model {found!r} already: take another name.")
    return path
