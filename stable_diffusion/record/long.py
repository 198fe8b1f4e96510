"""Records that are too long for a JPEG: a shortened one inside, and the whole one next to it in NAME.txt."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from .. import atomic
from ..pictures import exif
from ..pictures.formats import format_of
from .parameters import Parameters
from .reading import UNICODE, Record, of_text

SHORTENED, WHERE = "Shortened", "the whole record is in the .txt of this name"
MAX_BYTES = 65_533 - len(exif.with_comment(UNICODE))  # of UTF-16: a JPEG's segment less the rest of the block
MAX_VALUE = 1000  # characters of a setting's value, where something has to be cut
SPARE = 200  # bytes, for what the form adds to a prompt
MAX_TEXT_FILE = 16 << 20  # bytes


def too_long(path: Path, parameters: Parameters | None) -> bool:
    """Whether a file of this name, a JPEG, cannot hold the parameters."""
    form = format_of(path)
    return form is not None and form.pillow == "JPEG" and parameters is not None and _size(parameters) > MAX_BYTES


def shortened(parameters: Parameters) -> Parameters:
    """Parameters with settings, prompt and negative prompt cut so that a JPEG can hold them, and that say so."""
    extra = {key: value[:MAX_VALUE] for key, value in parameters.extra.items()} | {SHORTENED: WHERE}
    settings = replace(parameters, prompt="", negative="", extra=extra)
    if _size(settings) > MAX_BYTES // 2:
        settings.extra = {SHORTENED: WHERE}
    left = max(MAX_BYTES - _size(settings) - SPARE, 0)
    prompt, negative = (text.encode("utf-16-be", "replace") for text in (parameters.prompt, parameters.negative))
    negative = negative[: max(left // 4 * 2, left - len(prompt))]
    prompt = prompt[: left - len(negative)]
    return replace(settings, prompt=_decoded(prompt), negative=_decoded(negative))


def write_beside(path: Path, parameters: Parameters) -> None:
    """Write the whole record to NAME.txt, unless something else is there, and warn that the picture's is shortened."""
    beside = path.with_suffix(".txt")
    where = "and is nowhere in full"
    try:
        if not beside.exists() or _record(beside) is not None:
            atomic.write_whole(beside, _text(parameters))
            where = f"and is in full in {beside.name!r}"
    except OSError as error:
        where += f": {error.strerror or error}"
    warnings.warn(f"How {path.name!r} was made is too long for a JPEG: it is shortened there, {where}.", stacklevel=3)


def whole(path: Path, record: Record) -> Record:
    """The record of a picture, or the whole one beside it if that is shortened."""
    short = record.parameters
    if short is None or SHORTENED not in short.extra:
        return record
    found = _record(path.with_suffix(".txt"))
    same = found is not None and found.parameters is not None and shortened(found.parameters) == short
    return found if same and found is not None else record


def _record(path: Path) -> Record | None:
    """The record that a text file is, or None if it is something else, such as a caption."""
    try:
        if path.stat().st_size > MAX_TEXT_FILE:
            return None
        record = of_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return record if record.parameters is not None and record.parameters.steps is not None else None


def _decoded(utf16: bytes) -> str:
    return utf16[: len(utf16) // 2 * 2].decode("utf-16-be", "ignore")


def _text(parameters: Parameters) -> str:
    return parameters.to_text().encode("utf-8", "replace").decode()


def _size(parameters: Parameters) -> int:
    return len(_text(parameters).encode("utf-16-be"))
