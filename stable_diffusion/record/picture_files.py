"""Picture files that carry their parameters: written atomically, and read back."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image, PngImagePlugin

from .. import atomic
from ..errors import PictureError
from ..pictures import exif
from ..pictures.arrays import to_picture
from ..pictures.colour import to_srgb
from ..pictures.formats import WRITTEN_SUFFIXES, Format, format_of
from . import long, reading
from .inputs import CHUNK, InputFile
from .parameters import Parameters

_NUMBERED = re.compile(r"(\d{5,})[-.]")


def save_picture(
    picture: Any, path: str | os.PathLike, parameters: Parameters | None = None, carry: Sequence[InputFile] = ()
) -> Path:
    """Write a picture (Pillow, or what `to_picture` takes) as PNG, JPEG or WebP, by the path's suffix; return the path.

    The file is written atomically and replaces an existing one. PNG carries the parameters in the text key
    `parameters`, JPEG and WebP in EXIF UserComment. A PNG can also carry the files that it was made from. Folders are
    created. A record that is too long for a JPEG is shortened there with a warning, and written in full to NAME.txt.
    A picture of bytes is what `encoded` made of all this, and is written as it is.
    Raises `PictureError` for another suffix or if the path is not an ordinary file, and OSError.
    """
    target = Path(os.path.realpath(path))  # writes through a symbolic link, as `cp` does
    if target.exists() and not target.is_file():
        raise PictureError(f"{os.fspath(path)!r} is not an ordinary file; name a file to write to.")
    write = _encoder(picture, target, parameters, carry)
    with atomic.written(target) as temporary:
        write(temporary)
    if parameters and long.too_long(target, parameters):
        long.write_beside(target, parameters)
    return Path(path)


def save_new_picture(
    picture: Any,
    folder: str | os.PathLike,
    parameters: Parameters | None = None,
    suffix: str = ".png",
    carry: Sequence[InputFile] = (),
) -> Path:
    """`save_picture` into a folder, under the next free name: 00001-SEED.png, then 00002-..., and so on.

    Never replaces a file, even if several processes save at the same time.
    """
    seed = parameters.seed if parameters else None
    target = free_path(folder, seed, suffix)
    write = _encoder(picture, target, parameters, carry)
    with atomic.temporary(target) as temporary:
        write(temporary)
        atomic.sync(temporary)
        while True:
            with contextlib.suppress(FileExistsError):
                atomic.take_name(temporary, target)
                break
            target = free_path(folder, seed, suffix, after=target)
    if parameters and long.too_long(target, parameters):
        long.write_beside(target, parameters)
    return target


def encoded(picture: Any, suffix: str, parameters: Parameters | None = None, carry: Sequence[InputFile] = ()) -> bytes:
    """The bytes of the file that `save_picture` would write; a record that is too long for a JPEG is shortened."""
    buffer = io.BytesIO()
    _encoder(picture, Path(f"picture{suffix}"), parameters, carry)(buffer)
    return buffer.getvalue()


def free_path(
    folder: str | os.PathLike, seed: int | None = None, suffix: str = ".png", after: Path | None = None
) -> Path:
    """The next free name in a folder, 00001-SEED.png: one above its highest number (and above that of `after`)."""
    names = [*(os.listdir(folder) if os.path.isdir(folder) else ()), *([after.name] if after else ())]
    number = max((int(match[1]) for name in names if (match := _NUMBERED.match(name))), default=0) + 1
    return Path(folder) / f"{number:05d}{'' if seed is None else f'-{seed}'}{suffix}"


def read_parameters(source: str | os.PathLike | IO[bytes]) -> Parameters | None:
    """The parameters inside a picture, ours or another program's, or None if there are none.

    Raises `PictureError` if the file is not a picture, cannot be read, or has a record that is not understood.
    """
    record = read_record(source)
    if record is not None and record.parameters is None:
        name = repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "The picture"
        raise PictureError(
            f"{name} says how it was made, but it was written by another program and is not understood. "
            "`info` shows it."
        )
    return record.parameters if record else None


def read_record(source: str | os.PathLike | IO[bytes]) -> reading.Record | None:
    """`reading.read`, with the record from NAME.txt if the file has only a shortened one."""
    record = reading.read(source)
    return long.whole(Path(source), record) if record and isinstance(source, (str, os.PathLike)) else record


def read_text(source: str | os.PathLike | IO[bytes]) -> str | None:
    """The record as it is in a file (a path or an open one), or None. Raises `PictureError` for other files."""
    record = reading.read(source)
    return record.text if record else None


def _encoder(
    picture: Any, target: Path, parameters: Parameters | None, carry: Sequence[InputFile]
) -> Callable[[Path | IO[bytes]], None]:
    """A function that writes the picture to a path or file in the target's format; raises now if that cannot work."""
    form = format_of(target)
    if form is None or not form.written:
        raise PictureError(f"{target.name!r} should end in {', '.join(WRITTEN_SUFFIXES)}, which decides the format.")
    if carry and not form.carries_files:
        raise PictureError(f"{target.name!r} cannot carry other files; give it a name that ends in .png.")
    if parameters and long.too_long(target, parameters):
        parameters = long.shortened(parameters)
    if isinstance(picture, bytes):
        return lambda to: _write_bytes(picture, to)
    image = to_srgb(picture) if isinstance(picture, Image.Image) else to_picture(picture)
    options = _options(form, parameters, carry)

    def write(to: Path | IO[bytes]) -> None:
        try:
            (image.convert("RGB") if form.pillow == "JPEG" else image).save(to, form.pillow, **options)
        except ValueError as error:
            raise PictureError(f"{target.name!r} cannot be written as {form.title}: {error}") from None

    return write


def _write_bytes(data: bytes, to: Path | IO[bytes]) -> None:
    if isinstance(to, Path):
        to.write_bytes(data)
    else:
        to.write(data)


def _options(form: Format, parameters: Parameters | None, carry: Sequence[InputFile]) -> dict[str, Any]:
    options: dict[str, Any] = {} if form.lossless else {"quality": 95}
    if form.record == "text":
        text = _text(parameters)
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        if text:
            info.add_text("parameters", text)  # Pillow writes iTXt if Latin-1 is not enough
        for data in dict.fromkeys(file.data for file in carry):
            info.add(CHUNK, data, after_idat=True)
    else:
        options |= exif_of(parameters)
    return options


def exif_of(parameters: Parameters | None) -> dict[str, bytes]:
    """Pillow's option for the record of a JPEG or WebP."""
    text = _text(parameters)
    return {"exif": exif.with_comment(reading.UNICODE + text.encode("utf-16-be"))} if text else {}


def _text(parameters: Parameters | None) -> str:
    # Broken text (a lone surrogate from a command line) must not lose the picture.
    return parameters.to_text().encode("utf-8", "replace").decode() if parameters else ""
