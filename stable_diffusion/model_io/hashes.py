"""Hashes of checkpoint files, computed once and cached on disk by path, size and modification time. No MLX."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import atomic
from ..places import cache_folder

NAME = "hashes.json"
SHORT = 10  # hex digits, as A1111 shows them
_SHA256 = re.compile(r"[0-9a-f]{64}")


def short_hash(path: str | os.PathLike) -> str:
    """The first ten hex digits of a file's sha256; reads the whole file the first time. Raises OSError."""
    stat = os.stat(path)
    return _sha256(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)[:SHORT]


def full_hash(path: str | os.PathLike) -> str:
    """A file's whole sha256 in hex; reads the whole file the first time. Raises OSError."""
    stat = os.stat(path)
    return _sha256(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


def known_hash(path: str | os.PathLike) -> str | None:
    """The same if it has been computed before, else None; reads only the cache."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    found = _remembered(_read(), os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
    return found[:SHORT] if found else None


def compute(path: str | os.PathLike, progress: Callable[[float], None]) -> str:
    """`full_hash`, with `progress(fraction)` while the file is read, which may raise to stop. Raises OSError."""
    stat = os.stat(path)
    return _computed(os.path.realpath(path), stat.st_size, stat.st_mtime_ns, progress)


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    return _computed(path, size, mtime_ns, lambda fraction: None)


def _computed(path: str, size: int, mtime_ns: int, progress: Callable[[float], None]) -> str:
    found = _remembered(_read(), path, size, mtime_ns)
    if found:
        return found
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
            progress(min(1.0, file.tell() / max(size, 1)))
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) == (size, mtime_ns):  # otherwise it is being written to
        _remember(path, {"size": size, "mtime_ns": mtime_ns, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _remembered(entries: dict[str, Any], path: str, size: int, mtime_ns: int) -> str | None:
    entry = entries.get(path)
    if not isinstance(entry, dict) or (entry.get("size"), entry.get("mtime_ns")) != (size, mtime_ns):
        return None
    sha256 = entry.get("sha256")
    return sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None


def _read() -> dict[str, Any]:
    """The cache's entries; none if its file is missing or broken, and hashes are then computed again."""
    file = cache_folder() / NAME
    try:
        return _parsed(file, file.stat().st_mtime_ns, file.stat().st_size)
    except (OSError, ValueError, RecursionError):
        return {}


@lru_cache(maxsize=1)
def _parsed(file: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    entries = json.loads(file.read_bytes())
    return entries if isinstance(entries, dict) else {}


def _remember(path: str, entry: dict[str, Any]) -> None:
    """Add a hash to the cache file. A hash that cannot be stored is computed again next time."""
    with contextlib.suppress(OSError):
        atomic.write_whole(cache_folder() / NAME, json.dumps(_read() | {path: entry}, indent=0))
