"""Any picture file or array becomes RGB of the right size, or is refused with one clear error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.errors import PictureError
from stable_diffusion.pictures import formats
from stable_diffusion.pictures.reading import MAX_PIXELS, as_input, as_picture, fit, from_array, open_picture, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims to be enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_formats(kind):
    image = Image.fromarray(noise(20, 30, 3))
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_picture(encoded(image, kind, **options))
    assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), np.asarray(image))


def test_a_path_and_an_open_file(tmp_path):
    path = tmp_path / "a picture.png"
    Image.fromarray(noise(4, 4, 3)).save(path)
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(open_picture(path)), np.asarray(open_picture(file)))
    assert open_picture(str(path)).size == (4, 4)


def test_one_channel():
    assert open_picture(encoded(Image.new("L", (4, 4), 100))).getpixel((0, 0)) == (100, 100, 100)
    assert open_picture(encoded(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_alpha_lies_over_white():
    assert open_picture(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))).getpixel((0, 0)) == (255, 127, 127)
    assert open_picture(encoded(Image.new("LA", (4, 4), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_with_and_without_transparency():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert open_picture(encoded(palette)).getpixel((0, 0)) == (10, 20, 30)
    assert open_picture(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_cut():
    gradient = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    expected = np.rint(gradient / 257).astype(np.uint8)
    opened = np.asarray(open_picture(encoded(Image.fromarray(gradient))))
    assert np.array_equal(opened, np.stack([expected] * 3, axis=-1))


def test_cmyk():
    assert open_picture(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (8, 4))
    image.paste("red", (0, 0, 4, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    opened = open_picture(encoded(image, "PNG", exif=exif))
    assert opened.size == (4, 8)
    assert opened.getpixel((0, 0)) == (255, 0, 0) and opened.getpixel((0, 7)) == (0, 0, 0)


@pytest.mark.parametrize(
    "data, match",
    [
        (b"", "not a picture"),
        (b"GIF89a but not really", "truncated|not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (encoded(Image.new("RGB", (64, 64)), "EPS"), "not a picture"),
        (claiming(12000, 12000), "12000 x 12000"),
        (claiming(2**31 - 1, 2**31 - 1), "too large|pixels"),
    ],
)
def test_what_is_no_picture(data, match):
    with pytest.raises(PictureError, match=match):
        open_picture(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_cut_short(kind):
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(PictureError):
            open_picture(data[: int(len(data) * share)])


def test_absent(tmp_path):
    with pytest.raises(PictureError, match=r"No picture file at '.*nothing\.png'"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(PictureError, match="No picture file"):
        open_picture(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "TIFF", "GIF", "AVIF"])
def test_what_the_page_accepts_can_be_read(kind):
    image = Image.new("RGB", (40, 30), (200, 30, 40))
    opened = open_picture(encoded(image, kind))
    assert opened.size == (40, 30)
    assert np.abs(np.subtract(opened.getpixel((20, 15)), (200, 30, 40))).max() <= 4
    (form,) = [each for each in formats.FORMATS if each.pillow == kind]
    assert {suffix[1:] for suffix in form.suffixes} <= set(formats.UPLOADS)
    assert formats.format_of("a.JFIF").key == "jpeg"


def test_heic_is_read_where_its_package_is_installed():
    pytest.importorskip("pi_heif")
    opened = open_picture(Path(__file__).with_name("pictures") / "two.heic")
    assert opened.size == (40, 30) and {"heic", "heif"} <= set(formats.UPLOADS)
    for place, colour in (((5, 15), (200, 30, 40)), ((35, 15), (30, 60, 200))):
        assert np.abs(np.subtract(opened.getpixel(place), colour)).max() <= 12


@pytest.mark.parametrize("how, left", [("crop", (0, 255, 0)), ("pad", (255, 255, 255)), ("stretch", (255, 0, 0))])
def test_fit(how, left):
    image = Image.new("RGB", (90, 30))
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        image.paste(colour, (30 * i, 0, 30 * i + 30, 30))
    fitted = fit(image, 24, 24, how)
    assert fitted.size == (24, 24)
    assert fitted.getpixel((2, 1)) == left


def test_an_unknown_fit():
    with pytest.raises(PictureError, match="'squeeze'"):
        fit(Image.new("RGB", (8, 8)), 4, 4, "squeeze")


def test_as_input_scales_to_minus_one_to_one():
    image = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    assert np.array_equal(as_input(image, 2, 1), np.array([[[-1] * 3, [1] * 3]], np.float32))
    assert as_input(noise(16, 24, 3), 24, 16).dtype == np.float32


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_arrays(shape):
    assert from_array(noise(*shape)).mode == "RGB"


@pytest.mark.parametrize(
    "value", [noise(4, 4, 2), noise(4, 4, 4, 3), noise(3), np.zeros((4, 4, 3), np.float32), noise(0, 4, 3)]
)
def test_arrays_that_are_no_pictures(value):
    with pytest.raises(PictureError, match="shape"):
        as_input(value, 8, 8)


@pytest.mark.parametrize("value", ["picture.png", None, 3, b"bytes"])
def test_inputs_that_are_no_pictures(value):
    with pytest.raises(PictureError, match="open_picture"):
        as_input(value, 8, 8)


def test_an_enormous_picture_as_input():
    with pytest.raises(PictureError, match="million"):
        as_input(Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)), 8, 8)


def test_floats_in_0_to_1():
    assert to_rgb(Image.fromarray(np.full((2, 2), 0.5, np.float32))).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_may_be_kept(mode):
    image = Image.fromarray(noise(4, 4, 4)).convert("RGB" if mode == "P" else mode).convert(mode)
    data = encoded(image, transparency=int(image.getpixel((0, 0)))) if mode == "P" else encoded(image)
    with Image.open(io.BytesIO(data)) as expected:
        pixels = np.asarray(expected.convert("RGBA"))
    kept = open_picture(data, under=None)
    assert kept.mode == "RGBA"
    assert pixels[..., 3].min() < 255
    assert np.array_equal(np.asarray(kept), pixels)
    assert np.array_equal(np.asarray(as_picture(np.asarray(kept), alpha=True)), pixels)


def test_what_has_no_transparency_stays_rgb():
    assert open_picture(encoded(Image.new("I;16", (2, 2), 0x8080)), under=None).getpixel((0, 0)) == (128, 128, 128)
    assert as_picture(noise(4, 4, 3), alpha=True).mode == "RGB"
