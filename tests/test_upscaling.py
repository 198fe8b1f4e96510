"""Upscalers by name, and pictures made larger by them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.errors import CheckpointNotFoundError, InputError, PictureError
from stable_diffusion.upscaling import upscalers
from stable_diffusion.upscaling.enlarging import covering, enlarge, enlarged_size


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_the_first_upscaler_is_none():
    """Other programs expect it there (SillyTavern puts latent upscalers after it)."""
    names = [upscaler.name for upscaler in upscalers.all()]
    assert names[0] == "None"
    assert {"Lanczos", "Bicubic", "Nearest"} <= set(names)
    assert len({name.casefold() for name in names}) == len(names)


def test_an_upscaler_is_found_by_its_name_in_any_case():
    assert upscalers.find(" lanczos ").name == "Lanczos"
    with pytest.raises(CheckpointNotFoundError, match=r"'Lancos'.*Near it: Lanczos"):
        upscalers.find("Lancos")
    with pytest.raises(CheckpointNotFoundError, match="There are None, "):
        upscalers.find("")


@pytest.mark.parametrize("name", ["None", "Lanczos", "Bicubic", "Nearest"])
@pytest.mark.parametrize("channels", [3, 4])
def test_resampling_makes_any_size(name, channels):
    array = noise(7, 5, channels)
    told = []
    larger = enlarge(array, name, by=2.5, progress=lambda done, total: told.append((done, total)))
    assert (larger.mode, larger.size) == ("RGBA" if channels == 4 else "RGB", (12, 18))
    assert told[0][0] == 0 and told[-1][0] == told[-1][1]
    if name == "Nearest":
        assert np.array_equal(np.asarray(enlarge(array, name, by=2)), array.repeat(2, 0).repeat(2, 1))


def test_a_size_may_have_another_shape():
    assert enlarge(noise(7, 5, 3), size=(9, 30)).size == (9, 30)
    assert enlarge(Image.new("1", (1, 1)), by=0.5).size == (1, 1)


def test_progress_may_stop_the_work():
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enlarge(noise(7, 5, 3), by=2, progress=stop)


@pytest.mark.parametrize("by", [0, -1, 100, float("nan"), float("inf"), True, "2"])
def test_a_factor_out_of_range_is_refused(by):
    with pytest.raises(InputError, match="by = "):
        enlarged_size((10, 10), by)


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError, match="either"):
        enlarged_size((10, 10))
    with pytest.raises(InputError, match="either"):
        enlarged_size((10, 10), 2, (20, 20))
    with pytest.raises(InputError, match="320000 x 320000 pixels are 102400 million"):
        enlarged_size((20_000, 20_000), 16)
    with pytest.raises(InputError, match="should be a whole number of pixels"):
        enlarged_size((10, 10), to=(0, 5))
    with pytest.raises(PictureError, match="not str"):
        enlarge("picture.png", by=2)


def test_a_size_that_covers_a_box():
    assert covering((10, 20), (30, 30)) == (30, 60)
    assert covering((3, 7), (10, 10)) == (10, 23)
