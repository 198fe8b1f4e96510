"""What lies beside a file of weights, as A1111 has it: a preview picture, and notes in JSON or text. Needs no MLX.

`NAME.png` or `NAME.preview.png` (and other formats); `NAME.json`, which A1111 writes; `NAME.civitai.info`, which
helpers download; `NAME.txt`. They may come from anywhere: only texts and numbers of limited length are taken.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..listing import is_weights

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
MAX_BYTES = 2 << 20
MAX_WORDS, MAX_WORD, MAX_TEXT = 20, 300, 4000  # lengths in characters
_BREAK = re.compile(r"<\s*(br|/p|/li|/h\d)\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,2000}>")


@dataclass(frozen=True)
class Notes:
    """What the notes beside a file say; anything may be missing."""

    title: str = ""
    description: str = ""
    words: tuple[str, ...] = ()  # that call up a LoRA or an embedding
    base: str = ""  # the model that it was made for
    weight: float | None = None  # that its notes recommend
    negative: str = ""


def preview_of(path: Path) -> Path | None:
    """The preview picture beside a file or folder of weights, or None."""
    stem = _stem(path)
    names = (path.with_name(f"{stem}{middle}{suffix}") for suffix in PICTURES for middle in ("", ".preview"))
    return next((name for name in names if name.is_file()), None)


def notes_of(path: Path) -> Notes:
    """The notes beside a file or folder of weights; A1111's own count before those that were downloaded."""
    own = _json(path.with_name(f"{_stem(path)}.json"))
    info = _json(path.with_name(f"{_stem(path)}.civitai.info"))
    model = info.get("model") if isinstance(info.get("model"), dict) else {}
    trained = info.get("trainedWords")
    words = [_text(own, "activation text")] + (trained if isinstance(trained, list) else [])
    described = [_text(values, key) for values in (own, info, model) for key in ("description", "notes")]
    return Notes(
        _text(model, "name")[:MAX_WORD],
        next(filter(None, map(plain, described)), "") or _plain_text(path),
        tuple(dict.fromkeys(_words(words)))[:MAX_WORDS],
        (_text(own, "sd version") or _text(info, "baseModel"))[:MAX_WORD],
        _weight(own.get("preferred weight")),
        _text(own, "negative text")[:MAX_TEXT],
    )


def plain(text: str) -> str:
    """A description without its HTML, in its own lines."""
    lines = html.unescape(_TAG.sub("", _BREAK.sub("\n", text))).splitlines()
    kept = (" ".join(line.split()) for line in lines)
    return "\n".join(filter(None, kept))[:MAX_TEXT]


def _stem(path: Path) -> str:
    return path.stem if is_weights(path) else path.name


def _words(found: list[Any]) -> list[str]:
    cleaned = (" ".join(each.split()).strip(" ,") for each in found if isinstance(each, str))
    return [each[:MAX_WORD] for each in cleaned if each]


def _text(values: Mapping[str, Any] | Any, key: str) -> str:
    value = values.get(key) if isinstance(values, dict) else None
    return value.strip() if isinstance(value, str) else ""


def _weight(value: Any) -> float | None:
    """A1111 writes 0 for none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 < abs(value) <= 10 else None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _plain_text(path: Path) -> str:
    stem = _stem(path)
    texts = (_read(path.with_name(f"{stem}{ending}")) for ending in (".txt", ".description.txt"))
    return next(filter(None, map(plain, texts)), "")


def _read(path: Path) -> str:
    """A small file's text, "" for one that is missing, cannot be read, or is too large to be notes."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
