"""What the file of a LoRA says of itself: its family and rank, the words that call it up, who made it. Needs no MLX.

Metadata are trainers' (kohya's `ss_...`) and those of Stability AI's standard for them (`modelspec....`). A file may
come from anywhere, so all of it is text of limited length.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..errors import StableDiffusionError
from ..model_io.tensor_file import open_tensors
from . import file_keys
from .lora_family import Shape, family_of

MAX_TAGS = 12
MAX_WORD, MAX_TEXT, MAX_JSON = 100, 2000, 5_000_000  # characters
TRIGGER, TAGS, RANK = "modelspec.trigger_phrase", "ss_tag_frequency", "ss_network_dim"
# What else is shown, and the keys that it may stand under.
TEXTS = {
    "Title": ("modelspec.title", "ss_output_name"),
    "Author": ("modelspec.author",),
    "Licence": ("modelspec.license",),
    "Date": ("modelspec.date",),
    "Trained from": ("ss_sd_model_name",),
    "Pictures": ("ss_num_train_images",),
    "Description": ("modelspec.description",),
    "How to use it": ("modelspec.usage_hint",),
}


@dataclass(frozen=True)
class LoraNotes:
    """What a file says; anything may be missing.

    `trigger` are the words that its maker asks for, `tags` the commonest ones of its training's captions.
    """

    family: str = ""
    rank: str = ""  # "16", or "4 to 32" where layers differ
    trigger: str = ""
    tags: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def read(path: Path) -> LoraNotes:
    """What a file's head says; one that cannot be read has a `problem`."""
    try:
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        return LoraNotes(problem=error.strerror or str(error))


@lru_cache(maxsize=4096)
def _read(path: Path, mtime_ns: int, size: int) -> LoraNotes:
    try:
        with open_tensors(path) as file:
            shapes = {key: tensor.shape for key, tensor in file.tensors.items()}
            metadata = {key: text for key, text in file.metadata.items() if isinstance(text, str)}
    except StableDiffusionError as error:
        return LoraNotes(problem=str(error).removeprefix(f"{path}: ").removeprefix(f"{path} "))
    found = {title: next((metadata[key] for key in keys if metadata.get(key)), "") for title, keys in TEXTS.items()}
    return LoraNotes(
        family_of(shapes, metadata),
        rank_of(shapes) or metadata.get(RANK, "")[:MAX_WORD],
        metadata.get(TRIGGER, "")[:MAX_TEXT].strip(),
        commonest(metadata.get(TAGS, "")),
        {title: text[:MAX_TEXT] for title, text in found.items() if text},
    )


def rank_of(shapes: Mapping[str, Shape]) -> str:
    """The rank of a LoRA's layers, by the shapes of their downward matrices; "" for other forms (LoKr, full)."""
    parts = ((file_keys.parse(key), shape) for key, shape in shapes.items())
    ranks = {shape[0] for part, shape in parts if part is not None and part.part == "down" and shape}
    if not ranks:
        return ""
    return f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"


def commonest(text: str) -> tuple[str, ...]:
    """The commonest tags of kohya's `ss_tag_frequency`, {folder: {tag: how often}}, most frequent first."""
    counts: Counter[str] = Counter()
    try:
        folders = json.loads(text) if 0 < len(text) <= MAX_JSON else {}
    except (ValueError, RecursionError):
        return ()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and (word := " ".join(tag.split())) and len(word) <= MAX_WORD:
                counts[word] += count
    return tuple(word for word, _ in counts.most_common(MAX_TAGS))
