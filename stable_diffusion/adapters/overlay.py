"""Which LoRAs are applied to a checkpoint: until further notice (`set_loras`), or for one generation (prompt tags)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, UnsupportedCheckpointError
from ..text.tags import Strength
from ..unet import UNet
from . import files
from .embeddings import Tensors
from .lora import Networks, bundled_embeddings, lay_over, load_lora

Source = str | os.PathLike
# {"name or file": 0.8}, or a sequence of ("name or file", 0.8); (0.8, 0.5): U-Net, text encoders.
Loras = Mapping[Any, Any] | Iterable[Any]


@dataclass(frozen=True)
class Choice:
    """A LoRA's file in its present version, and the strength to apply it with."""

    path: Path
    strength: Strength
    name: str  # that it is listed under
    stamp: tuple[int, int] = (0, 0)  # of the file: modification time, size


class Overlay:
    """A checkpoint's networks, and the same with LoRAs applied; the last ones are kept for the next generation."""

    def __init__(self, networks: Networks, family: str):
        self.folders = files.folders(files.LORAS)
        self.bare = networks
        self._family = family
        self._last: tuple[tuple[Choice, ...], Networks] = ((), networks)
        self._bundles: dict[Choice, dict[str, Tensors]] = {}

    def choose(self, loras: Loras, names_only: bool = False) -> tuple[Choice, ...]:
        """Find the files; `names_only` refuses paths, which a prompt must not reach.

        Raises `InputError` for a strength that is not a number, `CheckpointNotFoundError` for a name without a file.
        """
        pairs = loras.items() if isinstance(loras, Mapping) else loras
        chosen = []
        for pair in [pairs] if isinstance(pairs, str | os.PathLike) else pairs:
            source, strength = (pair, 1.0) if isinstance(pair, str | os.PathLike) else _pair(pair)
            path = files.find(files.LORAS, source, self.folders, names_only)
            stat = path.stat()
            name = files.name_of(files.LORAS, path, self.folders)
            chosen.append(Choice(path.resolve(), _strength(source, strength), name, (stat.st_mtime_ns, stat.st_size)))
        return tuple(chosen)

    def networks(self, choices: tuple[Choice, ...]) -> Networks:
        """The networks with these LoRAs applied; raises what `load_lora` raises."""
        if choices and not isinstance(self.bare.unet, UNet):
            raise UnsupportedCheckpointError(f"LoRAs are for U-Nets, and {self._family!r} has another network.")
        if self._last[0] != choices:
            self.forget()  # frees the last one's weights before the next one's are made
            loras = [(load_lora(choice.path, self.bare, self._family), choice.strength) for choice in choices]
            self._last = (choices, lay_over(self.bare, loras))
        return self._last[1]

    def embeddings(self, choices: tuple[Choice, ...]) -> dict[str, Tensors]:
        """The embeddings that these LoRAs bring along, by name; of two alike the first counts."""
        found: dict[str, Tensors] = {}
        for choice in choices:
            if choice not in self._bundles:
                self._bundles[choice] = bundled_embeddings(choice.path)
            found = {**self._bundles[choice], **found}
        return found

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The LoRAs of the last overlay."""
        return self._last[0]

    def forget(self) -> None:
        """Drop the cached networks, so that the memory of their weights can be freed."""
        self._last = ((), self.bare)


def _pair(pair: Any) -> tuple[Source, Any]:
    try:
        source, strength = pair
    except (TypeError, ValueError):
        source, strength = None, None
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"A LoRA should be given as a name or file, or as (name or file, strength), not {pair!r}.")
    return source, strength


def _strength(source: Source, value: Any) -> Strength:
    if isinstance(value, Strength):
        return value
    values = value if isinstance(value, tuple) else (value, value)
    numbers = [number for number in values if isinstance(number, int | float) and not isinstance(number, bool)]
    if len(values) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"The strength {value!r} of the LoRA {os.fspath(source)!r} should be a number, or two: (U-Net, text)."
        )
    return Strength(unet=float(values[0]), text=float(values[1]))
