"""LoRAs that make a model one for few steps: which of those that are asked for is one, and its recipe. Needs no MLX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, StableDiffusionError
from ..families import FAMILIES
from ..model_io.tensor_file import open_tensors
from ..recipes import GENERIC, Recipe, of_lora
from ..text.tags import read_tag, take_tags
from . import files
from .lora_family import family_of


def recipe_of(path: Path) -> Recipe | None:
    """The recipe that a LoRA's file makes necessary, by its name and its head; None also for one that is unreadable."""
    with contextlib.suppress(OSError, StableDiffusionError):
        stat = path.stat()
        return _recipe(path, stat.st_mtime_ns, stat.st_size)
    return None


def first_recipe(loras: Iterable[tuple[str, float]], prompt: str = "", names_only: bool = True) -> Recipe | None:
    """The recipe of the first LoRA that has one, of those chosen and then of the prompt's tags.

    What cannot be found is passed over: painting says so. `names_only` takes no paths for the chosen ones.
    """
    chosen = [(name, names_only) for name, strength in loras if strength]
    for name, only in (*chosen, *((name, True) for name in _tags(prompt))):
        with contextlib.suppress(StableDiffusionError):
            if recipe := recipe_of(files.find(files.LORAS, name, names_only=only)):
                return recipe
    return None


def _tags(prompt: str) -> Iterator[str]:
    for tag in take_tags(prompt)[1]:
        with contextlib.suppress(InputError):
            name, strength = read_tag(tag)
            if strength.unet:
                yield name


@lru_cache(maxsize=1024)
def _recipe(path: Path, mtime_ns: int, size: int) -> Recipe | None:
    with open_tensors(path) as file:
        title = family_of({key: tensor.shape for key, tensor in file.tensors.items()}, file.metadata)
        family = next((each.key for each in FAMILIES.values() if each.title == title), "" if not title else "other")
        name = f"{path.resolve().parent.name}/{path.stem}" if path.stem in GENERIC else path.stem
        return of_lora(name, family, file.metadata)
