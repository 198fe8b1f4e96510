"""What there is on this machine, one card each: models, LoRAs, embeddings, VAEs and upscalers.

A list reads heads of files alone, and remembers them; a card also reads the notes beside its file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from .. import catalogue
from ..adapters import embeddings, files, lora_notes
from ..errors import StableDiffusionError
from ..model_io import beside, describe, hashes
from ..model_io.tensor_file import open_tensors
from ..pictures.reading import open_picture
from ..upscaling import upscalers
from .gallery_index import storable
from .jobs import Report, Task
from .preview import jpeg
from .worker import Worker

MODELS, LORAS, EMBEDDINGS, VAES, UPSCALERS = "models", "loras", "embeddings", "vaes", "upscalers"
TITLES = {MODELS: "Models", LORAS: "LoRAs", EMBEDDINGS: "Embeddings", VAES: "VAEs", UPSCALERS: "Upscalers"}
PREVIEW_SIDE = 320  # pixels
MAX_TEXT = 4000  # characters
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One thing of a list. `about` is what is known of it in a few words, `words` what else a search looks at."""

    kind: str
    name: str
    title: str
    about: tuple[str, ...] = ()
    path: Path | None = None
    problem: str = ""
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """Everything about an entry. Texts may come from anywhere, and are to be shown as they are written."""

    entry: Entry
    facts: Mapping[str, str]
    description: str = ""
    trigger: tuple[str, ...] = ()  # words that its maker or its notes ask for
    tags: tuple[str, ...] = ()  # the commonest ones of a LoRA's training
    weight: float | None = None
    negative: str = ""
    preview: Path | None = None
    hash: str | None = None  # known already
    model: catalogue.Model | None = field(default=None, compare=False)

    @property
    def file(self) -> Path | None:
        """What a hash is computed of: a single file."""
        path = self.entry.path
        return path if path is not None and path.is_file() else None


# --- Lists


def listed(models: Sequence[catalogue.Model]) -> dict[str, list[Entry]]:
    """All entries by kind, each by name; `models` are those of the catalogue."""
    return {
        MODELS: [_of_model(model) for model in models],
        LORAS: [_of_lora(name, path) for name, path in sorted(files.listed(files.LORAS).items(), key=_by_name)],
        EMBEDDINGS: [
            _of_embedding(name, path) for name, path in sorted(files.listed(files.EMBEDDINGS).items(), key=_by_name)
        ],
        VAES: [_of_vae(name, path) for name, path in sorted(catalogue.vaes().items(), key=_by_name)],
        UPSCALERS: [_of_upscaler(each) for each in upscalers.all() if each.name != upscalers.NONE],
    }


def matching(entries: Sequence[Entry], search: str) -> list[Entry]:
    """The entries in which every word of a search occurs, in any case."""
    words = search.casefold().split()
    return [entry for entry in entries if all(word in _searched(entry) for word in words)]


def _searched(entry: Entry) -> str:
    return "\n".join((entry.name, entry.title, *entry.about, *entry.words)).casefold()


def _by_name(item: tuple[str, Path]) -> str:
    return item[0].casefold()


def size_in_words(n_bytes: int | None) -> str:
    """A size on disk in few words: 4.3 GB, 26 MB, 12 kB."""
    if not n_bytes:
        return ""
    if n_bytes < 1e6:
        return f"{max(1, round(n_bytes / 1e3))} kB"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _of_model(model: catalogue.Model) -> Entry:
    path = Path(model.source) if model.kind == catalogue.LOCAL else None
    there = "" if model.present else "not downloaded"
    about = (model.family_title, model.precision, size_in_words(model.size_bytes), there)
    words = (model.licence, model.recipe.title if model.recipe else "")
    return Entry(MODELS, model.name, model.title, _filled(about), path, model.problem, words)


def _of_lora(name: str, path: Path) -> Entry:
    found = lora_notes.read(path)
    about = (found.family, f"rank {found.rank}" if found.rank else "", size_in_words(_size(path)))
    return Entry(LORAS, name, name, _filled(about), path, found.problem, (found.trigger, *found.tags))


def _of_embedding(name: str, path: Path) -> Entry:
    family, vectors, problem = _embedding(path, _time(path))
    count = f"{vectors} vector{'s' * (vectors != 1)}" if vectors else ""
    return Entry(EMBEDDINGS, name, name, _filled((family, count, size_in_words(_size(path)))), path, problem)


def _of_vae(name: str, path: Path) -> Entry:
    kind = _vae(path, _time(path)) if path.is_file() else "folder in diffusers' form"
    return Entry(VAES, name, name, _filled((kind, size_in_words(_size(path)))), path)


def _of_upscaler(each: upscalers.Upscaler) -> Entry:
    scale = f"x{each.scale}" if each.scale else "" if each.problem else "any factor, no network"
    about = (scale, each.architecture, size_in_words(_size(each.path)))
    return Entry(UPSCALERS, each.name, each.name, _filled(about), each.path, each.problem)


