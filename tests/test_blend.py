"""Blends: shares, ends that are the prompts' own pictures, what lies between; strips, GIFs and films; the command."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from stable_diffusion import Blend, StableDiffusion
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError
from stable_diffusion.pictures import arrays
from stable_diffusion.record import film, picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.text import blend

DAY, NIGHT = "a red house on green hills by day", "a blue sailboat on the sea at night"
FEW = ("--steps", 2, "--width", 64, "--height", 64, "--seed", 7, "--quiet")
has_ffmpeg = pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is absent")


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion(float16=False)


def run(sd, frame, **options):
    """The latents that a short generation of a frame ends with."""
    for step in sd.generate_latents(**frame.arguments, **{"num_steps": 4, "width": 64, "height": 64, **options}):
        mx.eval(step.latents)
    return step.latents


def paint(*argv):
    return program.main([str(each) for each in argv])


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- The frames


def test_frames_lie_at_even_shares_from_end_to_end():
    frames = list(blend.frames(DAY, NIGHT, 5, seed=7, to_seed=9))
    assert [(each.index, each.total, each.share) for each in frames] == [(i, 5, i / 4) for i in range(5)]
    assert frames[0].arguments == {"text": DAY, "seed": 7}
    assert frames[1].arguments == {
        "text": Blend(DAY, NIGHT, 0.25), "seed": 7, "variation_seed": 9, "variation_strength": 0.25
    }  # fmt: skip
    assert frames[4].arguments == {"text": NIGHT, "seed": 7, "variation_seed": 9, "variation_strength": 1.0}


def test_of_one_seed_or_one_prompt_only_the_other_moves():
    assert [each.arguments for each in blend.frames(DAY, DAY, 2, seed=7, to_seed=9)] == [
        {"text": DAY, "seed": 7},
        {"text": DAY, "seed": 7, "variation_seed": 9, "variation_strength": 1.0},
    ]
    assert [each.arguments for each in blend.frames(DAY, NIGHT, 2, seed=7)] == [
        {"text": DAY, "seed": 7}, {"text": NIGHT, "seed": 7}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [(DAY, NIGHT, 1, 7), (DAY, NIGHT, 2.5, 7), (DAY, 3, 2, 7), (DAY, NIGHT, 2, -1), (DAY, NIGHT, 2, 7, -1)]
)
def test_what_makes_no_sense_is_refused_at_the_call(arguments):
    with pytest.raises(InputError, match="should be"):
        blend.frames(*arguments)


def test_the_ends_are_the_prompts_own_pictures(sd):
    first, _, last = blend.frames(DAY, NIGHT, 3, seed=7, to_seed=8)
    plain = {"num_steps": 4, "width": 64, "height": 64}
    assert mx.array_equal(run(sd, first), list(sd.generate_latents(DAY, seed=7, **plain))[-1].latents)
    assert mx.array_equal(run(sd, last), list(sd.generate_latents(NIGHT, seed=8, **plain))[-1].latents)


def test_frames_lead_from_the_start_to_the_end(sd):
    pictures = [np.array(run(sd, frame, num_steps=8)) for frame in blend.frames(DAY, NIGHT, 5, seed=7)]
    to_end = [np.abs(picture - pictures[-1]).mean() for picture in pictures]
    from_start = [np.abs(picture - pictures[0]).mean() for picture in pictures]
    # Between pictures that have little in common the way's last part turns as much as it leads on: two in a hundred.
    assert from_start == pytest.approx(sorted(from_start), rel=0.02) and from_start[1] < from_start[-1] * 0.98
    # The first steps away from the start go to its side as much as to the end.
    assert to_end[1:] == sorted(to_end[1:], reverse=True) and to_end[0] > to_end[2]


# --- Strips and films


def scale(n=4, size=(40, 24)):
    """Frames from black to red, with a gradient across."""
    ramp = np.linspace(0, 1, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    return [arrays.to_picture(ramp * [i / (n - 1), 0.2, 0.5]) for i in range(n)]


def test_a_strip_stands_side_by_side(folder):
    film.save(scale(), "a.png", parameters=Parameters("x", steps=3))
    strip = Image.open("a.png")
    assert strip.size == (160, 24)
    for i, frame in enumerate(scale()):
        assert strip.crop((40 * i, 0, 40 * i + 40, 24)).tobytes() == frame.tobytes()
    assert picture_files.read_parameters("a.png").steps == 3


def test_a_gif_loops_and_keeps_colours_and_parameters(folder):
    parameters = Parameters("größer, \u732b", steps=3, extra={"Blend prompt": "y"})
    film.save(scale(), "a.gif", fps=5, parameters=parameters)
    with Image.open("a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (4, 0, 200)
        for shown, meant in zip(ImageSequence.Iterator(gif), scale(), strict=True):
            difference = np.asarray(shown.convert("RGB"), float) - np.asarray(meant, float)
            assert np.sqrt((difference**2).mean()) < 6
    assert picture_files.read_parameters("a.gif") == parameters


@has_ffmpeg
def test_an_mp4_has_the_frames_at_their_times(folder):
    import imageio_ffmpeg

    film.save(scale(6), "a.mp4", fps=5)
    frames = imageio_ffmpeg.read_frames("a.mp4")
    told = next(frames)
    shown = [np.frombuffer(each, np.uint8).reshape(24, 40, 3).astype(float) for each in frames]
    assert (told["size"], told["fps"], told["codec"]) == ((40, 24), 5.0, "h264") and "yuv420p" in told["pix_fmt"]
    assert len(shown) == 6
    for seen, meant in zip(shown, scale(6), strict=True):
        assert np.abs(seen - np.asarray(meant, float)).mean() < 8
    assert not list(Path().glob(".*"))
    assert film.read_parameters("a.mp4") is None


@has_ffmpeg
def test_an_mp4_carries_its_parameters(folder, capsys):
    parameters = Parameters("größer, \u732b; a=b # c \\\nNegative prompt: x", steps=3, extra={"Blend prompt": "y"})
    film.save(scale(), "a.mp4", parameters=parameters)
    assert film.read_parameters("a.mp4") == parameters
    assert program.main(["info", "a.mp4"]) == 0 and "größer" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\0\0\0\1moov", b"\0\0\0\x10moov\0\0\0\xffudta", b"\0" * 64])
def test_an_mp4_of_nothing_says_nothing(folder, content, capsys):
    Path("a.mp4").write_bytes(content)
    assert film.read_parameters("a.mp4") is None
    assert program.main(["info", "a.mp4"]) == 2 and "no parameters" in capsys.readouterr().err
    assert program.main(["info", "none.mp4"]) == 2 and "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("fps", [0, -1, 51, float("nan")])
def test_a_pace_that_no_film_has_is_refused(folder, fps):
    with pytest.raises(InputError, match="fps = "):
        film.save(scale(), "a.gif", fps=fps)


def test_without_the_package_an_mp4_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="pip install imageio-ffmpeg"):
        film.save(scale(), "a.mp4")
    assert paint("blend", "x", "y", "--output", "a.mp4") == 2  # before a model is loaded
    assert "pip install imageio-ffmpeg" in capsys.readouterr().err and not list(folder.iterdir())


@has_ffmpeg
def test_what_ffmpeg_cannot_do_leaves_nothing(folder, monkeypatch):
    import imageio_ffmpeg

    def broken(*args, **options):
        yield
        raise OSError("no such encoder")

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", broken)
    with pytest.raises(film.PictureError, match="no such encoder"):
        film.save(scale(), "a.mp4")
    assert not list(folder.iterdir())


# --- The command


def test_a_strip_with_its_frames_and_what_they_say(folder, capsys):
    assert paint("blend", DAY, NIGHT, "--frames", 3, "--to-seed", 8, "--keep-frames", "--output", "b.png", *FEW) == 0
    assert capsys.readouterr().out.split() == ["b-1.png", "b-2.png", "b-3.png", "b.png"]
    strip, frames = pixels("b.png"), [pixels(f"b-{i}.png") for i in (1, 2, 3)]
    assert np.array_equal(strip, np.concatenate(frames, axis=1))
    assert np.abs(frames[0] - frames[2]).mean() > 10
    told = [picture_files.read_parameters(name) for name in ("b.png", "b-1.png", "b-2.png", "b-3.png")]
    assert [each.prompt for each in told] == [DAY, DAY, DAY, NIGHT]
    assert {each.size for each in told} == {"64x64"} and {each.seed for each in told} == {7}
    said = [{key: each.extra[key] for key in each.extra if key.startswith(("Blend", "Var"))} for each in told]
    assert said == [
        {"Blend prompt": NIGHT, "Blend frames": "3", "Blend fps": "8", "Blend seed": "8"},
        {},
        {"Blend prompt": NIGHT, "Blend share": "0.5", "Variation seed": "8", "Variation seed strength": "0.5"},
        {"Variation seed": "8", "Variation seed strength": "1"},
    ]


def test_one_picture_of_the_way(folder):
    paint("blend", DAY, NIGHT, "--frames", 3, "--output", "frames/", *FEW)
    assert paint("blend", DAY, NIGHT, "--share", 0.5, "--output", "one.png", *FEW) == 0
    assert sorted(path.name for path in Path("frames").iterdir()) == ["00001-7.png", "00002-7.png", "00003-7.png"]
    assert np.array_equal(pixels("one.png"), pixels("frames/00002-7.png"))


def test_without_output_the_strip_goes_to_outputs(folder, capsys):
    assert paint("blend", DAY, "--to-seed", 8, "--frames", 2, *FEW) == 0
    (path,) = Path("outputs").rglob("*.png")
    assert capsys.readouterr().out.strip() == str(path) and Image.open(path).size == (128, 64)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("x",), "--to-seed"),
        (("x", "y", "--output", "a.tif"), ".mp4"),
        (("x", "y AND z", "--frames", 3, "--output", "a.png", *FEW), "AND"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_painted(folder, capsys, argv, said):
    assert paint("blend", *argv) == 2
    assert said in capsys.readouterr().err and not list(folder.iterdir())
