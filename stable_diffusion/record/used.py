"""What a generation uses, reported by the engine at its start, since files may be gone by its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..text.tags import Strength


@dataclass(frozen=True)
class Used:
    """The model and its additions; hashes are the first digits of each file's sha256."""

    model: str
    precision: str  # "float16" or "float32"
    version: str  # of this program, of MLX, and the kind of device
    loras: tuple[tuple[str, Strength], ...] = ()  # set by `set_loras`; those in the prompt's tags are in the prompt
    lora_hashes: Mapping[str, str] = field(default_factory=dict)  # of both kinds, by name
    embedding_hashes: Mapping[str, str] = field(default_factory=dict)
    sampler: tuple[str, str | None] | None = None  # with its schedule, as A1111 names them, where it is known what ran
    model_hash: str | None = None  # if the model is a single file
    vae: str | None = None  # if it replaces the model's own
    vae_hash: str | None = None  # if it is a single file
    vae_precision: str | None = None  # "float32" if it overflowed in float16
    refiner: str | None = None  # the model that took over
    refiner_hash: str | None = None  # if it is a single file
