"""Arrays and pictures, latent previews, A1111's parameters and the files that carry them."""

import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import utils
from stable_diffusion.errors import InputError, PictureError
from utils import Parameters

ROOT = Path(utils.__file__).parent
A_PICTURE = np.linspace(0, 1, 8 * 6 * 3, dtype=np.float32).reshape(8, 6, 3)


# --- Arrays and pictures


def test_to_uint8_rounds_and_clips():
    values = np.array([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.5 / 255 + 1e-4, 1.0, 7.0, np.nan, np.inf, -np.inf])
    assert utils.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255, 0, 255, 0]


def test_to_picture_keeps_pixels_in_place():
    picture = utils.to_picture(A_PICTURE)
    assert (picture.mode, picture.size) == ("RGB", (6, 8))
    assert np.array_equal(np.asarray(picture), utils.to_uint8(A_PICTURE))
    assert np.array_equal(np.asarray(utils.to_picture(np.full((2, 2, 3), 9, np.uint8))), np.full((2, 2, 3), 9))


@pytest.mark.parametrize("shape", [(3,), (4, 4, 4), (1, 4, 4, 3), (0,)])
def test_to_picture_refuses_other_shapes(shape):
    with pytest.raises(PictureError, match="shape"):
        utils.to_picture(np.zeros(shape))


def test_a_grid_puts_pictures_row_by_row():
    shades = [Image.new("RGB", (4, 3), (i, i, i)) for i in (10, 20, 30)]
    sheet = utils.grid(shades)
    assert sheet.size == (8, 6)
    assert [sheet.getpixel(at)[0] for at in ((0, 0), (4, 0), (0, 3), (4, 3))] == [10, 20, 30, 0]
    assert utils.grid(shades, columns=9, gap=2).size == (3 * 4 + 2 * 2, 3)
    assert utils.grid([A_PICTURE, shades[0]], columns=1).size == (6, 16)


@pytest.mark.parametrize(("pictures", "columns"), [([], None), ([A_PICTURE], 0)])
def test_a_grid_of_nothing_is_refused(pictures, columns):
    with pytest.raises(InputError):
        utils.grid(pictures, columns)


# --- Latents


def test_latent_picture_uses_one_fixed_range():
    latents = np.zeros((2, 3, 4), np.float32)
    latents[..., 0], latents[..., 1], latents[..., 3] = -utils.LATENT_RANGE, utils.LATENT_RANGE, 99
    row = np.asarray(utils.latent_picture(latents, scale=2))
    assert row.shape == (4, 4 * 6 + 3 * 2)
    assert [int(row[0, c * 8]) for c in range(4)] == [0, 255, 128, 255]
    assert utils.latent_picture(latents, scale=2, columns=2).size == (14, 10)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "postcards-tiny"])
def test_approximate_rgb_is_the_linear_map(family):
    latents = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    factors, bias = map(np.asarray, utils.RGB_FACTORS[family])
    expected = np.rint(np.clip((latents @ factors + bias) / 2 + 0.5, 0, 1) * 255)
    assert np.abs(np.asarray(utils.approximate_rgb(latents, family, scale=1)) - expected).max() <= 1
    assert utils.approximate_rgb(latents, family, scale=8).size == (40, 24)


def test_approximate_rgb_takes_the_first_name_that_is_known():
    latents = np.ones((2, 2, 4), np.float32)
    both = utils.approximate_rgb(latents, ("postcards-tiny", "sd1"))
    assert both.tobytes() == utils.approximate_rgb(latents, "postcards-tiny").tobytes()
    assert utils.approximate_rgb(latents, ("mine", "sd1")).tobytes() == utils.approximate_rgb(latents, "sd1").tobytes()
    assert utils.approximate_rgb(latents, "mine") is None
    assert utils.approximate_rgb(np.ones((2, 2, 16)), "sd1") is None


def test_latents_that_are_not_one_picture_are_refused():
    with pytest.raises(InputError, match="h, w, C"):
        utils.latent_picture(np.zeros((1, 2, 2, 4)))


def test_broken_latents_are_shown_all_the_same():
    latents = np.array([[[np.nan, np.inf, -np.inf, 0]]])
    assert np.asarray(utils.latent_picture(latents, scale=1))[0, ::3].tolist() == [128, 255, 0, 128]
    assert utils.approximate_rgb(latents, "sd1") is not None


# --- Parameters

FULL = Parameters(
    prompt="a red house", negative="blurry", steps=20, sampler="DPM++ 2M", schedule="Karras", cfg=7.0, seed=123,
    width=512, height=768, model_hash="abcdef1234", model="name", strength=0.75,
)  # fmt: skip


