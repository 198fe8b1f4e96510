"""EXIF blocks: reading the few tags needed here, without ever failing, and writing a user comment.

Pillow reads and rewrites whole blocks and raises on many odd ones; a bad tag must not cost the picture. Reference:
EXIF 2.32 (CIPA DC-008), sections 4.6.2 and 4.6.5.
"""

from __future__ import annotations

import re
import struct
from typing import Any

MAKE, MODEL, ORIENTATION, SOFTWARE, DESCRIPTION = 0x010F, 0x0110, 0x0112, 0x0131, 0x010E
USER_COMMENT = 0x9286
KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow keeps the blocks, in `Image.info`
START = b"Exif\0\0"
_EXIF_IFD = 0x8769
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_NUMBERS = {3: "H", 4: "I"}  # SHORT and LONG
_BYTES = (1, 2, 7)  # BYTE, ASCII and UNDEFINED
_UNDEFINED = 7
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def tags(block: bytes) -> dict[int, bytes | int]:
    """The tags of the first and of the Exif directory: text as bytes, integers as the first one; others are skipped.

    Whatever is damaged is left out.
    """
    while block.startswith(START):  # some programs write it twice, or where it does not belong
        block = block[len(START) :]
    order = _ORDERS.get(block[:4])
    if order is None or len(block) < 8:
        return {}
    found = _directory(block, order, *struct.unpack_from(f"{order}I", block, 4))
    below = found.pop(_EXIF_IFD, None)
    return _directory(block, order, below) | found if isinstance(below, int) else found


def block_of(info: dict[Any, Any]) -> bytes:
    """The EXIF block in a Pillow image's `info`, or nothing."""
    block = info.get("exif")
    if block is None and isinstance(raw := info.get("Raw profile type exif"), str):  # ImageMagick's, in hex
        try:
            block = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            block = None
    return block if isinstance(block, bytes) else b""


def orientation(info: dict[Any, Any]) -> int:
    """1 to 8, from the EXIF or else the XMP of a Pillow image's `info`; 1, upright, if neither has it."""
    value = tags(block_of(info)).get(ORIENTATION)
    if value is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp)
        value = int(match[1]) if match else 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def with_comment(comment: bytes) -> bytes:
    """A block whose only tag is UserComment, of type UNDEFINED, as EXIF requires; the 8 bytes of encoding included."""
    head = b"MM\0*" + struct.pack(">I", 8)
    first = struct.pack(">HHHIII", 1, _EXIF_IFD, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, USER_COMMENT, _UNDEFINED, len(comment), 44, 0)
    return START + head + first + second + comment


def _directory(block: bytes, order: str, at: int) -> dict[int, bytes | int]:
    found: dict[int, bytes | int] = {}
    if at + 2 > len(block):
        return found
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for start in range(at + 2, min(at + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", block, start)
        if length and kind in _NUMBERS:
            if length * struct.calcsize(_NUMBERS[kind]) <= 4:
                (found[tag],) = struct.unpack_from(f"{order}{_NUMBERS[kind]}", block, start + 8)
        elif kind in _BYTES:
            (value,) = (start + 8,) if length <= 4 else struct.unpack_from(f"{order}I", block, start + 8)
            if value + length <= len(block):
                found[tag] = block[value : value + length]
    return found
