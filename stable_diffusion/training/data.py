"""Training data: pictures with captions, by number."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import InputError, PictureError
from ..listing import walk
from ..pictures.reading import fit, open_picture
from .postcards.painter import Postcard, caption, paint, random_postcard

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
METADATA = "metadata.jsonl"


class Data(Protocol):
    """Pictures with captions. Every index from 0 up has an example, always the same one."""

    size: int

    def example(self, index: int) -> tuple[np.ndarray, str]: ...

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]: ...


def open_data(name_or_folder: str | os.PathLike, size: int, seed: int = 0) -> Data:
    """ "postcards", or a folder of pictures with captions. Raises `InputError` for anything else."""
    if str(name_or_folder) == "postcards":
        return Postcards(size, seed)
    if not Path(name_or_folder).is_dir():
        raise InputError(
            f"There is no data at {str(name_or_folder)!r}: give 'postcards', which are painted as they are needed, or "
            f"a folder of pictures with captions."
        )
    return PictureFolder(name_or_folder, size)


class Postcards:
    """Endless painted postcards; each depends only on (size, seed, held_out, index).

    With `held_out` they show the combinations that training never sees.
    """

    def __init__(self, size: int, seed: int = 0, held_out: bool = False):
        self.size, self.seed, self.held_out = _size(size), seed, held_out

    def example(self, index: int) -> tuple[np.ndarray, str]:
        """(size, size, 3) uint8 and its caption."""
        rng = self._rng(index)
        card = random_postcard(rng, self.held_out)
        return np.asarray(paint(card, self.size)), caption(card, rng)

    def card(self, index: int) -> Postcard:
        """What is on the postcard."""
        return random_postcard(self._rng(index), self.held_out)

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """(B, size, size, 3) uint8 and B captions."""
        return _batch(self, indices)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index, int(self.held_out)))


class PictureFolder:
    """A folder of pictures, each captioned by a .txt file of the same name or by a line of metadata.jsonl.

    A line reads {"file_name": "picture.jpg", "text": "a caption"}. Pictures are cropped to a square at the centre.
    Pictures that cannot be opened or have no caption are skipped with one warning that names them; `InputError` is
    raised if none is left. Indices wrap around after the last picture.
    """

    def __init__(self, path: str | os.PathLike, size: int):
        self.path, self.size = Path(path), _size(size)
        if not self.path.is_dir():
            raise InputError(f"There is no folder at {str(path)!r}; give a folder of pictures with captions.")
        self.names: list[str] = []
        self.captions: list[str] = []
        skipped = []
        for name, text, reason in _captioned(self.path):
            reason = reason or _flaw(self.path / name)
            if reason:
                skipped.append(f"{name} ({reason})")
            else:
                self.names.append(name)
                self.captions.append(text)
        list_of_skipped = shortened(skipped)
        if not self.names:
            raise InputError(
                f"No picture with a caption in {str(path)!r}{': ' + list_of_skipped if skipped else ''}. A .jpg, .png "
                f"or .webp needs a .txt file of the same name next to it, or a line in {METADATA}: "
                f'{{"file_name": "picture.jpg", "text": "a caption"}}.'
            )
        if skipped:
            warnings.warn(f"Skipped in {str(path)!r}: {list_of_skipped}.", stacklevel=2)

    def __len__(self) -> int:
        return len(self.names)

    def example(self, index: int) -> tuple[np.ndarray, str]:
        """(size, size, 3) uint8 and its caption. Raises `PictureError` if the file was removed or changed since."""
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
        raise InputError(f"Cannot train on pictures of {size!r} pixels per side; give a whole number from 8 to 2048.")
    return int(size)


def _captioned(folder: Path) -> list[tuple[str, str, str]]:
    """(file name, caption, problem or "") of every picture in the folder or in its metadata, sorted by name."""
    written = metadata_captions(folder / METADATA)
    found = {path.relative_to(folder).as_posix() for path in walk(folder) if path.suffix.lower() in SUFFIXES}
    rows = []
    for name in sorted(found | written.keys()):
        caption_file = (folder / name).with_suffix(".txt")
        text, reason = written.get(name, ""), ""
        if not text and caption_file.is_file():
            try:
                text = " ".join(caption_file.read_text(encoding="utf-8-sig").split())
            except (OSError, UnicodeDecodeError):
                reason = f"{caption_file.name} is not UTF-8 text"
        rows.append((name, text, reason or ("" if text else "no caption")))
    return rows


def metadata_captions(path: Path) -> dict[str, str]:
    """File name -> caption. Raises `InputError` with the line number for malformed lines."""
    if not path.is_file():
        return {}
    captions = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a caption may contain other line separators
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not UTF-8 text.") from None
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


def shortened(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
