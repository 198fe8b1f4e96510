"""The LoRA files that the page offers: by name alone, so that nothing from a browser or a picture names a path."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..adapters import files
from ..adapters.lora_family import family_of
from ..adapters.lora_triggers import triggers_of
from ..errors import StableDiffusionError
from ..listing import ambiguous
from ..model_io.tensor_file import open_tensors
from ..record import keys

Chosen = tuple[tuple[str, float], ...]  # names and strengths
Head = tuple[str, tuple[str, ...]]  # of a file: the family, the trigger words

STRENGTHS = (-2.0, 2.0)
MAX_CHOSEN = 8
MAX_NAME = 200


def listed() -> dict[str, Path]:
    """Every LoRA by its name: those in loras/, and in the folders of $STABLE_DIFFUSION_LORAS."""
    return files.listed(files.LORAS)


def located(chosen: Chosen) -> list[tuple[Path, float]]:
    """The files of chosen names, with their strengths. Raises CheckpointNotFoundError."""
    return [(files.find(files.LORAS, name, names_only=True), strength) for name, strength in chosen]


def family(path: Path) -> str:
    """What a LoRA is for, as far as the head of its file tells ("SD 1.x"), or ""."""
    return _head_of(path)[0]


def trigger_words(path: Path) -> list[str]:
    """The words that a LoRA was trained to react to, as far as the head of its file tells."""
    return list(_head_of(path)[1])


def _head_of(path: Path) -> Head:
    try:
        stat = path.stat()
        return _head(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, StableDiffusionError):
        return "", ()


def clean(value: Any) -> list[tuple[str, float]]:
    """The names and strengths in a value, each name once, the strengths within their bounds."""
    found: dict[str, float] = {}
    for pair in value if isinstance(value, (list, tuple)) else ():
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)):
            continue
        name, strength = pair
        if isinstance(strength, (int, float)) and strength == strength and 0 < len(name) <= MAX_NAME:
            found.setdefault(name, float(min(max(strength, STRENGTHS[0]), STRENGTHS[1])))
    return list(found.items())[:MAX_CHOSEN]


def from_text(text: str, hashes: str = "") -> tuple[list[tuple[str, float]], list[str]]:
    """What a picture records of its LoRAs: listed names with strengths, and in words what was left out, or differs."""
    digits = dict(keys.pairs(hashes[:10_000]))
    chosen, notes = [], []
    for name, strength in keys.pairs(text[:10_000]):
        try:
            value = float(strength)
        except ValueError:
            name, value = f"{name}:{strength}", 1.0
        found = files.matching(files.LORAS, name, digits=digits.get(name, ""))
        if len(found) == 1:
            chosen.append((found[0], value))
            if name in digits and not files.has_hash(listed()[found[0]], digits[name]):
                notes.append(f"The LoRA {name!r} here is another file than the picture's, of hash {digits[name]}.")
        elif found:
            notes.append(f"{ambiguous('LoRA', name, found)} It was left out.")
        else:
            notes.append(f"The LoRA {name!r} is not here, and was left out.")
    return chosen, notes


@lru_cache(maxsize=4096)
def _head(path: Path, mtime_ns: int, size: int) -> Head:
    with open_tensors(path, check=False) as file:
        shapes = {key: tensor.shape for key, tensor in file.tensors.items()}
        return family_of(shapes, file.metadata), triggers_of(file.metadata)
