"""Masks painted in the browser: checked like any upload, and kept with their picture."""

import base64
import binascii
import io
import secrets
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..errors import InputError, PictureError
from ..pictures.inpainting import outpaint
from ..pictures.reading import open_picture
from ..record.inputs import InputFile

MODES = {False: "What is painted changes", True: "What is painted stays"}  # by `invert`
CONTENTS = {"original": "Original", "noise": "Noise", "fill": "Fill"}
AREAS = {False: "Whole picture", True: "Only masked"}  # by `only_masked`

MAX_PIXELS = 24_000_000  # of a picture to paint on: a browser holds the mask several times over
MAX_URL = 20 << 20  # characters; a typical mask of MAX_PIXELS takes a hundredth of it
SHOWN_SIDE = 1280  # pixels; the longer side of the picture as sent to the browser
URL_START = "data:image/png;base64,"
PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(eq=False)
class Painting:
    """A picture and the mask painted over it: mode "L" of the picture's size, 255 where painted, None before that.

    A browser's message counts only if it carries this painting's token.
    """

    picture: Image.Image
    mask: Image.Image | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(6))
    last_message: Any = None

    @property
    def turn(self) -> Any:
        """The browser's count of changes in its last message."""
        return self.last_message.get("turn", 0) if self.last_message else 0

    def receive(self, message: Any) -> None:
        """Take {"token", "turn", "mask": a data URL or ""} from the browser. Raises PictureError."""
        if not isinstance(message, dict) or message.get("token") != self.token or message == self.last_message:
            return
        url = message.get("mask")
        self.mask = None if url == "" else mask_from_url(url, self.picture.size)
        self.last_message = message


def check_paintable(size: tuple[int, int]) -> None:
    """Refuse the size of a picture that is too large for a browser to paint on. Raises PictureError."""
    if size[0] * size[1] > MAX_PIXELS:
        raise PictureError(
            f"A picture to paint on may have {MAX_PIXELS // 10**6} million pixels, not {size[0]} × {size[1]}. "
            f"Make it smaller."
        )


def mask_from_url(url: Any, size: tuple[int, int]) -> Image.Image:
    """A PNG data URL as a mask (mode "L", 0 or 255). Raises PictureError for anything else, or for the wrong size."""
    if not isinstance(url, str) or not url.startswith(URL_START):
        raise PictureError(f"A painted mask should arrive as a PNG, not as {str(url)[:40]!r}. Paint it again.")
    if len(url) > MAX_URL:
        raise PictureError(f"The painted mask is {len(url) >> 20} MB large, more than {MAX_URL >> 20}. Paint it again.")
    try:
        content = base64.b64decode(url[len(URL_START) :], validate=True)
    except (binascii.Error, ValueError):
        raise PictureError("The painted mask arrived damaged. Paint it again.") from None
    if not content.startswith(PNG_START):
        raise PictureError("A painted mask should arrive as a PNG, and this is not one. Paint it again.")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    _check_size((width, height), size)  # from the header, before anything is decoded
    mask = open_picture(content)
    _check_size(mask.size, size)
    return hard(mask)


def _check_size(found: tuple[int, int], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise PictureError(
            f"The painted mask has {found[0]} × {found[1]} pixels and its picture {wanted[0]} × {wanted[1]}. "
            f"Paint it again."
        )


def hard(mask: Image.Image) -> Image.Image:
    """A mask of 0 and 255 only: 128 and above counts as painted."""
    return mask.convert("L").point(lambda value: 255 if value >= 128 else 0)


def url_of(mask: Image.Image | None) -> str:
    """A mask as a PNG data URL; "" without a mask."""
    if mask is None:
        return ""
    return URL_START + base64.b64encode(_png(_one_bit(mask))).decode()


def check(mask: Image.Image | None, invert: bool) -> Image.Image:
    """The mask to generate with. Raises InputError if it leaves nothing to change."""
    if invert:
        if mask is not None and mask.getextrema() == (255, 255):
            raise InputError("Everything is painted over, and what is painted stays: leave a part unpainted.")
        if mask is not None and mask.getbbox():
            return mask
        raise InputError("Paint over what should stay.")
    if mask is None or not mask.getbbox():
        raise InputError("Paint over what should change.")
    return mask


def picture_file(picture: Image.Image) -> InputFile:
    """An input picture that is in no file, as one to carry inside a PNG."""
    return InputFile("input.png", _png(picture))


def mask_file(mask: Image.Image) -> InputFile:
    """A mask as a file to carry inside a PNG."""
    return InputFile("mask.png", _png(_one_bit(mask)))


def _one_bit(mask: Image.Image) -> Image.Image:
    return mask.convert("1", dither=Image.Dither.NONE)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def extended(painting: Painting, left: int, right: int, top: int, bottom: int) -> Painting:
    """The picture extended by this many pixels at each side; the new pixels are added to the mask.

    Raises InputError if there is nothing to add, PictureError if the picture would become too large.
    """
    width, height = painting.picture.size
    check_paintable((width + left + right, height + top + bottom))
    canvas, mask = outpaint(painting.picture, left, right, top, bottom)
    if painting.mask is not None:
        mask.paste(255, (left, top), painting.mask)
    return Painting(canvas, mask)


def shown(picture: Image.Image) -> bytes:
    """The picture to paint on, for the browser: a JPEG of at most SHOWN_SIDE."""
    small = picture.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
