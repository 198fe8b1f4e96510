"""What a picture needs to be made again: its model, VAE, LoRAs and embeddings, found by name and compared by hash."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .. import catalogue
from ..errors import CheckpointNotFoundError, PictureError

HASH_LENGTHS = {10, 64}  # of a checkpoint: A1111's short ones, and whole ones; older ones of 8 are of something else
_NAMED = re.compile(r"(.+?): ?([^\s:,]+)(?:, *|$)")


def pairs(text: str) -> list[tuple[str, str]]:
    """`name: value, other: value` as recorded; names may have commas and colons in them."""
    return [(match[1].strip(), match[2]) for match in _NAMED.finditer(text)]


def model(name: str | None, digits: str | None) -> catalogue.Model:
    """The model of a name and a hash (or None): by the hash among the local ones, else by the name.

    Raises `CheckpointNotFoundError` for one that is not here, or is another file.
    """
    wanted = f"the model {name or '?'!r}" + (f" (hash {digits})" if digits else "")
    digits = digits.lower()[:10] if digits and len(digits) in HASH_LENGTHS else None
    files = [each for each in catalogue.local() if digits and os.path.isfile(each.source) and not each.problem]
    by_hash = next((each for each in files if catalogue.known_hash(each.source) == digits), None)
    if by_hash is not None:
        return by_hash
    found: catalogue.Model | None
    try:
        found = catalogue.find(name or "")
    except CheckpointNotFoundError:
        found = next((each for each in files if catalogue.short_hash(each.source) == digits), None)  # reads them whole
    if found is None:
        raise CheckpointNotFoundError(
            f"The picture was made with {wanted}, which is not here. Put it into models/, or give one with --model."
        )
    if not _may_load(found, name or ""):
        raise CheckpointNotFoundError(
            f"The picture was made with {wanted}, which is not here; whoever made the picture may have written any "
            f"name. --model {name} takes it."
        )
    own = catalogue.short_hash(found.source)
    if digits and own not in (None, digits):
        raise CheckpointNotFoundError(
            f"The picture was made with {wanted}; {found.source!r} is another one, of hash {own}. Put the one that is "
            f"meant into models/, or take one with --model."
        )
    return found


def _may_load(found: catalogue.Model, name: str) -> bool:
    """Whether a stranger's word is enough to load it: no downloads but the catalogue's, no paths."""
    if any(found.source == listed.source for listed in catalogue.all()):
        return True
    return found.present if found.kind == catalogue.HUB else not {"/", "\\"} & set(name)


def vae(name: str, digits: str | None, picture: str) -> str:
    """A VAE's file, folder or id: in the current folder, beside the picture, or where models lie.

    Raises `CheckpointNotFoundError` for one that is not here, or is another file.
    """
    from ..model_io import hub

    others = []
    for path in _vae_candidates(name, picture):
        if not path.exists():
            continue
        own = catalogue.short_hash(path)
        if not digits or own is None or own == digits.lower()[:10]:
            return str(path)
        others.append(f" {str(path)!r} has the hash {own}.")
    if hub.REPOSITORY.fullmatch(name) and hub.cached_vae(name) is not None:
        return name
    raise CheckpointNotFoundError(
        f"The picture was made with the VAE {name!r}{f' (hash {digits})' if digits else ''}, which is not here."
        f"{''.join(others)} Put it into models/, or give it with --vae FILE."
    )


def _vae_candidates(name: str, picture: str) -> Iterator[Path]:
    last = name.replace("\\", "/").rpartition("/")[2]
    if last in ("", ".", ".."):
        return
    yield from (Path(last), Path(picture).parent / last)
    for folder in catalogue.model_folders():
        yield from (folder / last, folder / "VAE" / last, folder.parent / "VAE" / last)


def loras(recorded: str, hashes: Mapping[str, str], given: Sequence[str]) -> list[str]:
    """`NAME:STRENGTH` for --lora of all that were laid over the model; those `given` as files take their names' place.

    Raises `CheckpointNotFoundError` for one that is not here, and `PictureError` for one that has not the hash.
    """
    from ..adapters import files

    own = {Path(file).stem: file for file in given}
    chosen = []
    for name, strength in pairs(recorded):
        path = files.find(files.LORAS, own.get(name, name), names_only=name not in own)
        _check(path, files.LORAS, name, hashes.get(name))
        chosen.append(f"{path}:{strength}")
    return chosen


def check_named(kind: str, hashes: Sequence[tuple[str, str]]) -> None:
    """Compare what a prompt names, LoRAs or embeddings, with the recorded names and hashes; raises as `loras`."""
    from ..adapters import files

    for name, digits in hashes:
        _check(files.find(kind, name, names_only=True), kind, name, digits)


def _check(path: Path, kind: str, name: str, digits: str | None) -> None:
    from ..adapters import files

    own = files.short_hash(path)
    if digits and not (own.startswith(digits.lower()) or digits.lower().startswith(own)):
        raise PictureError(
            f"{str(path)!r} is not the {files.TITLES[kind]} {name!r} that was used: its hash is {own}, that one's was "
            f"{digits}. --force takes it all the same."
        )
