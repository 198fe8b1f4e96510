"""Upscalers by name, and pictures made larger by them."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from safetensors.numpy import load_file, save_file

from stable_diffusion.backend import mx
from stable_diffusion.errors import (
    CheckpointNotFoundError,
    InputError,
    NotFiniteError,
    PictureError,
    UnsupportedCheckpointError,
    WeightsError,
)
from stable_diffusion.memory import MEMORY_VARIABLE
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.training.postcards import painter
from stable_diffusion.upscaling import architectures, enlarging, upscalers
from stable_diffusion.upscaling.enlarging import Enlarger, Upscale, enlarge
from stable_diffusion.upscaling.files import describe_file
from stable_diffusion.upscaling.loading import load_network
from stable_diffusion.upscaling.settings import Upscaling, covering, enlarged_size, read_size

from . import drawn

EMBEDDED = "realesr-animevideov3"


@pytest.fixture(scope="module")
def embedded() -> Enlarger:
    return Enlarger(EMBEDDED)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of upscalers' files."""
    monkeypatch.setenv(upscalers.VARIABLE, str(tmp_path))
    return tmp_path


def compact(path: Path, scale: int = 2, channels: int = 8, convolutions: int = 1) -> Path:
    """A small network of random weights."""
    sizes = [3, *[channels] * (convolutions + 1), 3 * scale**2]
    state = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        state[f"body.{2 * i}.weight"] = drawn.weight(f"{i}.weight", (outputs, inputs, 3, 3))
        state[f"body.{2 * i}.bias"] = drawn.weight(f"{i}.bias", (outputs,))
        if i <= convolutions:
            state[f"body.{2 * i + 1}.weight"] = drawn.weight(f"{i}.slopes", (outputs,))
    save_file(state, path)
    return path


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


# --- The embedded network


def postcard(side: int) -> Image.Image:
    return painter.paint(painter.Postcard("sunset", "green hills", "house", "red", "clear", 3), side)


def edges(picture: Image.Image) -> float:
    """How strong its strongest edges are: levels from a pixel to the next."""
    grey = np.asarray(picture.convert("L"), np.float64)
    return float(np.percentile(np.hypot(np.diff(grey, axis=0)[:, 1:], np.diff(grey, axis=1)[1:]), 99.5))


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    difference = np.asarray(picture, np.float64) - np.asarray(reference, np.float64)
    return 10 * math.log10(255**2 / np.mean(difference**2))


def test_the_embedded_upscaler_works_from_a_fresh_clone(embedded):
    upscaler = embedded.upscaler
    assert (upscaler.architecture, upscaler.scale, upscaler.problem) == ("Compact", 4, "")
    assert "2021, Xintao Wang" in upscaler.path.with_name(f"{EMBEDDED}.LICENSE.txt").read_text()
    large = postcard(256)
    small = large.resize((64, 64), Image.Resampling.LANCZOS)
    found = embedded(small, by=4)
    assert found.size == (256, 256)
    assert psnr(found, large) > 25
    smooth, sharp = edges(enlarge(small, by=4)) / edges(large), edges(found) / edges(large)
    assert 1.4 * smooth < sharp < 1.3


def test_tiles_are_the_whole(embedded, monkeypatch):
    """With an overlap of what a pixel depends on, no value differs by more than one level."""
    picture = postcard(148).crop((0, 0, 148, 131))
    whole = np.asarray(embedded(picture, by=4), int)
    monkeypatch.setattr(enlarging, "TILES", (96,))
    told = []
    tiled = np.asarray(embedded(picture, by=4, progress=lambda done, total: told.append((done, total))), int)
    assert told == [(i, 4) for i in range(5)]
    assert np.abs(tiled - whole).max() <= 1


def test_less_memory_makes_smaller_tiles(embedded, monkeypatch):
    def tiles(gib: float) -> int:
        monkeypatch.setenv(MEMORY_VARIABLE, str(gib))
        told = []
        embedded(noise(70, 140, 3), by=4, progress=lambda done, total: told.append(total))
        return told[-1]

    assert tiles(8) == 1
    assert tiles(0.016) > 1
    with pytest.raises(InputError, match=r"560 x 280 pixels needs about 0.0 GiB .* choose a smaller factor"):
        tiles(0.001)


