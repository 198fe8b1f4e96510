"""A morph's finished frames as one file."""

from __future__ import annotations

import dataclasses
import io

from PIL import Image

from ..record import film, picture_files
from .jobs import Morphing, Picture


def film_of(job: Morphing, suffix: str, fps: float) -> bytes:
    """The bytes of a film (or a strip, by the suffix) of the frames that are finished, in their order.

    It carries the first frame's record, and how the stations are passed. Raises what `film.save` raises, and OSError.
    """
    finished = job.finished()
    shown = [finished[cell.digest] for cell in job.morph.cells if cell.digest in finished]
    pictures = {picture: _opened(picture) for picture in dict.fromkeys(shown)}
    said = picture_files.read_parameters(io.BytesIO(bytes_of(shown[0])))
    if said is not None:
        walk = job.morph.walk
        strength = said.strength if walk.strengths is None else walk.strengths[0]
        said = dataclasses.replace(said, strength=strength, extra=said.extra | job.morph.record(fps))
    return film.encoded([pictures[picture] for picture in shown], suffix, fps, said)


def bytes_of(picture: Picture) -> bytes:
    """A finished picture's file."""
    return picture.path.read_bytes() if picture.path is not None else picture.unsaved or b""


def _opened(picture: Picture) -> Image.Image:
    with Image.open(io.BytesIO(bytes_of(picture))) as found:
        return found.convert("RGB")
