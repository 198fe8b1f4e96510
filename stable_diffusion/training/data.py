"""What a training reads: pictures with captions, by number."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import InputError, PictureError
from ..pictures.reading import fit, open_picture
from .postcards.painter import caption, paint, random_postcard

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
METADATA = "metadata.jsonl"


class Data(Protocol):
    """Pictures with captions. Every index from 0 up has an example, and always the same one."""

    size: int

    def example(self, index: int) -> tuple[np.ndarray, str]: ...

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]: ...


def open_data(name_or_folder: str | os.PathLike, size: int, seed: int = 0) -> Data:
    """ "postcards", or a folder of pictures with captions. Raises `InputError` for anything else."""
    if str(name_or_folder) == "postcards":
        return Postcards(size, seed)
    if not Path(name_or_folder).is_dir():
        raise InputError(
            f"No data at {str(name_or_folder)!r}: give 'postcards', which are painted as they are needed, or a folder "
            f"of pictures with captions."
        )
    return PictureFolder(name_or_folder, size)


class Postcards:
    """Endless painted postcards: the picture of an index depends on (size, seed, held_out, index) alone.

    With `held_out` they are the combinations that training never sees.
    """

    def __init__(self, size: int, seed: int = 0, held_out: bool = False):
        self.size, self.seed, self.held_out = _size(size), seed, held_out

    def example(self, index: int) -> tuple[np.ndarray, str]:
        """(size, size, 3) uint8 and its caption."""
        rng = np.random.default_rng((self.seed, index, int(self.held_out)))
        card = random_postcard(rng, self.held_out)
        return np.asarray(paint(card, self.size)), caption(card, rng)

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """(B, size, size, 3) uint8 and B captions."""
        return _batch(self, indices)


class PictureFolder:
    """A folder of pictures, each with a caption in a .txt file beside it or in a line of metadata.jsonl.

    A line reads {"file_name": "picture.jpg", "text": "a caption"}. Pictures are cropped at the centre to a square.
    Those that cannot be opened or have no caption are passed over, and one warning names them; `InputError` is raised
    where none is left. Indices go on after the last picture with the first one.
    """

    def __init__(self, path: str | os.PathLike, size: int):
        self.path, self.size = Path(path), _size(size)
        if not self.path.is_dir():
            raise InputError(f"No folder at {str(path)!r}; give a folder that holds pictures and captions.")
        self.names: list[str] = []
        self.captions: list[str] = []
        passed_over = []
        for name, text, reason in _captioned(self.path):
            reason = reason or _flaw(self.path / name)
            if reason:
                passed_over.append(f"{name} ({reason})")
            else:
                self.names.append(name)
                self.captions.append(text)
        told = _list(passed_over)
        if not self.names:
            raise InputError(
                f"No picture with a caption in {str(path)!r}{': ' + told if told else ''}. A .jpg, .png or .webp "
                f"needs a .txt file of the same name beside it, or a line in {METADATA}: "
                f'{{"file_name": "picture.jpg", "text": "a caption"}}.'
            )
        if told:
            warnings.warn(f"Passed over in {str(path)!r}: {told}.", stacklevel=2)

    def __len__(self) -> int:
        return len(self.names)

    def example(self, index: int) -> tuple[np.ndarray, str]:
        """(size, size, 3) uint8 and its caption. Raises `PictureError` where the file has gone or changed since."""
        i = index % len(self.names)
        return np.asarray(fit(open_picture(self.path / self.names[i]), self.size, self.size)), self.captions[i]

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """(B, size, size, 3) uint8 and B captions."""
        return _batch(self, indices)


def _batch(data: Data, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
    pictures, captions = zip(*(data.example(int(i)) for i in indices), strict=True)
    return np.stack(pictures), list(captions)


def _size(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 8 <= size <= 2048:
        raise InputError(
            f"Pictures of {size!r} pixels a side cannot be trained on; give a whole number from 8 to 2048."
        )
    return int(size)


def _captioned(folder: Path) -> list[tuple[str, str, str]]:
    """(file name, caption, what is wrong or "") of every picture that the folder holds or names, by name."""
    written = _metadata(folder / METADATA)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    rows = []
    for name in sorted(found | written.keys()):
        beside = (folder / name).with_suffix(".txt")
        text, reason = written.get(name, ""), ""
        if not text and beside.is_file():
            try:
                text = " ".join(beside.read_text(encoding="utf-8-sig").split())
            except (OSError, UnicodeDecodeError):
                reason = f"{beside.name} is no UTF-8 text"
        rows.append((name, text, reason or ("" if text else "no caption")))
    return rows


def _metadata(path: Path) -> dict[str, str]:
    """File name -> caption. Raises `InputError`, with the number of the line, for what is no such file."""
    if not path.is_file():
        return {}
    captions = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a caption may hold other line ends
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not written in UTF-8.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
            name = text = None
        if not isinstance(name, str) or not isinstance(text, str):
            raise InputError(
                f"Line {number} of {str(path)!r} reads {line[:80]!r}; it should read "
                f'{{"file_name": "picture.jpg", "text": "a caption"}}.'
            )
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"Line {number} of {str(path)!r} names {name!r}, which is outside the folder.")
        captions[Path(name).as_posix()] = " ".join(text.split())
    return captions


def _flaw(path: Path) -> str:
    try:
        open_picture(path)
    except PictureError:
        return "cannot be opened" if path.is_file() else "no such file"
    return ""


def _list(names: list[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
