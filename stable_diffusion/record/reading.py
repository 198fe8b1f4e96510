"""What a picture says about how it was made, whichever program wrote it: as it is in the file, and as `Parameters`."""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import PictureError
from ..pictures import exif
from ..pictures.formats import titles
from ..pictures.reading import MAX_PIXELS, pillow_formats
from . import programs
from .parameters import Parameters
from .programs.values import SINGLE, from_json

PARAMETERS, USER_COMMENT, COMMENT, DESCRIPTION = "parameters", "UserComment", "Comment", "Description"
UNICODE, ASCII = b"UNICODE\0", b"ASCII\0\0\0"  # how a user comment begins
# The texts by which programs say how a picture was made; other ones, such as Title, are not shown as a record.
_OF_PROGRAMS = (
    PARAMETERS, USER_COMMENT, "prompt", "workflow", "invokeai_metadata", "invokeai_graph", "invokeai_workflow",
    "sd-metadata", "Dream", "generation_data",
)  # fmt: skip
_EXIF_TEXTS = {exif.DESCRIPTION: DESCRIPTION, exif.SOFTWARE: "Software"}
_NAMED = re.compile(r"\s*(prompt|workflow)\s*:\s*(?=\{)", re.IGNORECASE)  # ComfyUI's, in any EXIF text
_JSON_START = re.compile(r'\s*(\{\s*["}]|\[\s*[{"])')
_XMP_TEXT = re.compile(r"<(exif:UserComment|dc:description)\b[^>]*>(.{0,1000000}?)</\1>", re.DOTALL)


@dataclass(frozen=True)
class Record:
    """What a picture says about how it was made."""

    text: str  # as it is in the file; several texts as one JSON object
    parameters: Parameters | None  # None: another program's, which is not understood
    program: str = ""  # that wrote it, if not in A1111's form


def read(source: str | os.PathLike | IO[bytes]) -> Record | None:
    """The record in a picture (a path or an open file), ours or another program's; None also for a format without any.

    Raises `PictureError` if the file is not a picture, or cannot be read.
    """
    name = repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "The picture"
    try:
        with Image.open(source, formats=pillow_formats()) as picture:
            return of_texts(_texts(picture.info)) or of_texts(_texts(_late_texts(picture)))
    except FileNotFoundError:
        raise PictureError(f"There is no file {name}.") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a {titles()} picture.") from None
    except Exception as error:  # Pillow's readers raise a dozen kinds
        raise PictureError(f"{name} cannot be read as a picture: {error}") from None


def of_text(text: str) -> Record:
    """The record that is this text; `Record.text` gives the same record again."""
    record = of_texts({PARAMETERS: text})
    if record is not None and record.parameters is not None:
        return record
    several = {key: value for key, value in (from_json(text) or {}).items() if isinstance(value, str)}
    found = programs.read(several)
    return Record(text, found[1], found[0]) if found else Record(text, None)


def of_texts(texts: Mapping[str, str]) -> Record | None:
    """The record among a picture's texts by their keys, or None."""
    for key in (PARAMETERS, USER_COMMENT):  # A1111's form, by whichever program, is what is understood best
        if (text := texts.get(key, "")).strip() and not _is_json(text):
            return Record(text, Parameters.from_text(text))
    if found := programs.read(texts):
        return Record(_as_one(texts), found[1], found[0])
    for key in (COMMENT, DESCRIPTION):  # may be about anything; a record is what has settings
        if (parameters := Parameters.from_text(texts.get(key, ""))).steps is not None:
            return Record(texts[key], parameters)
    of_programs = {key: texts[key] for key in _OF_PROGRAMS if texts.get(key, "").strip()}
    return Record(_as_one(of_programs), None) if of_programs else None


def _is_json(text: str) -> bool:
    """Whether a text is JSON, or the beginning of it, rather than a prompt."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return bool(_JSON_START.match(text)) and Parameters.from_text(text).steps is None


def _as_one(texts: Mapping[str, str]) -> str:
    if len(texts) == 1 and texts.keys() <= set(SINGLE):
        return next(iter(texts.values()))
    return json.dumps(dict(texts), ensure_ascii=False, indent=1)


def _texts(info: Mapping[Any, Any]) -> dict[str, str]:
    """The texts in a picture's metadata, by key."""
    tags = exif.tags(exif.block_of(dict(info)))
    found = {}
    for tag, value in tags.items():
        if isinstance(value, bytes) and tag != exif.USER_COMMENT:
            text = value.decode("utf-8", "replace").strip("\0")
            if named := _NAMED.match(text):
                found[named[1].lower()] = text[named.end() :]
            elif tag in _EXIF_TEXTS:
                found[_EXIF_TEXTS[tag]] = text
    if text := _decode(tags.get(exif.USER_COMMENT)):
        found[USER_COMMENT] = text
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or ""
    for key, content in _XMP_TEXT.findall(xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp):
        found.setdefault(
            USER_COMMENT if key.endswith(USER_COMMENT) else DESCRIPTION,
            html.unescape(re.sub("<[^>]*>", "", content)).strip(),
        )
    if isinstance(comment := info.get("comment"), bytes):  # of a JPEG or a GIF
        found[COMMENT] = comment.decode("utf-8", "replace").strip("\0")
    return found | {str(key): str(text) for key, text in info.items() if isinstance(text, str) and key not in exif.KEYS}


def _late_texts(picture: Image.Image) -> dict[Any, Any]:
    """What a PNG has after its pixels, which are read for that."""
    if not isinstance(picture, PngImagePlugin.PngImageFile) or math.prod(picture.size) >= MAX_PIXELS:
        return {}
    return {**picture.text, **picture.info}


def _decode(comment: Any) -> str:
    """The text of a user comment."""
    if not isinstance(comment, bytes):
        return ""
    if not comment.startswith(UNICODE):
        return comment.removeprefix(ASCII).removeprefix(bytes(8)).decode("utf-8", "replace").strip("\0")
    # Big-endian by custom; of the programs that write little-endian, none writes more ASCII when read that way.
    texts = [comment[len(UNICODE) :].decode(f"utf-16-{order}", "replace") for order in ("be", "le")]
    return max(texts, key=lambda text: sum(c.isascii() for c in text)).lstrip("\ufeff").strip("\0")
