"""Seamless tiling: opposite edges are neighbours, for every convolution, in a picture and in tiles of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import Hires, InputError, StableDiffusion, memory, ops
from stable_diffusion.backend import mx
from stable_diffusion.config import AutoencoderTinyConfig
from stable_diffusion.diffusion.enlarging import enlarged, margin
from stable_diffusion.diffusion.tiled import TiledNetwork
from stable_diffusion.hires import LATENT_MODES
from stable_diffusion.layers import Downsample
from stable_diffusion.ops import plain
from stable_diffusion.pictures import TILINGS
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request, read_record
from stable_diffusion.tiles import closed, extended
from stable_diffusion.vae_tiny import TinyAutoencoder

from . import drawn

PROMPT = "a red house on green hills by day"
FEW = {"num_steps": 6, "cfg_weight": 5.0, "seed": 4}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def rolled(x, axes, by=8):
    return np.roll(x, [by] * len(axes), axes)


def seams(picture: np.ndarray) -> tuple[float, float]:
    """How much (left and right, top and bottom) differ where copies meet, as a share of neighbours' difference."""
    found = []
    for axis in (1, 0):
        within = np.abs(np.diff(picture, axis=axis)).mean()
        found.append(float(np.abs(np.take(picture, 0, axis) - np.take(picture, -1, axis)).mean() / within))
    return found[0], found[1]


@pytest.mark.parametrize("table", ["plain", "cpu", "gpu", "learning"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", TILINGS.values(), ids=TILINGS)
def test_every_form_of_a_convolution_goes_around(table, stride, axes):
    x, weight, bias = drawn.normal("x", 2, 40, 36, 32), drawn.normal("w", 32, 3, 3, 32), drawn.normal("b", 32)
    padded = np.pad(x, [(0, 0), *[(1, 1) if axis in axes else (0, 0) for axis in (1, 2)], (0, 0)], mode="wrap")
    padded = np.pad(padded, [(0, 0), *[(0, 0) if axis in axes else (1, 1) for axis in (1, 2)], (0, 0)])
    expected = plain.conv2d(mx.array(padded), mx.array(weight), mx.array(bias), stride)
    plus = mx.array(drawn.normal("plus", *expected.shape))
    with ops.use(table), ops.wrapping(axes):
        found = ops.conv2d(mx.array(x), mx.array(weight), mx.array(bias), stride, 1, plus)
        mx.eval(found)
    assert np.abs(np.array(found - plus - expected)).max() < 1e-4 * np.abs(np.array(expected)).max()


def test_edges_are_those_of_the_context_in_lanes_too():
    x, layer = mx.array(drawn.normal("x", 2, 8, 8, 4)), Downsample(4, padding=0)

    def there(x):
        return ops.padded(x, 1, 1)

    with ops.use("cpu"), ops.wrapping((1, 2)):
        assert np.array_equal(
            ops.by_batch(there, 2, layer, x), np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="wrap")
        )
        end = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)], mode="wrap")
        assert np.allclose(layer(x), layer.conv(mx.array(end)), atol=1e-6)
    assert not np.allclose(layer(x), layer.conv(mx.array(end)), atol=1e-3)
    with ops.wrapping((2,)):
        few = ops.padded(x[:, :, :1], 2, 2)
    assert few.shape == (2, 12, 5, 4) and mx.array_equal(few[:, 2:-2, 0], x[:, :, 0])


