"""What a generation paints with, told by the engine when it begins: files may be gone when it ends. Needs no MLX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..text.tags import Strength


@dataclass(frozen=True)
class Used:
    """The model and what lies over it; hashes are the first digits of each file's sha256."""

    model: str
    precision: str  # "float16" or "float32"
    version: str  # of this program, of MLX, and the kind of device
    loras: tuple[tuple[str, Strength], ...] = ()  # set by `set_loras`; those of the prompt's tags stand in the prompt
    lora_hashes: Mapping[str, str] = field(default_factory=dict)  # of both, by name
    embedding_hashes: Mapping[str, str] = field(default_factory=dict)
    model_hash: str | None = None  # of a model that is one file
    vae: str | None = None  # in place of the model's own
    vae_hash: str | None = None  # where it is one file
