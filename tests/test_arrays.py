"""Arrays to pictures and back, sheets, and latents made visible."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.errors import InputError, PictureError
from stable_diffusion.families import RGB_FACTORS
from stable_diffusion.pictures import arrays

ROOT = Path(__file__).resolve().parents[1]
A_PICTURE = np.linspace(0, 1, 8 * 6 * 3, dtype=np.float32).reshape(8, 6, 3)


def test_to_uint8_rounds_and_clips():
    values = np.array([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.5 / 255 + 1e-4, 1.0, 7.0, np.nan, np.inf, -np.inf])
    assert arrays.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255, 0, 255, 0]


def test_to_picture_keeps_pixels_in_place():
    picture = arrays.to_picture(A_PICTURE)
    assert (picture.mode, picture.size) == ("RGB", (6, 8))
    assert np.array_equal(np.asarray(picture), arrays.to_uint8(A_PICTURE))
    assert np.array_equal(np.asarray(arrays.to_picture(np.full((2, 2, 3), 9, np.uint8))), np.full((2, 2, 3), 9))


@pytest.mark.parametrize("shape", [(3,), (4, 4, 4), (1, 4, 4, 3), (0,)])
def test_to_picture_refuses_other_shapes(shape):
    with pytest.raises(PictureError, match="shape"):
        arrays.to_picture(np.zeros(shape))


def test_a_grid_puts_pictures_row_by_row():
    shades = [Image.new("RGB", (4, 3), (i, i, i)) for i in (10, 20, 30)]
    sheet = arrays.grid(shades)
    assert sheet.size == (8, 6)
    assert [sheet.getpixel(at)[0] for at in ((0, 0), (4, 0), (0, 3), (4, 3))] == [10, 20, 30, 0]
    assert arrays.grid(shades, columns=9, gap=2).size == (3 * 4 + 2 * 2, 3)
    assert arrays.grid([A_PICTURE, shades[0]], columns=1).size == (6, 16)


@pytest.mark.parametrize(("pictures", "columns"), [([], None), ([A_PICTURE], 0)])
def test_a_grid_of_nothing_is_refused(pictures, columns):
    with pytest.raises(InputError):
        arrays.grid(pictures, columns)


# --- Latents


def test_latent_picture_uses_one_fixed_range():
    latents = np.zeros((2, 3, 4), np.float32)
    latents[..., 0], latents[..., 1], latents[..., 3] = -arrays.LATENT_RANGE, arrays.LATENT_RANGE, 99
    row = np.asarray(arrays.latent_picture(latents, scale=2))
    assert row.shape == (4, 4 * 6 + 3 * 2)
    assert [int(row[0, c * 8]) for c in range(4)] == [0, 255, 128, 255]
    assert arrays.latent_picture(latents, scale=2, columns=2).size == (14, 10)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "postcards-tiny"])
def test_approximate_rgb_is_the_linear_map(family):
    latents = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    factors, bias = map(np.asarray, RGB_FACTORS[family])
    expected = np.rint(np.clip((latents @ factors + bias) / 2 + 0.5, 0, 1) * 255)
    assert np.abs(np.asarray(arrays.approximate_rgb(latents, family, scale=1)) - expected).max() <= 1
    assert arrays.approximate_rgb(latents, family, scale=8).size == (40, 24)


def test_approximate_rgb_takes_the_first_name_that_is_known():
    latents = np.ones((2, 2, 4), np.float32)
    both = arrays.approximate_rgb(latents, ("postcards-tiny", "sd1"))
    assert both.tobytes() == arrays.approximate_rgb(latents, "postcards-tiny").tobytes()
    assert (
        arrays.approximate_rgb(latents, ("mine", "sd1")).tobytes() == arrays.approximate_rgb(latents, "sd1").tobytes()
    )
    assert arrays.approximate_rgb(latents, "mine") is None
    assert arrays.approximate_rgb(np.ones((2, 2, 16)), "sd1") is None


def test_latents_that_are_not_one_picture_are_refused():
    with pytest.raises(InputError, match="h, w, C"):
        arrays.latent_picture(np.zeros((1, 2, 2, 4)))


def test_broken_latents_are_shown_all_the_same():
    latents = np.array([[[np.nan, np.inf, -np.inf, 0]]])
    assert np.asarray(arrays.latent_picture(latents, scale=1))[0, ::3].tolist() == [128, 255, 0, 128]
    assert arrays.approximate_rgb(latents, "sd1") is not None