def test_the_text_is_a1111s():
    assert FULL.to_text() == (
        "a red house\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768, "
        "Model hash: abcdef1234, Model: name, Denoising strength: 0.75"
    )
    assert Parameters.from_text(FULL.to_text()) == FULL


def test_keys_without_a_value_are_left_out():
    assert Parameters("a cat", steps=4, sampler="LCM", seed=0, width=8).to_text() == (
        "a cat\nSteps: 4, Sampler: LCM, Seed: 0"
    )
    assert Parameters("only a prompt").to_text() == "only a prompt"


@pytest.mark.parametrize("value", ["a, b", "C:\\models", "two\nlines", ' "quoted" ', "[1]", "", 'say "hi"'])
def test_values_that_would_be_cut_are_quoted(value):
    parameters = Parameters("x", steps=1, model="m", extra={"Note": value})
    text = parameters.to_text()
    assert len(text.split("\n")) == 2
    assert Parameters.from_text(text) == parameters
    assert ('Note: "' in text) == (value != 'say "hi"')


# What other programs write, as found in pictures that people share.
CLASSIC = """girl with an artist's beret, ((eyeshadow)), blue eyes: yes, detailed
Negative prompt: ugly, fat, (extra_limb), [blurry]
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""
HIRES = """masterpiece, 1girl,
Steps: 9 lives, a cat
 BREAK looking at viewer <lora:add_detail:0.8>
Negative prompt: (worst quality:1.4),
low quality,