def _filled(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None and path.is_file() else 0
    except OSError:
        return 0


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4096)
def _embedding(path: Path, mtime_ns: int) -> tuple[str, int, str]:
    """The family, how many vectors there are, and what is wrong."""
    try:
        with open_tensors(path) as file:
            shapes = {key: each.shape for key, each in file.tensors.items() if each.shape}
    except (StableDiffusionError, OSError) as error:
        return "", 0, str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
    several = next((title for keys, title in embeddings.KEYS.items() if set(keys) <= shapes.keys()), "")
    shape = next(iter(shapes.values()), ())
    vectors = shape[0] if len(shape) > 1 else min(len(shape), 1)
    return several or embeddings.WIDTHS.get(shape[-1] if shape else 0, ""), vectors, ""


@lru_cache(maxsize=1024)
def _vae(path: Path, mtime_ns: int) -> str:
    try:
        found = describe.describe(path)
    except (StableDiffusionError, OSError):
        return ""
    return f"{found.kind}, {found.precision}" if found.precision else found.kind


# --- One card


def card(entry: Entry, models: Sequence[catalogue.Model] = ()) -> Card:
    """The card of an entry; `models` are those that `listed` had."""
    notes = beside.notes_of(entry.path) if entry.path is not None else beside.Notes()
    facts: dict[str, str] = {}
    trigger, description = list(notes.words), notes.description
    tags: tuple[str, ...] = ()
    model = next((each for each in models if entry.kind == MODELS and each.name == entry.name), None)
    if entry.kind == LORAS and entry.path is not None:
        found = lora_notes.read(entry.path)
        facts = {"Family": found.family, "Rank": found.rank, **found.texts}
        description = description or facts.pop("Description", "")
        trigger = [found.trigger, *trigger]
        tags = found.tags
    elif model is not None:
        facts = _facts(model)
    elif entry.about:
        facts = {"Kind": ", ".join(entry.about)}
    facts |= {"Made for": notes.base, "Title": facts.get("Title") or notes.title}
    facts["Size"] = facts.get("Size") or size_in_words(_size(entry.path))
    facts["Path"] = str(entry.path or "")
    return Card(
        entry,
        {name: storable(text)[:MAX_TEXT] for name, text in facts.items() if text},
        storable(description)[:MAX_TEXT],
        tuple(dict.fromkeys(storable(word) for word in trigger if word)),
        tuple(storable(tag) for tag in tags if tag not in trigger),
        notes.weight,
        storable(notes.negative),
        preview_of(entry),
        known_hash(entry.path),
        model,
    )


def _facts(model: catalogue.Model) -> dict[str, str]:
    usual = model.defaults
    size = f"{usual.width} × {usual.height}" if usual.width and usual.height else "the checkpoint's own size"
    predicts = {"epsilon": "noise (epsilon)", "v_prediction": "v", "sample": "the picture"}
    return {
        "Family": model.family_title,
        "Precision": model.precision,
        "Predicts": predicts.get(model.prediction_type, model.prediction_type),
        "Size": size_in_words(model.size_bytes),
        "Licence": model.licence,
        "Where it is from": {
            catalogue.EMBEDDED: "comes with this program",
            catalogue.LOCAL: "a file or folder of yours",
            catalogue.HUB: f"the hub, {'downloaded' if model.present else 'not downloaded'}",
        }[model.kind],
        "Paints by default with": f"{usual.steps} steps, CFG {usual.cfg:g}, sampler {usual.sampler}, {size}",
        "Negative prompt by default": model.negative,
        "Recipe": model.recipe.in_words if model.recipe else "",
    }


# --- Preview pictures and hashes


def preview_of(entry: Entry) -> Path | None:
    """The preview picture beside an entry's file, or None."""
    return beside.preview_of(entry.path) if entry.path is not None else None


def thumbnail(path: Path) -> bytes | None:
    """A small JPEG of a preview picture; None for one that cannot be read."""
    try:
        stat = path.stat()
        return _thumbnail(path, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return None


@lru_cache(maxsize=512)
def _thumbnail(path: Path, mtime_ns: int, size: int) -> bytes | None:
    try:
        image = open_picture(path)
    except StableDiffusionError as error:
        log.info("no preview of %s: %s", path.name, error)
        return None
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    return jpeg(image)


def known_hash(path: Path | None) -> str | None:
    """The first ten digits of a file's sha256, if it has been computed before."""
    return hashes.known_hash(path) if path is not None else None


def hash_task(worker: Worker, path: Path) -> Task:
    """Queue the computation of a file's hash, which is remembered on the disk. Raises QueueFullError."""

    def compute(model: object, report: Report) -> str:
        report(f"Reading {path.name}", 0.0)
        return hashes.compute(path, lambda fraction: report(f"Reading {path.name}", fraction))

    return worker.compute(("hash", path, _time(path), _size(path)), compute)


def tag(card: Card) -> str:
    """The tag of a LoRA in a prompt; "" where its name cannot stand in one."""
    name = card.entry.name
    return "" if set(name) & set(":<>") else f"<lora:{name}:{card.weight or 1:g}>"


def with_words(prompt: str, words: Sequence[str]) -> str:
    """A prompt with further words at its end, those left out that it has already."""
    new = [word for word in words if word and word not in prompt]
    kept = prompt.rstrip().rstrip(",")
    return ", ".join([*([kept] if kept else []), *new])
