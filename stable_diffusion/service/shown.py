"""Pictures as the browser gets them: the files themselves if possible, so that what is dragged off has its record.

Streamlit passes a PNG or JPEG through only up to a certain width; it encodes anything else again, without metadata.
"""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image

from ..errors import PictureError
from ..pictures.formats import FORMATS
from ..pictures.reading import open_picture
from ..record import picture_files, reading

Kind = Literal["PNG", "JPEG", "auto"]

PASSED_WIDTH = 1460  # pixels; what `st.image` passes through unless its width is a number
BY_BROWSERS = ("PNG", "JPEG", "WEBP", "AVIF")
MAX_URL = 24 << 20  # bytes of a file in an address; Firefox takes 32 MB
SMALL_SIDE = 1460  # pixels of what takes the place of a larger file


def for_browser(source: str | Path | bytes) -> tuple[bytes | str, Kind]:
    """(data or address, output format) for `st.image`, from a file or the bytes of one.

    A file that is too large to pass on, or in a format that browsers lack, becomes a smaller JPEG with the same record.
    Raises `PictureError` for what cannot be read.
    """
    data = source if isinstance(source, bytes) else _read(Path(source))
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, width = picture.format or "", picture.width
    except Exception as error:
        raise PictureError(f"The picture cannot be read: {error}") from None
    if kind in ("PNG", "JPEG") and width <= PASSED_WIDTH:
        return data, "PNG" if kind == "PNG" else "JPEG"
    if kind in BY_BROWSERS and len(data) <= MAX_URL:
        mime = next(each.mime for each in FORMATS if each.pillow == kind)
        return f"data:{mime};base64,{base64.b64encode(data).decode()}", "auto"
    return _smaller(data), "JPEG"


def address(data: bytes) -> str:
    """A picture's bytes as a data URL that browsers show; a smaller JPEG for what they cannot take."""
    source, kind = for_browser(data)
    if isinstance(source, str):
        return source
    return f"data:image/{kind.lower()};base64,{base64.b64encode(source).decode()}"


@lru_cache(maxsize=4)
def _smaller(data: bytes) -> bytes:
    small = open_picture(data)
    small.thumbnail((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS)
    try:
        record = reading.read(io.BytesIO(data))
    except PictureError:  # of a format without records
        record = None
    return picture_files.encoded(small, ".jpg", record.parameters if record else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path.name!r} cannot be read: {error.strerror or error}") from None