def test_a_picture_that_is_too_large_is_refused_before_it_is_computed(embedded, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "1")
    with pytest.raises(InputError, match="16000 x 16000 pixels needs about"):
        embedded(Image.new("RGB", (4000, 4000)), by=4)


def test_one_pixel(embedded):
    assert embedded(Image.new("RGB", (1, 1), "red"), by=4).size == (4, 4)


# --- Factors, passes, transparency


@pytest.mark.parametrize(
    ("scale", "by", "passes"), [(2, 2, 1), (2, 1.5, 1), (2, 3, 2), (2, 16, 3), (1, 2, 1), (2, 1, 1), (2, 0.5, 0)]
)
def test_a_network_works_until_the_picture_is_large_enough(scale, by, passes, folder, monkeypatch):
    compact(folder / "small.safetensors", scale)
    once, calls = enlarging._Work._once, []
    monkeypatch.setattr(enlarging._Work, "_once", lambda *of: calls.append(0) or once(*of))
    assert enlarge(noise(9, 12, 3), "small", by=by).size == (round(12 * by), round(9 * by))
    assert len(calls) == passes


def test_transparency_is_enlarged_apart(folder, monkeypatch):
    compact(folder / "small.safetensors")
    picture = noise(8, 8, 4)
    found = enlarge(picture, "small", by=2)
    assert found.mode == "RGBA"
    assert np.array_equal(np.asarray(found)[..., :3], np.asarray(enlarge(picture[..., :3], "small", by=2)))
    grey = enlarge(np.repeat(picture[..., 3:], 3, axis=2), "small", by=2).convert("L")
    assert np.array_equal(np.asarray(found)[..., 3], np.asarray(grey))
    picture[..., 3] = 77
    told = []
    even = enlarge(picture, "small", by=2, progress=lambda done, total: told.append(total))
    assert even.getchannel("A").getextrema() == (77, 77) and told[-1] == 1


def test_a_cancelled_network_stops_at_the_next_tile(folder, monkeypatch):
    compact(folder / "small.safetensors")
    monkeypatch.setattr(enlarging, "TILES", (64,))
    told = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enlarge(noise(100, 100, 3), "small", by=2, progress=stop)
    assert told == [(0, 4), (1, 4), (2, 4)]


def test_what_overflows_in_half_precision_is_computed_again(folder):
    path = compact(folder / "small.safetensors")
    state = load_file(path)
    state["body.0.weight"] *= 1e5
    save_file({key: value.astype(np.float32) for key, value in state.items()}, path)
    expected = Enlarger("small", half=False)(noise(8, 8, 3), by=2)
    for name, value in tree_flatten(load_network(path, half=False).parameters()):
        assert value.dtype == mx.float32, name
    enlarger = Enlarger("small", half=False)
    enlarger._network.set_dtype(mx.float16)
    with pytest.warns(UserWarning, match="overflowed in float16"):
        found = enlarger(noise(8, 8, 3), by=2)
    assert found.size == expected.size
    enlarger._network.body[0].bias = mx.full(8, math.nan)
    with pytest.raises(NotFiniteError, match="NaN"):
        enlarger(noise(8, 8, 3), by=2)


# --- Files


def test_files_are_found_by_name(folder):
    compact(folder / "4x-Sharp.safetensors", 4)
    compact(folder / "RealESRGAN_x4plus.pth", 4)
    (folder / "sub").mkdir()
    compact(folder / "sub" / "Lanczos.safetensors", 1)
    (folder / "notes.txt").write_text("no upscaler")
    names = {upscaler.name: upscaler.scale for upscaler in upscalers.all() if upscaler.kind == upscalers.NETWORK}
    assert names == {EMBEDDED: 4, "4x-Sharp": 4, "RealESRGAN_x4plus": 4, "sub/Lanczos": 1}
    for name in ("4x-sharp", "4x-Sharp.safetensors", str(folder / "4x-Sharp.safetensors")):
        assert upscalers.find(name).path == folder / "4x-Sharp.safetensors"
    assert upscalers.find("R-ESRGAN 4x+").name == "RealESRGAN_x4plus"
    assert upscalers.find("R-ESRGAN AnimeVideo").name == EMBEDDED
    assert upscalers.find("Lanczos").kind == upscalers.RESAMPLING
    with pytest.raises(CheckpointNotFoundError, match=r"Near it: 4x-Sharp.*STABLE_DIFFUSION_UPSCALERS"):
        upscalers.find("4x-Shrap")


