"""Embedded colour profiles: whatever a picture's colours mean, they are read as sRGB, and written as that."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from stable_diffusion import Inpainting
from stable_diffusion.pictures.colour import to_srgb
from stable_diffusion.pictures.reading import as_picture, open_picture
from stable_diffusion.record import picture_files
from stable_diffusion.training.data import PictureFolder
from tests import profiles

LEVELS = np.array(np.meshgrid(*[range(0, 256, 51)] * 3), np.uint8).reshape(3, -1).T.reshape(12, 18, 3)
P3 = profiles.rgb_profile(profiles.DISPLAY_P3)
ADOBE = profiles.rgb_profile(profiles.ADOBE_RGB, profiles.ADOBE_GAMMA)


def file(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def meant(primaries, colours, gamma=None):
    """What the colours are in sRGB, by the formulas."""
    values = colours.astype(float) / 255
    values = values**gamma if gamma else profiles.linear(values)
    return profiles.encoded(values @ np.linalg.solve(profiles.SRGB, primaries).T)


def difference(image, expected):
    return np.abs(np.asarray(image, float) - expected)


@pytest.mark.parametrize(
    ("profile", "primaries", "gamma"),
    [(P3, profiles.DISPLAY_P3, None), (ADOBE, profiles.ADOBE_RGB, profiles.ADOBE_GAMMA)],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_wide_gamut_becomes_srgb(profile, primaries, gamma, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(Image.fromarray(LEVELS), kind, icc_profile=profile, **options)
    expected = meant(primaries, LEVELS, gamma)
    found = open_picture(data)
    assert difference(found, expected).max() < 2.5 < 40 < difference(LEVELS, expected).max()
    assert found.mode == "RGB" and not found.info
    assert np.array_equal(as_picture(Image.open(io.BytesIO(data))), found), "a picture that a library's user opened"


def test_a_photograph_as_a_telephone_saves_it():
    blocks = Image.fromarray(LEVELS).resize((18 * 16, 12 * 16), Image.Resampling.NEAREST)
    found = open_picture(file(blocks, "JPEG", quality=98, subsampling=0, icc_profile=P3))
    centres = np.asarray(found)[8::16, 8::16]
    assert difference(centres, meant(profiles.DISPLAY_P3, LEVELS)).mean() < 2


def test_alpha_lies_over_the_background_after_the_colours_are_known():
    image = Image.fromarray(np.dstack([LEVELS, np.full(LEVELS.shape[:2], 102, np.uint8)]))
    expected = 0.4 * meant(profiles.ADOBE_RGB, LEVELS, profiles.ADOBE_GAMMA) + 0.6 * 255
    assert difference(open_picture(file(image, icc_profile=ADOBE)), expected).max() < 2.5


def test_a_palette_has_a_profile_too():
    image = Image.fromarray(LEVELS[:, :6]).quantize(72)
    expected = meant(profiles.DISPLAY_P3, np.asarray(image.convert("RGB")))
    assert difference(open_picture(file(image, icc_profile=P3)), expected).max() < 2.5


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_another_gamma(mode):
    grey = np.arange(0, 256, 5, dtype=np.uint8)[None]
    expected = profiles.encoded((grey / 255.0) ** 1.8)
    image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey).convert(mode)
    found = open_picture(file(image, icc_profile=profiles.grey_profile(1.8)))
    assert difference(found, expected[:, :, None]).max() < 2.5


def test_cmyk_is_what_its_press_prints():
    def lab(c, m, y, k):
        return (100 - 40 * c - 30 * m - 10 * y) * (1 - k), 0 if k else 20 * m - 20 * c, 0 if k else 30 * y - 25 * c

    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 255)]
    image = Image.new("CMYK", (48, 8))
    for i, ink in enumerate(inks):
        image.paste(ink, (8 * i, 0, 8 * i + 8, 8))
    for kind in ("TIFF", "JPEG"):
        options = {"quality": 100} if kind == "JPEG" else {}
        found = open_picture(file(image, kind, icc_profile=profiles.cmyk_profile(lab), **options))
        expected = [profiles.srgb_of_lab(*lab(*(ink > 0 for ink in each))) for each in inks]
        assert difference(np.asarray(found)[4, 4::8], np.array(expected)).max() < 4


@pytest.mark.parametrize(
    "profile",
    [
        profiles.rgb_profile(profiles.SRGB),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        profiles.grey_profile(1.0),
        profiles.cmyk_profile(lambda *inks: (50, 0, 0)),
        b"no profile",
        P3[:200],
        b"",
    ],
)
def test_srgb_and_what_is_no_profile_for_it_leave_every_pixel(profile):
    image = Image.fromarray(LEVELS)
    assert np.array_equal(open_picture(file(image, icc_profile=profile)), LEVELS)
    image.info["icc_profile"] = profile
    assert "icc_profile" not in to_srgb(image).info and image.info["icc_profile"] is profile


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_saved_picture_means_the_same_colours(tmp_path, suffix):
    blocks = Image.fromarray(LEVELS[:, :6]).resize((96, 192), Image.Resampling.NEAREST)
    blocks.info["icc_profile"] = P3
    path = picture_files.save_picture(blocks, tmp_path / f"a{suffix}")
    with Image.open(path) as saved:
        assert "icc_profile" not in saved.info
        centres = np.asarray(saved.convert("RGB"))[8::16, 8::16]
    assert difference(centres, meant(profiles.DISPLAY_P3, LEVELS[:, :6])).mean() < (2 if suffix == ".png" else 6)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_inpainting_keeps_the_colours_of_what_is_not_masked(tmp_path, suffix):
    (tmp_path / "photo.png").write_bytes(file(Image.fromarray(LEVELS[:8, :16]).resize((64, 64)), icc_profile=P3))
    photo = open_picture(tmp_path / "photo.png")
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 16, 16))
    painted = Inpainting(photo, mask, 64, 64, mask_blur=0).finish(Image.new("RGB", (64, 64), "red"))
    made = open_picture(picture_files.save_picture(painted, tmp_path / f"made{suffix}"))
    apart = np.abs(np.asarray(made, int) - np.asarray(photo, int))[20:]
    assert apart.max() == 0 if suffix == ".png" else apart.mean() < 4


def test_training_pictures_are_srgb(tmp_path):
    big = Image.fromarray(LEVELS[:, :12]).resize((96, 96), Image.Resampling.NEAREST)
    big.save(tmp_path / "a.png", icc_profile=P3)
    (tmp_path / "a.txt").write_text("colours")
    picture, _ = PictureFolder(tmp_path, 96).example(0)
    assert difference(picture[4::8, 4::8], meant(profiles.DISPLAY_P3, LEVELS[:, :12])).max() < 2.5
