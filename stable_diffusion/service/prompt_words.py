"""What a prompt may be written with: the LoRAs, embeddings and wildcards that are here, and earlier prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..adapters import files
from ..errors import StableDiffusionError
from ..record import reading
from ..text.wildcards import Wildcards
from . import loras, presets
from .gallery import Gallery
from .gallery_index import Query

MAX_NAMES = 2000  # of each kind
MAX_EARLIER = 40
MAX_LENGTH = 2000  # characters of an earlier prompt

log = logging.getLogger(__name__)


def listed() -> dict[str, Any]:
    """The names by kind: LoRAs (name, note, trigger words), embeddings, and wildcards (name, note)."""
    return {"loras": _loras(), "embeddings": sorted(files.listed(files.EMBEDDINGS), key=str.casefold)[:MAX_NAMES],
            "wildcards": _wildcards()}  # fmt: skip


def _loras() -> list[tuple[str, str, list[str]]]:
    found = []
    for name, path in sorted(loras.listed().items(), key=lambda pair: pair[0].casefold())[:MAX_NAMES]:
        triggers = loras.trigger_words(path)
        parts = [loras.family(path), f"trigger words: {', '.join(triggers)}" if triggers else ""]
        found.append((name, ", ".join(filter(None, parts)), triggers))
    return found


def _wildcards() -> list[tuple[str, str]]:
    try:
        return [(name, "") for name in Wildcards().names()[:MAX_NAMES]]
    except StableDiffusionError as error:  # painting with one will say it
        log.info("wildcards cannot be listed: %s", error)
        return []


def past(gallery: Gallery, presets_file: Path) -> list[tuple[str, str]]:
    """Earlier prompts with their negative prompts: of the newest pictures that the gallery has read, and of presets.

    Raises `GalleryError`.
    """
    return [*_in_gallery(gallery), *_in_presets(presets_file)]


def earlier(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The prompts and the negative prompts of pairs, in their order, each once and none of them empty or very long."""
    pairs = list(pairs)
    return {"prompt": _first([each[0] for each in pairs]), "negative": _first([each[1] for each in pairs])}


def _in_gallery(gallery: Gallery) -> Iterable[tuple[str, str]]:
    for entry in gallery.page(Query(), per_page=MAX_EARLIER).entries:
        parameters = reading.of_text(entry.text).parameters if entry.text else None
        yield entry.prompt, parameters.negative if parameters else ""


def _in_presets(file: Path) -> Iterable[tuple[str, str]]:
    for values in presets.load(file).values():
        yield str(values.get("prompt") or ""), str(values.get("negative") or "")


def _first(texts: Sequence[str]) -> list[str]:
    found = dict.fromkeys(text.strip() for text in texts)
    return [text for text in found if 0 < len(text) <= MAX_LENGTH][:MAX_EARLIER]
