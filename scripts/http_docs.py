"""Writes docs/http.md from the tables of the HTTP API: `python scripts/http_docs.py`.

A test compares the file with what this makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stable_diffusion.service.api.document import markdown  # noqa: E402
from stable_diffusion.service.api.routes import ENDPOINTS  # noqa: E402


def document() -> str:
    """The whole file."""
    return markdown(ENDPOINTS)


if __name__ == "__main__":
    (ROOT / "docs" / "http.md").write_text(document(), encoding="utf-8")
