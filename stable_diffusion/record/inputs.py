"""The files a picture was made from: how they are recorded, carried inside it, and found again.

A record identifies an input by its name and the sha256 of its bytes. A PNG can also carry the file itself, unchanged,
in a private chunk after the pixels, which other programs ignore. Does not import MLX.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PureWindowsPath

from PIL import Image

from ..errors import PictureError
from ..pictures.reading import open_picture

PICTURE, MASK = "Input picture", "Mask"
SHA256_KEYS = {PICTURE: "Input sha256", MASK: "Mask sha256"}
CHUNK = b"sdIn"  # by the case of its letters: ancillary, private, safe to copy
MAX_BYTES = 256 << 20  # of one file; larger than any photograph
MAX_CARRIED = 8  # files to read from one picture
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class InputFile:
    """An input file of a picture: the name to record, and its bytes.

    The bytes are read once, so that what is used, recorded and carried is the same even if the file changes meanwhile.
    """

    name: str
    data: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike | InputFile) -> InputFile:
        """Read a file; an `InputFile` is returned unchanged.

        Raises `PictureError` if it is missing, not an ordinary file, or larger than `MAX_BYTES`.
        """
        if isinstance(path, InputFile):
            return path
        if not Path(path).is_file():
            raise PictureError(f"No picture file at {os.fspath(path)!r}.")
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise PictureError(f"{os.fspath(path)!r} cannot be read: {error.strerror or error}") from None
        if len(data) > MAX_BYTES:
            raise PictureError(f"{os.fspath(path)!r} has more than {MAX_BYTES >> 20} MB; give a smaller picture.")
        return cls(recordable(path), data)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def open(self, under: str = "white") -> Image.Image:
        """Decode it as upright RGB, alpha over `under` (black for masks). Raises `PictureError` for other data."""
        try:
            return open_picture(self.data, under)
        except PictureError as error:
            raise PictureError(f"{self.name!r}: {error}") from None


@dataclass(frozen=True)
class Recorded:
    """What a record says about an input file."""

    key: str  # PICTURE or MASK
    name: str
    sha256: str

    def check(self, file: InputFile) -> None:
        """Raise `PictureError`, with both hashes, if `file` is a different one."""
        if file.sha256 != self.sha256:
            raise PictureError(
                f"{file.name!r} is not the {self.key.lower()} that was used: its sha256 is {file.sha256}, that of "
                f"{self.name!r} was {self.sha256}. --force takes it all the same."
            )


def record(picture: InputFile | None = None, mask: InputFile | None = None) -> dict[str, str]:
    """The entries for a record's `extra` about these input files."""
    extra: dict[str, str] = {}
    for key, file in ((PICTURE, picture), (MASK, mask)):
        if file is not None:
            extra |= {key: file.name, SHA256_KEYS[key]: file.sha256}
    return extra


def recorded(extra: Mapping[str, str], key: str) -> Recorded | None:
    """What a record's `extra` says about one input file, or None."""
    sha256 = extra.get(SHA256_KEYS[key], "").strip().lower()
    return Recorded(key, extra.get(key, ""), sha256) if sha256 else None


def recordable(path: str | os.PathLike) -> str:
    """The name to record for a path: a relative path in full, else the file name alone, to keep folders private."""
    pure = PureWindowsPath(path) if os.name == "nt" else PurePath(path)
    return pure.name if pure.is_absolute() or pure.drive or ".." in pure.parts else pure.as_posix()


def find(wanted: Recorded, picture: str | os.PathLike, outputs: str | os.PathLike = "outputs") -> InputFile:
    """Find a file that `picture` was made from: inside it, next to it, in the current folder, or anywhere in `outputs`.

    Only a file with the recorded sha256 is accepted. Otherwise raises `PictureError`, which lists where it searched and
    which files of that name have another hash.
    """
    for data in carried(picture):
        if hashlib.sha256(data).hexdigest() == wanted.sha256:
            return InputFile(wanted.name, data)
    others = []
    for path in _candidates(wanted.name, Path(picture).parent, Path(outputs)):
        try:
            file = InputFile.read(path)
        except PictureError:
            continue
        if file.sha256 == wanted.sha256:
            return InputFile(wanted.name, file.data)
        others.append(f" {str(path)!r} is another file, of sha256 {file.sha256}.")
    option = "--mask" if wanted.key == MASK else "--picture"
    raise PictureError(
        f"The {wanted.key.lower()} {wanted.name!r} (sha256 {wanted.sha256}) is not inside the picture, next to it, in "
        f"the current folder or in {os.fspath(outputs)!r}.{''.join(others)} Give it with {option} FILE."
    )


def carried(picture: str | os.PathLike) -> Iterator[bytes]:
    """The files carried inside a PNG, unchanged; none for other formats, and damaged ones are skipped."""
    try:
        with open(picture, "rb") as file:
            if file.read(len(_PNG)) != _PNG:
                return
            found = 0
            while len(head := file.read(8)) == 8 and found < MAX_CARRIED:
                length, kind = struct.unpack(">I4s", head)
                if kind != CHUNK or length > MAX_BYTES:
                    file.seek(length + 4, os.SEEK_CUR)
                    continue
                data, check = file.read(length), file.read(4)
                found += 1
                if check == struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))):
                    yield data
    except OSError as error:
        raise PictureError(f"{os.fspath(picture)!r} cannot be read: {error.strerror or error}") from None


def _candidates(name: str, near: Path, outputs: Path) -> Iterator[Path]:
    """Places to look for a recorded name. The name is untrusted: it never leads out of these folders."""
    parts = PureWindowsPath(name).parts if "\\" in name else PurePath(name).parts
    if not parts or "\0" in name:
        return
    relative = Path(recordable(Path(*parts)))
    last = Path(relative.name)
    places = [near / relative, near / last, relative, last]
    for folder, _, names in os.walk(outputs):
        if last.name in names:
            places.append(Path(folder, last.name))
    seen: set[str] = set()
    for place in places:
        if (real := os.path.realpath(place)) not in seen and place.is_file():
            seen.add(real)
            yield place