@pytest.mark.parametrize(
    "place", ["a1111/models/ESRGAN", "a1111/models/RealESRGAN", "comfy/models/upscale_models", "home/upscalers"]
)
def test_other_programs_folders(place, tmp_path, monkeypatch):
    (tmp_path / place).mkdir(parents=True)
    for inner in ("a1111/models/Stable-diffusion", "comfy/models/checkpoints"):
        (tmp_path / inner).mkdir(parents=True)
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", f"{tmp_path / 'a1111'}:{tmp_path / 'comfy'}")
    compact(tmp_path / place / "mine.safetensors")
    assert upscalers.find("mine").path == tmp_path / place / "mine.safetensors"


def test_a_file_of_the_same_name_in_two_folders(folder):
    for inner in ("a", "b"):
        (folder / inner).mkdir()
        compact(folder / inner / "x.safetensors")
    assert {"a/x", "b/x"} <= {upscaler.name for upscaler in upscalers.all()}
    with pytest.raises(CheckpointNotFoundError, match="a/x, b/x"):
        upscalers.find("x")


def refused(folder: Path, keys: dict[str, tuple[int, ...]]) -> str:
    path = folder / "other.safetensors"
    save_file({key: np.zeros(shape, np.float32) for key, shape in keys.items()}, path)
    (upscaler,) = (each for each in upscalers.all() if each.name == "other")
    with pytest.raises(UnsupportedCheckpointError, match="The upscaler 'other'") as error:
        Enlarger("other")
    assert upscaler.problem in str(error.value)
    with pytest.raises((UnsupportedCheckpointError, WeightsError)):
        load_network(path)
    return upscaler.problem


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda each: each.title)
def test_architectures_that_are_not_built_are_refused_by_name(architecture, folder):
    for mark in architecture.marks:
        problem = refused(folder, dict.fromkeys(mark, (4,)))
        if architecture.describe is None:
            assert problem == f"holds {architecture.title}, which is not built here: {architectures.IN_WORDS} are."
        else:
            assert "make no sense" in problem


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lora_unet_x.lora_up.weight": (4, 4)}, "holds a LoRA, not an upscaler"),
        ({"decoder.conv_in.weight": (4, 4, 3, 3)}, "holds a VAE alone, not an upscaler"),
        ({"something.weight": (4,)}, "holds no upscaler that is known here: SwinIR, "),
        ({"body.0.weight": (8, 1, 3, 3), "body.1.weight": (8,), "body.2.weight": (4, 8, 3, 3)}, "turns 1 channels"),
        ({"body.0.weight": (8, 3, 3, 3), "body.1.weight": (8,), "body.999999999.weight": (8,), "body.2.weight": (8,)},
         "make no sense"),
        ({"model.0.weight": (8, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (4, 8, 3, 3), "model.999999.bias": (3,)},
         "make no sense"),
    ],
)  # fmt: skip
def test_other_files_are_refused_as_what_they_are(keys, said, folder):
    assert said in refused(folder, keys)