@pytest.mark.parametrize("tiling", ["x", "y", "both"])
def test_networks_know_no_edge(sd, tiling):
    """A picture that is moved around the edge gives its answer moved: nothing says where it ends."""
    axes = TILINGS[tiling]
    latents = drawn.normal("latents", 1, 16, 16, 4)
    whole = rolled(np.array(sd.decode(mx.array(latents), tiling)), axes, 64)
    assert np.abs(np.array(sd.decode(mx.array(rolled(latents, axes)), tiling)) - whole).max() < 1e-4
    assert np.abs(np.array(sd.decode(mx.array(rolled(latents, axes)))) - whole).max() > 0.02
    picture = drawn.normal("picture", 128, 128, 3).clip(-1, 1)
    around = {"around": axes}
    mean = [
        np.array(sd._encoded(mx.array(each)[None], mx.zeros((1, 16, 16, 4)), **around))
        for each in (picture, np.roll(picture, [64] * len(axes), [axis - 1 for axis in axes]))
    ]
    assert np.abs(rolled(mean[0], axes) - mean[1]).max() < 1e-4

    def step(noise):
        return np.array(next(sd.generate_latents(PROMPT, latents=noise, tiling=tiling, **FEW)).denoised)

    assert np.abs(rolled(step(latents), axes) - step(rolled(latents, axes))).max() < 1e-3


