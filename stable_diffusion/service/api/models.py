"""Models and VAEs by the names that clients know them by: only those that are on this machine."""

from __future__ import annotations

import contextlib
import logging
from pathlib import PurePosixPath

from ... import catalogue
from ...model_io import moved
from .errors import ApiError

log = logging.getLogger(__name__)
AUTOMATIC_VAE = ("", "automatic", "none")


def usable() -> list[catalogue.Model]:
    """The models that can be loaded here and now: no route starts a download."""
    return [model for model in catalogue.all() if model.present and not model.problem]


def title(model: catalogue.Model) -> str:
    """The name that A1111 shows: the file's, with its hash where that is known."""
    hashed = catalogue.known_hash(model.source) if model.kind == catalogue.LOCAL else None
    return f"{model.name} [{hashed}]" if hashed else model.name


def stem(model: catalogue.Model) -> str:
    """The name without folders and ending."""
    path = PurePosixPath(model.name)
    return path.stem if model.name.lower().endswith(catalogue.WEIGHTS) else path.name


def find(name: str) -> catalogue.Model:
    """The model of a title, a name (with or without its ending, folders or hash), or a hash. Raises ApiError 404."""
    wanted = name.strip()
    bare = wanted.partition(" [")[0]
    models = usable()
    for fits in (
        lambda model: model.name in (wanted, bare),
        lambda model: bare.lower() in (model.name.lower(), model.title.lower(), stem(model).lower()),
        lambda model: bare.lower() == PurePosixPath(model.name).name.lower(),
        lambda model: len(bare) >= 8 and (catalogue.known_hash(model.source) or "-").startswith(bare[:10].lower()),
    ):
        for model in models:
            if fits(model):
                return model
    if note := moved.note(bare):
        log.warning(note)
        with contextlib.suppress(ApiError):
            return find(moved.now_at(bare))
    raise ApiError(404, f"Model not found: {name[:200]!r}. {note}".rstrip())


def find_vae(name: str) -> str | None:
    """The VAE of a name; None for the model's own. Raises ApiError 404."""
    if name.strip().lower() in AUTOMATIC_VAE:
        return None
    for known in catalogue.vaes():
        if name.strip().lower() in (known.lower(), known.rpartition(".")[0].lower()):
            return known
    raise ApiError(404, f"VAE not found: {name[:200]!r}.")
