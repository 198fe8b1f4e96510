"""What a picture needs to be regenerated: its model, VAE, LoRAs and embeddings, found by name and compared by hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import catalogue, recorded
from ..errors import CheckpointNotFoundError, PictureError
from ..record import keys


def model(name: str | None, digits: str | None, option: str = "--model") -> catalogue.Model:
    """The model of a name and a hash (or None), as `recorded.find_model` finds it; `option` gives another one.

    Else a folder in the current one, or a hub id that has been downloaded, by its very name.
    Raises `CheckpointNotFoundError` for one that is not here, for another file, and for an ambiguous name.
    """
    try:
        return recorded.find_model(name or "", digits, read=True)
    except CheckpointNotFoundError as error:
        if name and name not in (".", "..") and not {"/", "\\"} & set(name):
            found = catalogue.from_folder(name)
        else:
            found = recorded.find_downloaded(name or "")
        if found is not None:
            return found
        raise CheckpointNotFoundError(
            f"{error} The picture was made with it: put it into models/, or give one with {option}."
        ) from None


def vae(name: str, digits: str | None, picture: str) -> str:
    """A VAE's file, folder or id: in the current folder, next to the picture, or as `recorded.find_vae` finds it.

    Raises `CheckpointNotFoundError` for one that is not here, for another file, and for an ambiguous name.
    """
    from ..model_io import hub

    last = name.replace("\\", "/").rpartition("/")[2]
    near = [] if last in ("", ".", "..") else [Path(last), Path(picture).parent / last]
    try:
        return str(recorded.find_vae(name, digits, near))
    except CheckpointNotFoundError as error:
        if hub.REPOSITORY.fullmatch(name) and hub.cached_vae(name) is not None:
            return name
        raise CheckpointNotFoundError(
            f"{error} The picture was made with it: put it into models/VAE/, or give it with --vae FILE."
        ) from None


def loras(text: str, hashes: Mapping[str, str], given: Sequence[str]) -> list[str]:
    """`FILE:STRENGTH` for --lora of all LoRAs in a record's `text`; `given` files replace those of their names.

    Raises `CheckpointNotFoundError` for one that is not here, and `PictureError` for one of another hash.
    """
    from ..adapters import files

    own = {files.name_of(files.LORAS, Path(file)): file for file in given}
    own |= {Path(file).stem: file for file in given}
    chosen = []
    for name, strength in keys.pairs(text):
        digits = hashes.get(name, "")
        path = files.find(files.LORAS, own[name]) if name in own else _named(files.LORAS, name, digits)
        _check(path, files.LORAS, name, digits)
        chosen.append(f"{path}:{strength}")
    return chosen


def check_named(kind: str, hashes: Sequence[tuple[str, str]]) -> None:
    """Compare what a prompt names, LoRAs or embeddings, with the recorded names and hashes; raises as `loras`."""
    from ..adapters import files

    for name, digits in hashes:
        _check(files.find(kind, name, names_only=True, digits=digits), kind, name, digits)


def _named(kind: str, name: str, digits: str) -> Path:
    """The file of a recorded name, or else of its hash: one that was renamed."""
    from ..adapters import files

    try:
        return files.find(kind, name, names_only=True, digits=digits)
    except CheckpointNotFoundError:
        path = files.find_hash(kind, digits)
        if path is None:
            raise
        return path


def _check(path: Path, kind: str, name: str, digits: str) -> None:
    from ..adapters import files

    if digits and not files.has_hash(path, digits):
        raise PictureError(
            f"{str(path)!r} is not the {files.TITLES[kind]} {name!r} that was used: its hash is "
            f"{files.short_hash(path)}, not {digits}. --force takes it all the same."
        )
