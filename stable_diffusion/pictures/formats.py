"""The formats of picture files in one table: their names, and what they can carry. Imports no Pillow."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format. `record` is where parameters are stored: a PNG's text, EXIF, a comment, or nowhere."""

    key: str  # value of the setting
    title: str
    suffixes: tuple[str, ...]  # new files get the first one
    pillow: str  # Pillow's name
    mime: str
    record: str = ""
    lossless: bool = False
    carries_files: bool = False
    written: bool = False  # whether pictures can be saved in it

    @property
    def suffix(self) -> str:
        """The suffix for new files."""
        return self.suffixes[0]


FORMATS: tuple[Format, ...] = (
    Format("png", "PNG", (".png",), "PNG", "image/png", "text", lossless=True, carries_files=True, written=True),
    Format("jpeg", "JPEG", (".jpg", ".jpeg", ".jfif"), "JPEG", "image/jpeg", "exif", written=True),
    Format("webp", "WebP", (".webp",), "WEBP", "image/webp", "exif", written=True),
    Format("bmp", "BMP", (".bmp",), "BMP", "image/bmp"),
    Format("tiff", "TIFF", (".tif", ".tiff"), "TIFF", "image/tiff"),
    Format("avif", "AVIF", (".avif",), "AVIF", "image/avif", "exif"),
    Format("gif", "GIF", (".gif",), "GIF", "image/gif", "comment"),
)
if importlib.util.find_spec("pi_heif"):  # an optional package, LGPL: a decoder alone
    FORMATS += (Format("heic", "HEIC", (".heic", ".heif"), "HEIF", "image/heic"),)
BY_KEY = {each.key: each for each in FORMATS}
WRITTEN = tuple(each for each in FORMATS if each.written)
WRITTEN_SUFFIXES = tuple(suffix for each in WRITTEN for suffix in each.suffixes)
UPLOADS = tuple(suffix[1:] for each in FORMATS for suffix in each.suffixes)  # accepted by the page's uploaders


def format_of(path: str | os.PathLike) -> Format | None:
    """The format of a file by its suffix, in upper or lower case, or None."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return next((each for each in FORMATS if suffix in each.suffixes), None)


def titles(formats: tuple[Format, ...] = FORMATS) -> str:
    """The formats in words: "PNG, JPEG or WebP"."""
    names = [each.title for each in formats]
    return f"{', '.join(names[:-1])} or {names[-1]}"
