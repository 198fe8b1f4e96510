"""A sequence of pictures as one file: a strip, a looping GIF or WebP, or an MP4 film. Does not import MLX."""

from __future__ import annotations

import importlib
import importlib.util
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO

from PIL import Image

from .. import atomic
from ..errors import InputError, PictureError
from ..pictures import arrays
from ..pictures.formats import WRITTEN_SUFFIXES
from . import picture_files, reading
from .parameters import Parameters

GIF, WEBP, MP4 = FILMS = ".gif", ".webp", ".mp4"
SUFFIXES = tuple(dict.fromkeys((*WRITTEN_SUFFIXES, *FILMS)))
MAX_FPS = 50  # GIF delays are in 1/100 s, and browsers slow down a delay of 1
MAX_COMMENT = 1 << 20  # bytes
# The path of an MP4's comment through its nested boxes: each box's type, and bytes to skip before its children.
COMMENT = ((b"moov", 0), (b"udta", 0), (b"meta", 4), (b"ilst", 0), (b"\xa9cmt", 0), (b"data", 8))
PALETTE_PIXELS = 1 << 20  # of all frames together, for choosing a GIF's palette


def check(path: str | os.PathLike) -> None:
    """Raise `InputError`, before any work is done, if this file cannot be written."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{os.fspath(path)!r} should end in {', '.join(SUFFIXES)}, which decides the format.")
    if suffix == MP4:
        _ffmpeg()


def save(
    pictures: Sequence[Image.Image],
    path: str | os.PathLike,
    fps: float = 8,
    parameters: Parameters | None = None,
) -> Path:
    """Write pictures of one size, by the path's suffix: .png and .jpg as a strip, FILMS as a film.

    The file is written atomically. A film carries the parameters as its comment, a WebP as WebP pictures do. Raises
    `InputError` as `check` does and for an fps outside 0.1 to `MAX_FPS`, and `PictureError` if ffmpeg or Pillow fails.
    """
    check(path)
    if not 0.1 <= fps <= MAX_FPS:
        raise InputError(f"fps = {fps!r} should be a number from 0.1 to {MAX_FPS}.")
    suffix = Path(path).suffix.lower()
    if suffix not in FILMS:
        return picture_files.save_picture(arrays.grid(pictures, columns=len(pictures)), path, parameters)
    target = Path(os.path.realpath(path))
    write: Callable = {GIF: _write_gif, WEBP: _write_webp, MP4: _write_mp4}[suffix]
    with atomic.written(target) as temporary:
        write([picture.convert("RGB") for picture in pictures], temporary, fps, parameters)
    return Path(path)


def encoded(pictures: Sequence[Image.Image], suffix: str, fps: float, parameters: Parameters | None = None) -> bytes:
    """The bytes of the file that `save` would write."""
    with tempfile.TemporaryDirectory() as folder:
        return save(pictures, Path(folder, f"film{suffix}"), fps, parameters).read_bytes()


def can_write_mp4() -> bool:
    """Whether the package for it is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def read_parameters(path: str | os.PathLike) -> Parameters | None:
    """The parameters in the comment of an MP4, or None. Raises `PictureError` if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            start, end = 0, os.fstat(file.fileno()).st_size
            for kind, skipped in COMMENT:
                start, end = _box(file, kind, start, end)
                start += skipped
            file.seek(start)
            text = file.read(max(0, min(end - start, MAX_COMMENT))).decode("utf-8", "replace")
    except OSError as error:
        raise PictureError(f"{os.fspath(path)!r} cannot be read: {error.strerror or error}") from None
    return reading.of_text(text).parameters if text else None


def _box(file: IO[bytes], kind: bytes, start: int, end: int) -> tuple[int, int]:
    """The payload range of the first box of this kind, or an empty range."""
    while start + 8 <= end:
        file.seek(start)
        size, found = struct.unpack(">I4s", file.read(8))
        if size < 8:  # 0: extends to the end; 1: more than 4 GB
            break
        if found == kind:
            return start + 8, min(start + size, end)
        start += size
    return end, end


def _write_gif(pictures: Sequence[Image.Image], path: Path, fps: float, parameters: Parameters | None) -> None:
    """All frames share one palette, chosen from all of them, so that still parts do not flicker."""
    sheet = arrays.grid(pictures)
    scale = min(1.0, (PALETTE_PIXELS / (sheet.width * sheet.height)) ** 0.5)
    sheet = sheet.resize((round(sheet.width * scale), round(sheet.height * scale)), Image.Resampling.NEAREST)
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    text = _text(parameters)
    options = {"save_all": True, "append_images": frames[1:], "loop": 0, "duration": round(1000 / fps)}
    frames[0].save(path, "GIF", **options, **({"comment": text} if text else {}))


def _write_webp(pictures: Sequence[Image.Image], path: Path, fps: float, parameters: Parameters | None) -> None:
    options = {"save_all": True, "append_images": pictures[1:], "loop": 0, "duration": round(1000 / fps)}
    options |= picture_files.exif_of(parameters)
    pictures[0].save(path, "WEBP", quality=90, minimize_size=False, **options)


def _write_mp4(pictures: Sequence[Image.Image], path: Path, fps: float, parameters: Parameters | None) -> None:
    """H.264 in the pixel format that every player supports."""
    width, height = pictures[0].size
    text = _text(parameters).replace(b"\0", b"").decode()
    writer = _ffmpeg().write_frames(
        str(path),
        (width + width % 2, height + height % 2),  # the format needs even sides
        fps=fps,
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-f", "mp4", "-movflags", "+faststart", *(["-metadata", f"comment={text}"] if text else [])],
    )
    writer.send(None)
    try:
        for picture in pictures:
            writer.send(picture.crop((0, 0, width + width % 2, height + height % 2)).tobytes())
    except OSError as error:
        raise PictureError(f"ffmpeg could not write the film: {error}") from None
    finally:
        writer.close()


def _text(parameters: Parameters | None) -> bytes:
    return parameters.to_text().encode("utf-8", "replace") if parameters else b""


def _ffmpeg() -> ModuleType:
    try:
        return importlib.import_module("imageio_ffmpeg")
    except ImportError:
        raise InputError(
            "An MP4 needs the package imageio-ffmpeg: `pip install imageio-ffmpeg`, or name a .gif or .png."
        ) from None
