"""Which model and VAE a picture was made with, of those on this machine, by hash and name. Needs no MLX.

Pictures come from anywhere: what they name is looked for in the catalogue's lists, and never taken as a path, or as
something to download.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import catalogue
from .catalogue import Model
from .errors import CheckpointNotFoundError
from .listing import ambiguous, matches

HASH_LENGTHS = {10, 64}  # of checkpoints: A1111's short ones, and whole ones; those of 8 are of something else


def find_model(name: str, digits: str | None = None, read: bool = False) -> Model:
    """The model of a hash, among the files, or else of a name: the catalogue's, or the end of a path.

    `read` computes hashes that are not known yet, for which whole files are read. Raises `CheckpointNotFoundError` for
    a model that is not here, for another file of its name, and where several may be meant.
    """
    listed = catalogue.all()
    digits = digits.lower()[:10] if digits and len(digits) in HASH_LENGTHS else None
    files = [model for model in listed if digits and os.path.isfile(model.source) and not model.problem]
    found = catalogue.matching(name, listed) or catalogue.matching(_without_folders(name), listed)
    if same := [model for model in files if catalogue.known_hash(model.source) == digits]:
        return next((model for model in found if model in same), same[0])
    hashes = {model.name: _hash(model.source, read) if digits else None for model in found}
    if same := [model for model in found if digits and hashes[model.name] == digits]:
        return same[0]
    unknown = [model for model in found if hashes[model.name] is None]
    if len(unknown) > 1:
        raise CheckpointNotFoundError(ambiguous("model", name, [model.name for model in unknown]))
    if unknown:
        return unknown[0]
    if read and (model := next((each for each in files if _hash(each.source) == digits), None)):
        return model
    raise CheckpointNotFoundError(_not_here("model", name, digits, hashes))


def find_downloaded(hub_id: str) -> Model | None:
    """A model of the hub that has been downloaded, listed or not."""
    return model if (model := catalogue.of_hub(hub_id)) and model.present else None


def find_vae(name: str, digits: str | None = None, near: Iterable[Path] = ()) -> Path:
    """The VAE of a hash, or else the first of the `near` files and folders that is there, or else of a listed name.

    Raises `CheckpointNotFoundError` for one that is not here, for another file of its name, and where several may be
    meant.
    """
    known = catalogue.vaes()
    digits = digits.lower()[:10] if digits else None
    if same := next((path for path in known.values() if digits and catalogue.known_hash(path) == digits), None):
        return same
    nearby = {str(path): path for path in near if path.exists()}
    names = matches(name, known) or matches(_without_folders(name), known)
    found = nearby | {each: known[each] for each in names}
    hashes = {each: _hash(path) if digits else None for each, path in found.items()}
    fitting = [each for each, own in hashes.items() if digits and own == digits]
    fitting += [each for each in nearby if hashes[each] is None]
    if fitting:
        return found[fitting[0]]
    unknown = [each for each in names if hashes[each] is None]
    if len(unknown) > 1:
        raise CheckpointNotFoundError(ambiguous("VAE", name, unknown))
    if unknown:
        return found[unknown[0]]
    raise CheckpointNotFoundError(_not_here("VAE", name, digits, hashes))


def _hash(path: str | Path, read: bool = True) -> str | None:
    """A file's hash; None for a folder, for one that cannot be read, and for one that is not known without reading."""
    try:
        return catalogue.short_hash(path) if read else catalogue.known_hash(path)
    except OSError:
        return None


def _not_here(title: str, name: str, digits: str | None, others: Mapping[str, str | None]) -> str:
    """What to say where nothing fits; `others` have the name, and other hashes."""
    wanted = f"The {title} {name or '?'!r}{f' (hash {digits})' if digits else ''} is not here"
    listed = ", ".join(f"{each!r} (hash {own})" for each, own in others.items())
    return f"{wanted}; of its name there is {listed}." if others else f"{wanted}."


def _without_folders(name: str) -> str:
    """A file's name without the folders that it had on another machine; a hub id as it is."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return last if "\\" in name or last.lower().endswith(catalogue.WEIGHTS) else name
