"""Pictures with labels instead of captions, for a model that learns from scratch: digits, or a folder."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import InputError, PictureError
from ..listing import walk
from ..pictures.reading import fit, open_picture
from .data import SUFFIXES
from .digits import Digits


class Labelled(Protocol):
    """Square pictures with labels; `labels` are their names, none if there are no classes.

    Every index from 0 up has an example, always the same one.
    """

    size: int
    channels: int
    labels: tuple[str, ...]

    def example(self, index: int) -> tuple[np.ndarray, int]: ...


def open_labelled(name_or_folder: str | os.PathLike, size: int, seed: int = 0) -> Labelled:
    """ "digits", or a folder of pictures. Raises `InputError` for anything else."""
    if str(name_or_folder) == "digits":
        return Digits(size, seed)
    if not Path(name_or_folder).is_dir():
        raise InputError(
            f"There is no data at {str(name_or_folder)!r}: give 'digits', which are drawn as they are needed, or a "
            "folder of pictures, in subfolders if they are of several kinds."
        )
    return PictureFolders(Path(name_or_folder), size)


class PictureFolders:
    """A folder of pictures: the subfolder that a picture lies in is its label; without subfolders there are none.

    Pictures are cropped to a square at the centre. Those that cannot be opened are skipped with one warning that names
    them; `InputError` is raised if none is left. Their order is shuffled, always the same, and indices wrap around.
    """

    channels = 3

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        found = sorted(each for each in walk(path) if each.suffix.lower() in SUFFIXES)
        names = sorted({each.relative_to(path).parts[0] for each in found if each.parent != path})
        broken = [each for each in found if not _opens(each)]
        if names and any(each.parent == path for each in found):
            raise InputError(
                f"{str(path)!r} has pictures both in subfolders ({', '.join(names[:5])}) and outside: sort all into "
                "subfolders, one for each kind, or none."
            )
        self.labels = tuple(names)
        self.files = [each for each in found if each not in broken]
        if not self.files:
            raise InputError(f"There are no pictures in {str(path)!r} that can be opened: give .jpg, .png or .webp.")
        if broken:
            some = ", ".join(str(each.relative_to(path)) for each in broken[:8])
            warnings.warn(f"Skipped {len(broken)} in {str(path)!r} that cannot be opened: {some}.", stacklevel=2)
        np.random.default_rng(0).shuffle(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int) -> tuple[np.ndarray, int]:
        """(size, size, 3) uint8 and its label, 0 if there are none. Raises `PictureError` for a file since removed."""
        file = self.files[index % len(self.files)]
        return np.asarray(fit(open_picture(file), self.size, self.size)), self.label(index)

    def label(self, index: int) -> int:
        """The example's label, 0 if there are none."""
        file = self.files[index % len(self.files)]
        return self.labels.index(file.relative_to(self.path).parts[0]) if self.labels else 0


def _opens(path: Path) -> bool:
    try:
        open_picture(path)
    except PictureError:
        return False
    return True