Negative prompt: again
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 832x1216, \
Model hash: 0b76532e03, Model: illustrious, VAE hash: 235745af8d, Denoising strength: 0.35, Clip skip: 2, ENSD: 31337, \
Hires upscale: 1.5, Hires steps: 12, Hires upscaler: R-ESRGAN 4x+ Anime6B, Lora hashes: "add_detail: 7c6bad76eb54, \
x: 1", ADetailer prompt: "face, \\"smile\\", \\nSteps: 3", Version: v1.10.1-84-g828438b4"""
CIVITAI = """a fox
Steps: 25, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 832x1216, Created Date: 2024-06-01T12:00:00.000Z, \
Civitai resources: [{"type":"checkpoint","modelVersionId":128713,"modelName":"A, b: c"}], Civitai metadata: {}"""
DYNAMIC = """a red cat
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Version: v1.6.0
Template: a {red|blue} cat, sitting
Negative Template: bad"""


def test_reads_a1111s_classic_text():
    found = Parameters.from_text(CLASSIC)
    assert found.prompt == "girl with an artist's beret, ((eyeshadow)), blue eyes: yes, detailed"
    assert found.negative == "ugly, fat, (extra_limb), [blurry]"
    assert (found.steps, found.sampler, found.cfg, found.seed) == (20, "Euler a", 7.0, 965400086)
    assert (found.width, found.height, found.model_hash, found.extra) == (512, 512, "45dee52b", {})
    assert found.to_text() == CLASSIC
    assert Parameters.from_text(CLASSIC.replace("\n", "\r\n") + "\r\n") == found


def test_reads_many_lines_quotes_and_unknown_keys():
    found = Parameters.from_text(HIRES)
    assert found.prompt.endswith("Steps: 9 lives, a cat\n BREAK looking at viewer <lora:add_detail:0.8>")
    assert found.negative == "(worst quality:1.4),\nlow quality,\n\nNegative prompt: again"
    assert (found.steps, found.seed, found.strength, found.schedule) == (28, 4294967295, 0.35, "Karras")
    assert found.extra["Hires upscale"] == "1.5"
    assert found.extra["Lora hashes"] == "add_detail: 7c6bad76eb54, x: 1"
    assert found.extra["ADetailer prompt"] == 'face, "smile", \nSteps: 3'
    assert found.extra["Version"] == "v1.10.1-84-g828438b4"
    assert Parameters.from_text(found.to_text()) == found


def test_reads_civitais_bare_json():
    found = Parameters.from_text(CIVITAI)
    assert found.extra["Created Date"] == "2024-06-01T12:00:00.000Z"
    assert found.extra["Civitai resources"].endswith('"modelName":"A, b: c"}]')
    assert found.extra["Civitai metadata"] == "{}"
    assert Parameters.from_text(found.to_text()) == found


def test_reads_lines_behind_the_settings():
    found = Parameters.from_text(DYNAMIC)
    assert (found.prompt, found.seed) == ("a red cat", 5)
    assert found.extra == {"Version": "v1.6.0", "Template": "a {red|blue} cat, sitting", "Negative Template": "bad"}


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a cat: cute, dog: small, bird: red", "a cat, Seed: 5, Model: cute", "take\nSteps: many, Seed: 1"],
)
def test_a_text_without_settings_is_all_prompt(text):
    assert Parameters.from_text(text) == Parameters(prompt=text)


def test_settings_may_begin_with_another_key():
    found = Parameters.from_text("a cat\nSampler: Euler, Seed: 5, Size: 8x8")
    assert (found.prompt, found.sampler, found.seed, found.size) == ("a cat", "Euler", 5, "8x8")


def test_values_of_the_wrong_kind_are_kept_as_they_are():
    found = Parameters.from_text("x\nSteps: 5, CFG scale: much, Seed: 1.5, Size: big, Denoising strength: nan")
    assert (found.cfg, found.seed, found.size, found.strength) == (None, None, None, None)
    assert found.extra == {"CFG scale": "much", "Seed": "1.5", "Size": "big", "Denoising strength": "nan"}


LETTERS = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r")
PROMPTS = st.one_of(
    st.text(LETTERS, max_size=60),
    st.lists(
        st.sampled_from(
            [
                "Steps: 20, Sampler: x, Seed: 1",
                "Steps: 3",
                "Negative prompt:",
                "Negative prompt: no",
                "a, b: c",
                "",
                " ",
            ]
        ),
        max_size=5,
    ).map("\n".join),
)
VALUES = st.one_of(st.text(LETTERS, max_size=20), st.sampled_from(['"a"', "[1", "{}", ", Seed: 5", "\nSteps: 4", "\\"]))
NAMES = st.none() | VALUES.filter(bool)
REALS = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=400, deadline=None)
@given(
    st.builds(
        Parameters, prompt=PROMPTS, negative=PROMPTS, steps=st.integers(0, 10**6), sampler=NAMES, schedule=NAMES,
        cfg=REALS, seed=st.none() | st.integers(0, 2**64 - 1), model=NAMES, model_hash=NAMES, strength=REALS,
        width=st.just(8), height=st.integers(1, 99999),
        extra=st.dictionaries(st.sampled_from(["Clip skip", "Hires upscale", "A/B-c 2", "ENSD"]), VALUES),
    )
)  # fmt: skip
def test_any_parameters_survive_the_text(parameters):
    assert Parameters.from_text(parameters.to_text()) == parameters


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=80) | st.lists(st.sampled_from([*',:"[{}\\\n a', "Steps: 1", "\nNegative prompt:"])).map("".join)
)
@example("Steps:0\nSteps:0,0")
def test_any_text_is_read_and_settles(text):
    found = Parameters.from_text(text)
    assert Parameters.from_text(found.to_text()).to_text() == found.to_text()


def test_reading_a_hostile_text_is_quick():
    before = time.perf_counter()
    for piece in ("a:[,", ",", 'a:"x,', "a:{", "Steps: 1\n", "[" * 9 + "a:"):
        Parameters.from_text("Steps: 1, " + piece * 100_000)
        Parameters.from_text("Steps: 1, " + piece * 8_000)
    assert time.perf_counter() - before < 300  # a second or so; hours when it is quadratic


# --- Files


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
@pytest.mark.parametrize("prompt", ["plain", "café", "猫と🐈, smörgås\nNegative prompt: ha", "x" * 5000])
def test_parameters_travel_in_the_file(tmp_path, suffix, prompt):
    parameters = Parameters(prompt, "no", 20, "Euler", None, 7.5, 42, 6, 8, model="m")
    path = utils.save_picture(A_PICTURE, tmp_path / f"a{suffix}", parameters)
    assert utils.read_parameters(path) == parameters
    with Image.open(path) as picture:
        picture.load()
        assert picture.size == (6, 8)
        if suffix.lower() == ".png":
            assert np.array_equal(np.asarray(picture), utils.to_uint8(A_PICTURE))


def chunks(path):
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def test_png_text_is_latin_1_where_that_suffices_and_utf_8_else(tmp_path):
    plain = dict(chunks(utils.save_picture(A_PICTURE, tmp_path / "a.png", Parameters("café", steps=1))))
    assert plain[b"tEXt"] == "parameters\0café\nSteps: 1".encode("latin-1")
    wide = dict(chunks(utils.save_picture(A_PICTURE, tmp_path / "b.png", Parameters("猫", steps=1))))
    assert wide[b"iTXt"] == b"parameters\0\0\0\0\0" + "猫\nSteps: 1".encode()


def test_exif_user_comment_is_utf_16_big_endian(tmp_path):
    path = utils.save_picture(A_PICTURE, tmp_path / "a.jpg", Parameters("猫", steps=1))
    assert b"UNICODE\0" + "猫\nSteps: 1".encode("utf-16-be") in path.read_bytes()


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + CLASSIC.encode("utf-16-be"),
        b"UNICODE\0" + CLASSIC.encode("utf-16-le"),
        b"UNICODE\0" + CLASSIC.encode("utf-16"),
        b"ASCII\0\0\0" + CLASSIC.encode(),
        CLASSIC.encode(),
    ],
)
def test_reads_user_comments_of_every_custom(tmp_path, comment):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert utils.read_parameters(tmp_path / "a.jpg") == Parameters.from_text(CLASSIC)


def test_reads_png_text_that_stands_behind_the_pixels(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    body = b"tEXt" + b"parameters\0a cat\nSteps: 5"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert utils.read_parameters(tmp_path / "a.png") == Parameters("a cat", steps=5)


def test_a_picture_without_parameters_has_none(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp"):
        assert utils.read_parameters(utils.save_picture(A_PICTURE, tmp_path / name)) is None
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "another")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=info)
    assert utils.read_parameters(tmp_path / "b.png") is None


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "b.png").write_bytes(b"")
    whole = utils.save_picture(A_PICTURE, tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[:60])
    for name in ("a.png", "b.png", "c.png", "missing.png", "."):
        with pytest.raises(PictureError, match=r"cannot be read|not a PNG|no file"):
            utils.read_parameters(tmp_path / name)


def test_a_save_replaces_a_file_keeps_links_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    utils.save_picture(A_PICTURE, tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert Image.open(tmp_path / "real.png").size == (6, 8)
    utils.save_picture(A_PICTURE, tmp_path / "new" / "folder" / "a.png")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.png", "link.png", "real.png"]
    assert (tmp_path / "real.png").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, failure):
    def fail(descriptor):
        raise failure

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure)):
        utils.save_picture(A_PICTURE, tmp_path / "a.png")
    with pytest.raises(type(failure)):
        utils.save_new_picture(A_PICTURE, tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_other_kinds_of_file_are_refused(tmp_path, name):
    with pytest.raises(PictureError, match=r"\.webp"):
        utils.save_picture(A_PICTURE, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_device_or_folder_is_not_replaced(tmp_path):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(PictureError, match="ordinary file"):
            utils.save_picture(A_PICTURE, tmp_path / name)


def test_parameters_too_long_for_jpeg_are_refused_in_words(tmp_path):
    with pytest.raises(PictureError, match=r"a\.jpg"):
        utils.save_picture(A_PICTURE, tmp_path / "a.jpg", Parameters("x" * 40_000))


def test_half_a_surrogate_pair_does_not_cost_the_picture(tmp_path):
    for name in ("a.png", "a.jpg"):
        path = utils.save_picture(A_PICTURE, tmp_path / name, Parameters("bad \udce9", steps=1))
        assert utils.read_parameters(path) == Parameters("bad ?", steps=1)


def test_new_pictures_take_the_next_number(tmp_path):
    parameters = Parameters("x", seed=7)
    assert utils.save_new_picture(A_PICTURE, tmp_path, parameters).name == "00001-7.png"
    assert utils.save_new_picture(A_PICTURE, tmp_path, parameters).name == "00002-7.png"
    (tmp_path / "00041-1.jpg").touch()
    (tmp_path / "notes.txt").touch()
    assert utils.free_path(tmp_path, 9, ".webp").name == "00042-9.webp"
    assert utils.save_new_picture(A_PICTURE, tmp_path / "new").name == "00001.png"


@pytest.mark.parametrize("links", [True, False])
def test_a_name_taken_in_the_meantime_is_left_alone(tmp_path, monkeypatch, links):
    real = utils.free_path
    taken = iter([tmp_path / "00001-7.png"])
    (tmp_path / "00001-7.png").write_bytes(b"theirs")
    monkeypatch.setattr(utils, "free_path", lambda *a, **k: next(taken, None) or real(*a, **k))
    if not links:

        def refuse(source, target):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path = utils.save_new_picture(A_PICTURE, tmp_path, Parameters("x", steps=1, seed=7))
    assert path.name == "00002-7.png" and utils.read_parameters(path).seed == 7
    assert (tmp_path / "00001-7.png").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 2


def test_two_processes_never_take_each_others_names(tmp_path):
    code = (
        "import sys, numpy, utils\n"
        "parameters = utils.Parameters(sys.argv[2], steps=1, seed=1)\n"
        "for i in range(25): utils.save_new_picture(numpy.zeros((2, 2, 3)), sys.argv[1], parameters)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in ("first", "second")
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    prompts = [utils.read_parameters(path).prompt for path in tmp_path.iterdir()]
    assert sorted(prompts) == ["first"] * 25 + ["second"] * 25


def test_neither_mlx_nor_streamlit_is_needed():
    code = "import sys, utils, models; assert not {'mlx', 'mlx.core', 'streamlit', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
