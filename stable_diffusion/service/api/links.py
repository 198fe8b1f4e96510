"""Links to finished pictures that expire: names that cannot be guessed, for files of the gallery."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import OrderedDict
from pathlib import Path

PREFIX = "v1/images/files/"
_PATH = re.compile(rf"/{PREFIX}[\w-]{{32}}", re.ASCII)
VALID = 3600.0  # seconds
MOST = 1000

_lock = threading.Lock()
_links: OrderedDict[str, tuple[float, Path]] = OrderedDict()


def is_link(path: str) -> bool:
    """Whether a URL's path looks like a link: who knows one needs no password, and nobody guesses 24 random bytes."""
    return _PATH.fullmatch(path) is not None


def add(path: Path) -> str:
    """A new name for a file."""
    token = secrets.token_urlsafe(24)
    with _lock:
        _links[token] = (time.monotonic() + VALID, path)
        while len(_links) > MOST:
            _links.popitem(last=False)
    return token


def find(token: str) -> Path | None:
    """The file of a name, or None where there is none or it has expired."""
    with _lock:
        until, path = _links.get(token, (0.0, None))
    return path if time.monotonic() < until else None