def test_the_tiny_vae_goes_around():
    tiny = TinyAutoencoder(
        AutoencoderTinyConfig.from_dict({"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4})
    )
    latents, picture = drawn.normal("latents", 1, 8, 8, 4), drawn.normal("picture", 1, 64, 64, 3)
    with ops.wrapping((1, 2)):
        moved = rolled(np.array(tiny.decode(mx.array(latents))), (1, 2), 16)
        assert np.abs(np.array(tiny.decode(mx.array(rolled(latents, (1, 2), 2)))) - moved).max() < 1e-5
        moved = rolled(np.array(tiny.encode(mx.array(picture))), (1, 2), 2)
        assert np.abs(np.array(tiny.encode(mx.array(rolled(picture, (1, 2), 16)))) - moved).max() < 1e-5


def test_copies_of_a_picture_meet_without_a_seam(sd):
    left, top = seams(np.asarray(sd.generate(PROMPT, tiling="both", **FEW)[0].image, np.float32))
    assert left < 1.5 and top < 1.5
    left, top = seams(np.asarray(sd.generate(PROMPT, tiling="x", **FEW)[0].image, np.float32))
    assert left < 1.5 and top > 3, "up and down are sky and grass"


def test_a_picture_to_begin_from_goes_around_too(sd):
    """What is tiled already stays so."""
    before = sd.generate(PROMPT, tiling="both", **FEW)[0].image
    again = sd.generate(PROMPT, tiling="both", input_image=before, denoising_strength=0.34, **FEW)[0].image
    assert max(seams(np.asarray(again, np.float32))) < 1.5


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_the_second_pass_goes_around(sd, upscaler):
    hires = Hires(2, upscaler=upscaler, steps=3, strength=0.4)
    options = {"width": 64, "height": 64, "hires": hires, **FEW}
    assert max(seams(np.asarray(sd.generate(PROMPT, tiling="both", **options)[0].image, np.float32))) < 3
    assert max(seams(np.asarray(sd.generate(PROMPT, **options)[0].image, np.float32))) > 5


@pytest.mark.parametrize("mode", [name for name in LATENT_MODES if "nearest" not in name])
def test_enlarged_latents_go_around(mode):
    latents = drawn.normal("latents", 1, 8, 6, 4)
    options = 12, 12, *LATENT_MODES[mode]
    found, moved = (np.array(enlarged(mx.array(each), *options, (1,))) for each in (latents, np.roll(latents, 2, 1)))
    assert np.abs(np.roll(found, 3, 1) - moved).max() < 1e-5
    assert np.abs(found - np.array(enlarged(mx.array(latents), *options)))[:, 3:-3].max() < 1e-6
    assert not np.allclose(found, enlarged(mx.array(latents), *options), atol=1e-2)


def test_an_upscaler_sees_whole_pixels_beyond_the_edge():
    assert margin(64, 128) == (32, 64)
    assert margin(512, 768) == (32, 48)
    assert margin(24, 40, 10) == (12, 20)
    assert margin(72, 200) == (36, 100)
    assert margin(8, 24) == (8, 24)


def test_in_tiles_of_a_network():
    x = mx.array(drawn.normal("latents", 2, 13, 21, 4))
    with ops.wrapping((1, 2)):
        smooth = plain.conv2d(ops.padded(x, 1, 1), mx.ones((4, 3, 3, 4)), mx.zeros((4,)))

    def network(part, t, step):
        return ops.conv2d(part, mx.ones((4, 3, 3, 4)), mx.zeros((4,)), padding=1)

    errors = [np.abs(np.array(TiledNetwork(network, 8, 4, around=axes)(x, 0.0, 1) - smooth)) for axes in ((1, 2), ())]
    for edge in np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]:
        assert errors[0][edge].mean() < errors[1][edge].mean() / 4, "a tile reaches across the edge"


def test_extended_and_closed_are_inverses():
    x = mx.array(drawn.normal("x", 1, 5, 7, 2))
    for axes in TILINGS.values():
        larger = extended(x, axes, 3)
        assert larger.shape == (1, 5 + 3 * (1 in axes), 7 + 3 * (2 in axes), 2)
        assert mx.allclose(closed(larger, axes, (5, 7)), x, atol=1e-6)
    assert extended(x, (1,), 100).shape == (1, 10, 7, 2)


def test_in_tiles_of_the_decoder_and_of_the_picture(sd, monkeypatch):
    latents = next(iter(sd.generate_latents(PROMPT, tiling="both", **FEW | {"num_steps": 1}))).denoised
    whole = np.asarray(sd.decode(latents, "both"))
    monkeypatch.setattr(memory, "TILE", 12)
    monkeypatch.setattr(memory, "OVERLAP", 4)
    monkeypatch.setattr(memory.Needs, "in_tiles", lambda *rest: True)
    tiled = np.asarray(sd.decode(latents, "both"))
    assert tiled.shape == whole.shape and np.abs(tiled - whole).mean() < 0.04
    assert max(seams(tiled[0])) < 2


def test_pictures_in_tiles_go_around(sd):
    found = {}
    for tiling in ("off", "x"):
        options = {"width": 192, "tile": 128, "tile_overlap": 32, "tiling": tiling, "num_steps": 3}
        picture = sd.generate(PROMPT, **FEW | options)[0].image
        found[tiling] = seams(np.asarray(picture, np.float32))[0]
    again = {"input_image": picture, "num_steps": 5, "denoising_strength": 0.2, "seed": 3}
    repainted = sd.generate(PROMPT, **options | again)[0].image
    assert found["x"] < found["off"] / 2 and seams(np.asarray(repainted, np.float32))[0] < found["off"] / 2


def test_records_are_a1111s_and_more():
    for tiling, words in (("x", "x"), ("y", "y"), ("both", "True")):
        said = sd_record(Request("a", tiling=tiling))
        assert said.extra["Tiling"] == words
        assert read_record(said) == read_record(Parameters.from_text(said.to_text()))
        assert read_record(said)[0]["tiling"] == tiling
    assert "Tiling" not in sd_record(Request("a")).extra
    assert read_record(Parameters("a", extra={"Tiling": "False"}))[0]["tiling"] == "off"
    white = Image.new("L", (8, 8), 255)
    part = Request("a", picture=Image.new("RGB", (8, 8)), mask=white, only_masked=True, tiling="x")
    assert part.decoding == {} and "Tiling" not in sd_record(part).extra, "a part of a picture has no edges of it"
    assert dataclasses.replace(part, only_masked=False).decoding == {"tiling": "x"}


def sd_record(request):
    from stable_diffusion.record.used import Used

    return request.to_record(Used("m", "float32", "v"), (64, 64))


def test_what_is_neither_is_refused(sd):
    for call in (
        lambda: Request("a", tiling="xy"),
        lambda: sd.generate_latents(PROMPT, tiling=True),
        lambda: sd.decode(mx.zeros((1, 4, 4, 4)), "z"),
        lambda: sd.preview(mx.zeros((1, 4, 4, 4)), "z"),
        lambda: sd.encode(Image.new("RGB", (64, 64)), tiling="z"),
    ):
        with pytest.raises(InputError, match=r"tiling = .* should be one of off, x, y, both"):
            call()
