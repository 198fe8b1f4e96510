"""Inpainting: what is kept stays bit for bit; masks, boxes and fills of all kinds; what is put back in the latents."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from stable_diffusion import StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.diffusion import start
from stable_diffusion.errors import InputError, PictureError
from stable_diffusion.pictures.inpainting import GRID, Inpainting, filled, outpaint, suitable_size, to_mask
from stable_diffusion.pictures.reading import open_picture
from stable_diffusion.unet import UNet

PROMPT = "a red balloon"


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def spot(width: int = 64, height: int = 64, box: tuple = (16, 16, 40, 40)) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def distance_at_least(mask: np.ndarray, reach: int) -> np.ndarray:
    """Where no white lies within `reach` pixels along either side."""
    padded = np.pad(mask > 0, reach)
    height, width = mask.shape
    near = np.zeros_like(mask, bool)
    rows = np.zeros((height, padded.shape[1]), bool)
    for shift in range(2 * reach + 1):
        rows |= padded[shift : shift + height]
    for shift in range(2 * reach + 1):
        near |= rows[:, shift : shift + width]
    return ~near


# --- Into the picture and out again


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    generated=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
    blur=st.sampled_from([0, 0.5, 1, 3, 4.0, 12]),
    only_masked=st.booleans(),
    padding=st.integers(0, 50),
    invert=st.booleans(),
)
@example((1, 1), (1, 1), 0, 0.0, 4, True, 0, False)
@example((90, 3), (1, 9), 1, 0.0, 0, True, 0, False)
def test_what_is_kept_is_kept_bit_for_bit(size, generated, seed, share, blur, only_masked, padding, invert):
    rng = np.random.default_rng(seed)
    white = rng.random(size[::-1]) < share
    white[rng.integers(size[1]), rng.integers(size[0])] = not invert
    original = picture(*size, seed)
    width, height = (GRID * side for side in generated)
    job = Inpainting(original, white, width, height, blur, only_masked, padding, invert)
    assert job.picture.size == job.mask.size == (width, height)
    result = np.asarray(job.finish(picture(width, height, seed + 1)))
    feather, repainted = np.asarray(job.feather), white != invert
    assert result.shape == (size[1], size[0], 3)
    assert np.array_equal(result[feather == 0], np.asarray(original)[feather == 0])
    assert (feather[repainted] == 255).all()
    assert not feather[distance_at_least(repainted, math.ceil(4 * blur))].any()


def test_the_whole_mask_is_generated():
    """Every pixel of the white, however thin, lies in a square that the engine repaints."""
    for at in range(0, 61, 7):
        job = Inpainting(picture(), spot(box=(at, at, at + 1, at + 3)), 64, 64)
        squares = np.asarray(job.mask)
        assert squares[at : at + 3, at].all() and set(np.unique(squares)) == {0, 255}
        assert squares[::GRID, ::GRID].sum() * GRID**2 == squares.sum()
    thin = Inpainting(picture(1000, 1000), spot(1000, 1000, (500, 500, 501, 501)), 64, 64)
    assert np.asarray(thin.mask).any()


def test_a_picture_of_the_size_to_generate_goes_in_and_out_as_it_is():
    original, new = picture(), picture(seed=1)
    job = Inpainting(original, spot(), 64, 64, mask_blur=0)
    assert job.box == (0, 0, 64, 64) and np.array_equal(job.picture, original)
    result = np.asarray(job.finish(new))
    inside = np.asarray(job.feather) > 0
    assert np.array_equal(result[inside], np.asarray(new)[inside]) and inside.sum() == 24**2
    all_of_it = Inpainting(original, Image.new("1", (3, 3), 1), 64, 64)
    assert np.array_equal(all_of_it.finish(new), new)


def test_the_edge_fades_outwards():
    job = Inpainting(Image.new("RGB", (200, 100)), spot(200, 100, (0, 0, 100, 100)), 64, 32, mask_blur=5)
    row = np.asarray(job.finish(Image.new("RGB", (64, 32), "white")))[50, :, 0].astype(int)
    assert (row[:100] == 255).all() and row[120:].max() == 0
    assert (np.diff(row[99:120]) <= 0).all() and 60 < row[105] < 110  # 2 (1 - Phi(1)) of 255 is 81


@pytest.mark.parametrize(
    "box, size, generated, padding, expected",
    [
        ((40, 40, 60, 60), (200, 100), (64, 64), 10, (30, 30, 70, 70)),
        ((40, 40, 60, 60), (200, 100), (128, 64), 10, (10, 30, 90, 70)),
        ((0, 0, 20, 20), (200, 100), (128, 64), 10, (0, 0, 80, 40)),  # moved into the picture
        ((180, 80, 200, 100), (200, 100), (64, 128), 0, (180, 60, 200, 100)),
        ((10, 0, 20, 100), (30, 100), (64, 64), 0, (-35, 0, 65, 100)),  # cannot be: it stands out evenly
        ((0, 0, 30, 100), (30, 100), (64, 32), 500, (-1015, -500, 1045, 530)),
    ],
)
def test_the_box_of_only_masked(box, size, generated, padding, expected):
    job = Inpainting(picture(*size), spot(*size, box), *generated, 0, True, padding)
    left, top, right, bottom = job.box
    if expected[0] > -1000:
        assert job.box == expected
    assert abs((right - left) * generated[1] - (bottom - top) * generated[0]) < max(generated)


def test_beyond_the_picture_the_edge_goes_on():
    original = Image.new("RGB", (16, 64), "red")
    job = Inpainting(original, spot(16, 64, (0, 0, 4, 4)), 64, 64, mask_blur=0)
    assert job.box == (-24, 0, 40, 64)
    assert job.picture.getcolors() == [(64 * 64, (255, 0, 0))]
    assert job.mask.getbbox() == (24, 0, 32, 8)


def test_what_was_generated_at_another_size_is_refused():
    with pytest.raises(PictureError, match="32 x 64 pixels cannot be put back; 64 x 64"):
        Inpainting(picture(), spot(), 64, 64).finish(picture(32, 64))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"width": 60}, "width = 60 should be a multiple of 8"),
        ({"height": 0}, "height = 0"),
        ({"width": 64.0}, r"width = 64\.0"),
        ({"mask_blur": -1}, "mask_blur = -1"),
        ({"mask_blur": math.nan}, "mask_blur = nan"),
        ({"mask_blur": "4"}, "mask_blur = '4'"),
        ({"padding": -3}, "padding = -3"),
        ({"padding": 2.5}, r"padding = 2\.5"),
        ({"mask": Image.new("L", (64, 64), 100)}, "nothing to repaint.*64 x 64.*brightest is 100 of 255.*128 or more"),
        ({"mask": Image.new("L", (5, 5), 255), "invert": True}, "darkest is 255 of 255, and below 128"),
    ],
)
def test_what_makes_no_sense_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        Inpainting(**{"picture": picture(), "mask": spot(), "width": 64, "height": 64, **options})


@pytest.mark.parametrize("mask", ["mask.png", 3, None, np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8)])
def test_what_is_no_mask(mask):
    with pytest.raises(PictureError):
        Inpainting(picture(), mask, 64, 64)


# --- Masks


def test_masks_of_every_mode_say_the_same():
    expected = np.asarray(spot())
    strokes = Image.new("RGBA", (64, 64))
    strokes.paste("white", (16, 16), Image.new("1", (24, 24), 1))
    kinds = [spot().convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA")]
    kinds += [strokes, Image.fromarray(expected.astype(np.uint16) * 257), expected, expected > 0, expected[:, :, None]]
    kinds += [np.asarray(strokes), spot().resize((128, 192), Image.Resampling.NEAREST)]
    for mask in kinds:
        assert np.array_equal(to_mask(mask, (64, 64)), expected), mask
        assert np.array_equal(to_mask(mask, (64, 64), invert=True), 255 - expected), mask


def test_a_masks_transparency_is_black_also_in_a_file():
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(file, "PNG")
    assert open_picture(file.getvalue(), under="black").getextrema() == ((0, 0),) * 3
    assert open_picture(file.getvalue()).getextrema() == ((255, 255),) * 3


# --- Fill, outpainting, sizes


def test_fill_runs_the_surroundings_in():
    halves = Image.new("RGB", (61, 40), (200, 30, 30))
    halves.paste((30, 30, 200), (30, 0, 61, 40))
    mask = spot(61, 40, (5, 5, 55, 35))
    result = np.asarray(filled(halves, mask)).astype(int)
    kept = np.asarray(mask) == 0
    assert np.array_equal(result[kept], np.asarray(halves)[kept])
    assert result[20, 7, 0] > 150 and result[20, 52, 2] > 150  # each side from its own side
    assert 60 < result[20, 30, 0] < 170 and 60 < result[20, 30, 2] < 170
    one_colour = Image.new("RGB", (50, 33), (10, 200, 77))
    assert np.array_equal(filled(one_colour, spot(50, 33, (3, 3, 40, 30))), one_colour)
    assert filled(halves, Image.new("L", halves.size, 255)).getcolors() == [(61 * 40, (128, 128, 128))]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any))
def test_outpainting_keeps_the_picture(sides):
    left, right, top, bottom = sides
    original = picture(30, 20)
    canvas, mask = outpaint(original, left, right, top, bottom)
    assert canvas.size == mask.size == (30 + left + right, 20 + top + bottom)
    inside = (left, top, left + 30, top + 20)
    assert np.array_equal(canvas.crop(inside), original)
    assert mask.crop(inside).getextrema() == (0, 0)
    assert (np.asarray(mask) == 255).sum() == canvas.width * canvas.height - 600


def test_outpainting_begins_with_the_edges_colours():
    canvas, _ = outpaint(Image.new("RGB", (30, 20), (40, 120, 200)), left=50)
    added = np.asarray(canvas)[:, :50].astype(float)
    assert np.abs(added.mean((0, 1)) - (40, 120, 200)).max() < 3 and 5 < added.std((0, 1)).max() < 20
    assert np.array_equal(canvas, outpaint(Image.new("RGB", (30, 20), (40, 120, 200)), left=50)[0])


@pytest.mark.parametrize("options, match", [({}, "all 0"), ({"left": -8}, "left = -8"), ({"top": 1.5}, r"top = 1\.5")])
def test_sides_that_make_no_sense(options, match):
    with pytest.raises(InputError, match=match):
        outpaint(picture(), **options)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_suitable_size(width, height):
    found = suitable_size((width, height), (512, 512))
    assert all(side % 8 == 0 and side >= 8 for side in found)
    if 0.1 < width / height < 10:
        assert abs(math.log(found[0] / found[1] * height / width)) < 0.05
        assert 0.9 < found[0] * found[1] / 512**2 < 1.1
    assert suitable_size((128, 128), (128, 128)) == (128, 128)


# --- In the latents


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def steps(sd: StableDiffusion, **options) -> list:
    options = {"num_steps": 4, "width": 64, "height": 64, "seed": 1, "input_image": picture(), **options}
    found = list(sd.generate_latents(PROMPT, **options))
    mx.eval([step.latents for step in found])
    return found


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "dpmpp_sde", "dpmpp_2m", "pndm", "unipc", "lms"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_kept_latents_are_the_pictures_at_every_level(sd, sampler, strength):
    found = steps(sd, mask_image=spot(), sampler=sampler, denoising_strength=strength, num_steps=6)
    white = np.asarray(spot())[::8, ::8] > 0
    x_0 = np.array(sd.encode(picture(), 64, 64, seed=1)[0])
    eps = (np.array(found[0].latents[0]) - x_0 / math.sqrt(1 + found[0].sigma ** 2)) * math.sqrt(
        1 + found[0].sigma ** -2
    )
    for step in found:
        alpha = 1 / math.sqrt(1 + step.sigma**2)
        expected = alpha * x_0 + step.sigma * alpha * eps if step is not found[-1] else x_0
        np.testing.assert_allclose(np.array(step.latents[0])[~white], expected[~white], atol=1e-4)
        np.testing.assert_allclose(np.array(step.denoised[0])[~white], x_0[~white], atol=1e-5)
    assert np.abs(np.array(found[-1].latents[0]) - x_0)[white].max() > 0.1


def test_masked_content_is_where_the_white_begins(sd):
    def first(content: str) -> np.ndarray:
        step = steps(sd, mask_image=spot(), masked_content=content, denoising_strength=0.25)[0]
        return np.array(step.latents[0])

    original, noise, fill = (first(content) for content in ("original", "noise", "fill"))
    white = np.asarray(spot())[::8, ::8] > 0
    for a, b in ((original, noise), (original, fill), (noise, fill)):
        assert np.abs(a - b)[white].max() > 0.1
    np.testing.assert_array_equal(original[~white], noise[~white])


def test_at_full_strength_nothing_is_left_of_the_white(sd):
    """But for what the autoencoder sees of it from its surroundings: another picture under the mask, the same begin."""
    other = picture()
    other.paste("red", (16, 16, 40, 40))
    mask = spot(box=(8, 8, 48, 48))
    a, b = (steps(sd, input_image=image, mask_image=mask, denoising_strength=1.0)[0] for image in (picture(), other))
    inside = np.s_[0, 3:4, 3:4]
    assert np.abs(np.array(a.latents) - np.array(b.latents))[inside].max() < 1e-5


def test_pictures_of_a_batch_are_their_own_seeds(sd):
    batch = steps(sd, mask_image=spot(), n_images=2, masked_content="noise", sampler="euler_a")[-1].latents
    for i in range(2):
        alone = steps(sd, mask_image=spot(), seed=1 + i, masked_content="noise", sampler="euler_a")[-1].latents
        assert mx.abs(batch[i] - alone[0]).max() < 1e-4


def test_picture_and_mask_are_cropped_alike(sd):
    wide, mask = picture(128, 64), spot(128, 64, (48, 16, 72, 40))
    cut = (32, 0, 96, 64)
    a = steps(sd, input_image=wide, mask_image=mask)[-1].latents
    b = steps(sd, input_image=wide.crop(cut), mask_image=mask.crop(cut))[-1].latents
    assert mx.array_equal(a, b)
    c = steps(sd, input_image=wide, mask_image=mask.resize((256, 128), Image.Resampling.NEAREST))[-1].latents
    assert mx.array_equal(a, c)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"input_image": None}, "no input_image"),
        ({"masked_content": "latent"}, "masked_content = 'latent' should be one of original, noise, fill"),
        ({"mask_image": Image.new("L", (64, 64))}, "nothing to repaint"),
        ({"mask_image": spot(box=(1, 1, 4, 64))}, "too thin.*every 8 pixels of 64 x 64"),
        ({"denoising_strength": 0.1}, "leaves none of 4 steps"),
    ],
)
def test_calls_that_make_no_sense_are_refused(sd, options, match):
    with pytest.raises(InputError, match=match):
        steps(sd, **{"mask_image": spot(), **options})


def test_an_inpainting_checkpoint_says_what_it_needs():
    asked = start.InputPicture(mx.zeros((1, 8, 8, 3)))
    for given_ in (None, asked):
        with pytest.raises(InputError, match=r"'sd-inp' is an inpainting checkpoint.*input_image and mask_image"):
            start.check_task("sd-inp", 9, 4, given_)
    with pytest.raises(InputError, match="takes 8 channels"):
        start.check_task("pix2pix", 8, 4, asked)
    start.check_task("sd", 4, 4, None)


def test_nine_channels_are_latents_mask_and_masked_picture(sd, monkeypatch):
    """In that order, for each picture of the batch, in the negative's rows and the text's."""
    seen = []

    def predict(self, x, *rest):
        seen.append(np.array(x))
        return mx.zeros((*x.shape[:3], 4))

    monkeypatch.setattr(sd._unet, "config", dataclasses.replace(sd._unet.config, in_channels=9))
    monkeypatch.setattr(UNet, "predict", predict)
    assert sd.inpainting
    steps(sd, mask_image=spot(), n_images=2, num_steps=1, denoising_strength=1.0)
    (x,) = seen
    assert x.shape == (4, 8, 8, 9)
    np.testing.assert_array_equal(x[:2], x[2:])
    np.testing.assert_array_equal(x[0, :, :, 4], np.asarray(spot())[::8, ::8] / 255)
    blanked = (np.asarray(picture(), np.float32) / 127.5 - 1) * (np.asarray(spot()) == 0)[:, :, None]
    mean, deviation = (np.array(each) for each in sd._vae.moments(mx.array(blanked)[None]))
    drawn = (x[:2, :, :, 5:] / sd._vae.config.scaling_factor - mean) / deviation
    assert np.abs(drawn).max() < 6 and 0.7 < drawn.std() < 1.3 and np.abs(drawn[0] - drawn[1]).max() > 1
