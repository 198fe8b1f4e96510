"""Records of other programs, one file each: a dictionary of a picture's texts in, `Parameters` out.

The texts are a PNG's, by key; from EXIF and XMP they have the keys of `record.reading`. A reader returns None for texts
of another program; it may assume its own program's structure, and what it raises then means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..parameters import Parameters
from . import comfyui, easy_diffusion, fooocus, invokeai, novelai, swarmui

Reader = Callable[[Mapping[str, str]], Parameters | None]

READERS: tuple[tuple[str, Reader], ...] = (
    ("SwarmUI", swarmui.read),
    ("Fooocus", fooocus.read),
    ("InvokeAI", invokeai.read),
    ("NovelAI", novelai.read),
    ("Easy Diffusion", easy_diffusion.read),
    ("ComfyUI", comfyui.read),
)


def read(texts: Mapping[str, str]) -> tuple[str, Parameters] | None:
    """(program, parameters) by the first reader that understands the texts, or None."""
    for program, reader in READERS:
        try:
            found = reader(texts)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            continue
        if found is not None:
            return program, found
    return None
