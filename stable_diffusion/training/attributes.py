"""Pictures with several labels each, for a classifier: what is on a postcard, or a folder's subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from ..errors import InputError
from .data import Postcards
from .labelled import PictureFolders, open_labelled
from .postcards.painter import COLOURS, PLACES, SKIES, THINGS, TIMES, Postcard

Heads = Mapping[str, Mapping[str, tuple[str, ...]]]  # attribute -> option -> the words that stand for it

OPTIONS = {"thing": THINGS, "colour": COLOURS, "place": PLACES, "time": TIMES, "sky": SKIES}
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "hot-air balloon": ("hot air balloon", "balloon"), "sailboat": ("sailing boat",),
    "green hills": ("hills",), "snowy mountains": ("mountains", "snow"), "desert": ("dunes",), "sea": ("ocean",),
    "day": ("daytime",), "sunset": ("evening", "dusk"), "clear": ("clear sky",),
}  # fmt: skip
POSTCARDS: Heads = {
    name: {option: (option, *OTHER_WORDS.get(option, ())) for option in options} for name, options in OPTIONS.items()
}


class Attributed(Protocol):
    """Pictures with labels: `heads` are the attributes, the options of each, and the words for them.

    Every index from 0 up has an example, always the same one.
    """

    size: int
    heads: Heads

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        """(B, size, size, 3) uint8, and a caption or "" for each."""

    def labels(self, index: int) -> tuple[int, ...]:
        """The number of the example's option in each head."""


def open_attributed(name_or_folder: str | os.PathLike, size: int, seed: int = 0) -> Attributed:
    """ "postcards", or a folder of pictures in subfolders. Raises `InputError` for anything else."""
    if str(name_or_folder) == "postcards":
        return PostcardAttributes(size, seed)
    if not os.path.isdir(name_or_folder):
        raise InputError(
            f"There is no data at {str(name_or_folder)!r}: give 'postcards', which are painted as they are needed, or "
            "a folder with a subfolder of pictures for each kind."
        )
    found = open_labelled(name_or_folder, size, seed)
    assert isinstance(found, PictureFolders)
    if not found.labels:
        raise InputError(f"{str(name_or_folder)!r} has no subfolders: sort the pictures into one for each kind.")
    return FolderAttributes(found)


class PostcardAttributes(Postcards):
    """Painted postcards, and what is on them."""

    heads: Heads = POSTCARDS

    def labels(self, index: int) -> tuple[int, ...]:
        return numbers_of(self.card(index))


class FolderAttributes:
    """A folder of pictures in subfolders: one attribute, "kind"."""

    def __init__(self, pictures: PictureFolders):
        self.pictures, self.size = pictures, pictures.size
        self.heads: Heads = {"kind": {label: (label,) for label in pictures.labels}}

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        found = [self.pictures.example(int(i))[0] for i in indices]
        return np.stack(found), [""] * len(found)

    def labels(self, index: int) -> tuple[int, ...]:
        return (self.pictures.label(index),)


def numbers_of(card: Postcard) -> tuple[int, ...]:
    """The numbers of a postcard's options, in the order of `OPTIONS`."""
    return tuple(options.index(getattr(card, name)) for name, options in OPTIONS.items())