def test_damaged_files(folder):
    whole = compact(folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_bytes(b"<html>not found</html>")
    problems = {upscaler.name: upscaler.problem for upscaler in upscalers.all()}
    assert "cut short" in problems["cut"] and "empty" in problems["empty"] and "web page" in problems["page"]
    for name in ("cut", "empty", "page"):
        with pytest.raises(UnsupportedCheckpointError, match=re.escape(f"The upscaler {name!r}: {problems[name]}")):
            enlarge(noise(4, 4, 3), name, by=2)
    state = load_file(folder / "whole.safetensors")
    del state["body.2.bias"]
    save_file(state, folder / "lacking.safetensors")
    with pytest.raises(WeightsError, match=r"missing body\.2\.bias"):
        Enlarger("lacking")


def test_an_upscaler_that_is_deleted_while_in_use_goes_on(folder):
    path = compact(folder / "small.safetensors")
    enlarger = Enlarger("small")
    before = enlarger(noise(8, 8, 3), by=2)
    path.unlink()
    assert np.array_equal(np.asarray(enlarger(noise(8, 8, 3), by=2)), np.asarray(before))
    with pytest.raises(CheckpointNotFoundError):
        Enlarger("small")


def test_averages_are_preferred_and_wrappings_taken_off():
    keys = architectures.own_keys(["params.a", "params_ema.module.a", "params_ema.module.b"])
    assert keys == {"a": "params_ema.module.a", "b": "params_ema.module.b"}
    assert architectures.own_keys(["model.0.weight", "model.1.sub.0.x"])["model.0.weight"] == "model.0.weight"
    assert describe_file(upscalers.find(EMBEDDED).path).sizes == {"channels": 64, "convolutions": 16, "scale": 4}


# --- What is asked for, and said afterwards


def test_two_upscalers_are_mixed():
    picture = noise(6, 9, 4)
    told = []
    mixed = Upscale(Upscaling("Nearest", 2, second="Lanczos", visibility=0.25))(
        picture, lambda done, total: told.append((done, total))
    )
    first, second = (np.asarray(enlarge(picture, name, by=2), float) for name in ("Nearest", "Lanczos"))
    assert np.abs(np.asarray(mixed) - (0.75 * first + 0.25 * second)).max() <= 1
    assert told == [(0, 2), (1, 2), (1, 2), (2, 2)]


def test_a_size_is_covered_or_cropped_to():
    picture = noise(10, 20, 3)
    assert Upscale(Upscaling("Lanczos", to=(40, 40)))(picture).size == (80, 40)
    cropped = Upscale(Upscaling("Nearest", to=(40, 40), crop=True))(picture)
    assert np.array_equal(np.asarray(cropped), picture.repeat(4, 0).repeat(4, 1)[:, 20:60])
    assert Upscaling(to=(40, 40), crop=True).result_size((20, 10)) == (40, 40)


def test_none_leaves_the_picture_as_it_is():
    picture = noise(10, 20, 3)
    assert np.array_equal(np.asarray(Upscale(Upscaling("None", 4))(picture)), picture)


def test_the_record_is_kept_and_extended():
    before = Parameters("a house", seed=7, steps=20, extra={"Postprocess upscale by": "2", "Clip skip": "2"})
    said = Upscaling("lanczos", to=(40, 40), crop=True, second="nearest", visibility=0.3).recorded(before)
    assert said.extra == {
        "Clip skip": "2",
        "Postprocess upscale to": "40x40",
        "Postprocess crop to": "40x40",
        "Postprocess upscaler": "Lanczos",
        "Postprocess upscaler 2": "Nearest",
        "Postprocess upscaler 2 visibility": "0.3",
    }
    assert Parameters.from_text(said.to_text()) == said
    alone = Upscaling("R-ESRGAN AnimeVideo", 2.5).recorded(None)
    assert alone.extra == {"Postprocess upscale by": "2.5", "Postprocess upscaler": EMBEDDED}
    assert Parameters.from_text(alone.to_text()) == alone


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "either a factor"),
        ({"by": 2, "to": (3, 4)}, "either a factor"),
        ({"by": 2, "visibility": 1.5, "second": "Lanczos"}, "visibility = 1.5"),
        ({"by": 2, "visibility": 0.5}, "second upscaler"),
        ({"to": (1 << 20, 1 << 20)}, "million"),
    ],
)
def test_what_cannot_be_asked_for(wrong, said):
    with pytest.raises(InputError, match=said):
        Upscaling(**wrong)


def test_sizes_are_read():
    assert read_size("1024x768") == read_size("1024 X 768") == (1024, 768)
    for wrong in ("", "12", "x", "12x", "-1x5", "1.5x3", "0x5", "9999999999x1"):
        with pytest.raises(InputError):
            read_size(wrong)
