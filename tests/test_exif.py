"""EXIF that is odd: it costs neither the picture nor the orientation, wherever a picture is read."""

import io
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stable_diffusion.pictures import exif
from stable_diffusion.pictures.inpainting import to_mask
from stable_diffusion.pictures.reading import as_picture, open_picture
from stable_diffusion.record import picture_files
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.training.data import PictureFolder

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
TURNED = {
    1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2),
    6: PIXELS[::-1].transpose(1, 0, 2), 7: PIXELS[::-1, ::-1].transpose(1, 0, 2), 8: PIXELS[:, ::-1].transpose(1, 0, 2),
}  # fmt: skip


def block(*entries, order=">", data=b""):
    """A TIFF header and one directory of (tag, type, count, value); `data` follows it."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4) + data


def turned(value, order=">"):
    return 0x0112, 3, 1, struct.pack(f"{order}HH", value, 0)


def png(exif_block):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif_block)
    return buffer.getvalue()


def chunk_beginning_with_exif():
    data, wrong = png(block(turned(6))), b"Exif\0\0" + block(turned(6))
    at = data.index(b"eXIf")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    import zlib

    changed = struct.pack(">I", len(wrong)) + b"eXIf" + wrong + struct.pack(">I", zlib.crc32(b"eXIf" + wrong))
    return data[: at - 4] + changed + data[at + 8 + length :]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", TURNED)
def test_every_orientation(value, order):
    assert np.array_equal(open_picture(png(block(turned(value, order), order=order))), TURNED[value])


# A resolution of -1 / 1 in unsigned numbers, a pointer to nowhere, a number of entries that is too large, a text that
# ends behind the end, an unknown type.
NEGATIVE = block(turned(6), (0x011A, 10, 1, struct.pack(">I", 38)), data=struct.pack(">ii", -1, 1))
ODD = [
    NEGATIVE,
    block(turned(6), (0x8769, 4, 1, struct.pack(">I", 99_999))),
    block(turned(6), (0x8769, 4, 1, struct.pack(">I", 8))),
    block(turned(6)).replace(b"\0\x01\x01\x12", b"\xff\xff\x01\x12"),
    block((0x010F, 2, 500_000, struct.pack(">I", 30)), turned(6)),
    block((0x9999, 99, 1, bytes(4)), turned(6)),
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_blocks_still_say_how_the_picture_is_turned(odd, tmp_path):
    data = png(odd)
    assert np.array_equal(open_picture(data), TURNED[6])
    assert np.array_equal(InputFile("a.png", data).open("black"), TURNED[6])
    assert np.array_equal(as_picture(Image.open(io.BytesIO(data))), TURNED[6])
    assert to_mask(Image.open(io.BytesIO(data))).size == (8, 12)
    assert picture_files.read_text(io.BytesIO(data)) is None
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "a.txt").write_text("noise")
    assert len(PictureFolder(tmp_path, 8)) == 1


def test_a_chunk_that_begins_with_exif():
    data = chunk_beginning_with_exif()
    assert np.array_equal(open_picture(data), TURNED[6]) and picture_files.read_text(io.BytesIO(data)) is None


def test_a_picture_is_turned_once():
    upright = open_picture(png(block(turned(6))))
    assert np.array_equal(as_picture(upright), TURNED[6])


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist(value):
    assert np.array_equal(open_picture(png(block(turned(value)))), PIXELS)


GOOD = block(turned(3), (0x010F, 2, 8, struct.pack(">I", 62)), (0x011A, 5, 1, struct.pack(">I", 62)),
             (0x8769, 4, 1, struct.pack(">I", 70)), data=b"a camera" + block(turned(1))[8:])  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=120), CHANGES), st.sampled_from(["PNG", "JPEG", "WEBP"]))
@example([(4, 255)], "JPEG")
def test_no_block_costs_the_picture(change, kind):
    fuzzed = bytearray(GOOD)
    for at, value in change if isinstance(change, list) else ():
        fuzzed[at] = value
    fuzzed = change if isinstance(change, bytes) else bytes(fuzzed)
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(PIXELS).save(buffer, kind, exif=fuzzed if kind == "PNG" else b"Exif\0\0" + fuzzed, **options)
    found = np.asarray(open_picture(buffer.getvalue()))
    assert sorted(found.shape) == [3, 8, 12]
    if kind != "JPEG":
        assert any(np.array_equal(found, each) for each in TURNED.values())
    picture_files.read_text(io.BytesIO(buffer.getvalue()))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"MM\0*\0\0\0\x08\0\x05" + rest))
def test_any_bytes_are_read(data):
    assert all(isinstance(value, (int, bytes)) for value in exif.tags(data).values())
    assert 1 <= exif.orientation({"exif": data, "xmp": data}) <= 8


def test_a_comment_comes_back():
    comment = b"UNICODE\0" + "猫".encode("utf-16-be")
    assert exif.tags(exif.with_comment(comment)) == {exif.USER_COMMENT: comment}
