"""Blends: shares, ends that are the prompts' own pictures, what lies between; strips, GIFs and films; the command."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from stable_diffusion import Blend, StableDiffusion, morph
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx
from stable_diffusion.commands import running
from stable_diffusion.errors import InputError
from stable_diffusion.pictures import arrays
from stable_diffusion.record import film, picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request
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
        "text": Blend(DAY, NIGHT, 0.25), "seed": 7, "variation_seed": 9, "variation_strength": 0.25,
        "vary_all_draws": True,
    }  # fmt: skip
    assert frames[4].arguments == {"text": NIGHT, "seed": 9}


def test_of_one_seed_or_one_prompt_only_the_other_moves():
    assert [each.arguments for each in blend.frames(DAY, DAY, 2, seed=7, to_seed=9)] == [
        {"text": DAY, "seed": 7},
        {"text": DAY, "seed": 9},
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


@pytest.mark.parametrize("options", [{}, {"sampler": "euler_a"}, {"input_image": Image.new("RGB", (64, 64), "teal")}])
def test_each_station_is_its_own_plain_picture(sd, options):
    """Also where the sampler or the picture's encoding draws more noise: all of it turns."""
    stations = blend.stations([DAY, NIGHT, "a yellow tent"], [7, 8, 9])
    frames = blend.Walk(stations, 2, loop=True).frames()
    assert len(frames) == 3
    for frame, (text, seed) in zip(frames, ((DAY, 7), (NIGHT, 8), ("a yellow tent", 9)), strict=True):
        plain = list(sd.generate_latents(text, seed=seed, num_steps=4, width=64, height=64, **options))[-1].latents
        assert mx.array_equal(run(sd, frame, **options), plain)
    near = dataclasses.replace(blend.Walk(stations, 2).at(0.4999999), total=3)  # just before the second station
    assert (
        near.arguments["vary_all_draws"]
        and mx.abs(run(sd, near, **options) - run(sd, frames[1], **options)).max() < 1e-3
    )


def test_a_walk_passes_each_station_once_and_a_loop_closes():
    a, b, c = blend.stations([DAY, NIGHT, "c"], [1, 2, 3])
    there = blend.Walk((a, b, c), 5).frames()
    assert [frame.share for frame in there] == [0, 0.25, 0.5, 0.75, 0, 0.25, 0.5, 0.75, 1]
    assert [frame.index for frame in there] == list(range(9)) and {frame.total for frame in there} == {9}
    assert there[4].arguments == {"text": NIGHT, "seed": 2} and there[8].arguments == {"text": "c", "seed": 3}
    loop = blend.Walk((a, b, c), 5, loop=True).frames()
    assert [frame.arguments for frame in loop[:8]] == [frame.arguments for frame in there[:8]]
    assert len(loop) == 12 and loop[11].text == Blend("c", DAY, 0.75), "the first frame follows the last, undoubled"
    back = blend.Walk((a, b), 5, loop=True, strengths=(0.2, 0.7)).frames()
    assert [frame.arguments for frame in back[5:]] == [frame.arguments for frame in back[3:0:-1]]
    assert [frame.strength for frame in back[:5]] == pytest.approx([0.2, 0.325, 0.45, 0.575, 0.7])


@pytest.mark.parametrize(
    ("easing", "shares"),
    [("linear", [0, 0.25, 0.5, 0.75, 1]), ("in", [0, 0.0625, 0.25, 0.5625, 1]), ("out", [0, 0.4375, 0.75, 0.9375, 1]),
     ("in-out", [0, 0.15625, 0.5, 0.84375, 1])],
)  # fmt: skip
def test_easing_keeps_the_stations_in_their_places(easing, shares):
    walk = blend.Walk(blend.stations([DAY, NIGHT], [7]), 5, easing=easing)
    assert [frame.share for frame in walk.frames()] == shares


def test_one_frame_of_a_walk_lies_where_all_of_them_do():
    walk = blend.Walk(blend.stations([DAY, NIGHT, "c"], [7]), 5, strengths=(0, 0.8))
    for share, frame in zip(np.arange(9) / 8, walk.frames(), strict=True):
        assert walk.at(share).arguments == frame.arguments


def test_strengths_are_brought_to_whole_steps():
    for steps in (1, 3, 7, 20, 49, 150):
        for n in range(steps + 1):
            found = morph.whole_steps(n / steps, steps)
            assert int(steps * found) == n and abs(found - n / steps) < 1e-3
    assert [morph.whole_steps(s, 20) for s in (0.02, 0.03, 0.07, 1.0)] == [0.0, 0.05, 0.05, 1.0]


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


def test_a_webp_film_loops_and_keeps_the_frames_and_parameters(folder):
    parameters = Parameters("größer, \u732b", steps=3, extra={"Blend prompt": "y"})
    film.save(scale(), "a.webp", fps=5, parameters=parameters)
    with Image.open("a.webp") as found:
        assert (found.n_frames, found.info["loop"]) == (4, 0)
        for shown, meant in zip(ImageSequence.Iterator(found), scale(), strict=True):
            assert np.abs(np.asarray(shown.convert("RGB"), float) - np.asarray(meant, float)).mean() < 4
            assert found.info["duration"] == 200
    assert picture_files.read_parameters("a.webp") == parameters
    assert film.encoded(scale(), ".webp", 5, parameters) == Path("a.webp").read_bytes()


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
    assert {each.size for each in told} == {"64x64"} and [each.seed for each in told] == [7, 7, 7, 8]
    said = [{key: each.extra[key] for key in each.extra if key.startswith(("Blend", "Var"))} for each in told]
    assert said == [
        {"Blend prompt": NIGHT, "Blend frames": "3", "Blend fps": "8", "Blend seed": "8"},
        {},
        {
            "Blend prompt": NIGHT, "Blend share": "0.5", "Variation seed": "8", "Variation seed strength": "0.5",
            "Variation of all noise": "True",
        },
        {},
    ]  # fmt: skip


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


# --- Walks, pictures to begin from, and what was interrupted


def photo(size=(64, 64)):
    Image.linear_gradient("L").resize(size).convert("RGB").save("photo.png")


def test_a_walk_from_a_picture_with_a_strength_per_frame(folder):
    photo()
    start = ("--image", "photo.png", "--strength", 0, "--to-strength", 1)
    argv = ("blend", DAY, NIGHT, "--frames", 3, *start, "--steps", 4, *FEW[2:])
    assert paint(*argv, "--keep-frames", "--output", "b.png") == 0
    said = [picture_files.read_parameters(f"b-{i}.png") for i in (1, 2, 3)]
    assert [each.strength for each in said] == [0, 0.5, 1] and said[1].extra["Input picture"] == "photo.png"
    assert np.array_equal(pixels("b-1.png"), pixels("photo.png")), "strength 0 keeps the picture"
    assert np.abs(pixels("b-3.png") - pixels("photo.png")).mean() > 10
    paint("img2img", "photo.png", NIGHT, "--strength", 1, "--steps", 4, *FEW[2:], "--output", "plain.png")
    assert np.array_equal(pixels("plain.png"), pixels("b-3.png"))
    assert paint("again", "b.png", "--output", "again.png", "--quiet") == 0
    assert np.array_equal(pixels("again.png"), pixels("b.png"))
    assert paint("again", "b-2.png", "--output", "again-2.png", "--quiet") == 0
    assert np.array_equal(pixels("again-2.png"), pixels("b-2.png"))


def test_a_loop_through_three_stations_again(folder, capsys):
    argv = (
        "blend",
        DAY,
        NIGHT,
        'a, "b"',
        "--seeds",
        "7,8,9",
        "--frames",
        2,
        "--loop",
        "--easing",
        "in",
        *FEW[:4],
        "--quiet",
    )
    assert paint(*argv, "--height", 64, "--output", "b.webp") == 0
    said = picture_files.read_parameters("b.webp")
    assert {key: said.extra[key] for key in said.extra if key.startswith("Blend")} == {
        "Blend prompts": f'["{NIGHT}", "a, \\"b\\""]', "Blend seeds": "8, 9", "Blend frames": "2", "Blend fps": "8",
        "Blend loop": "True", "Blend easing": "in",
    }  # fmt: skip
    with Image.open("b.webp") as found:
        assert found.n_frames == 3
    assert paint("again", "b.webp") == 0
    assert "The same picture" in capsys.readouterr().err
    assert Path("outputs/b-again.webp").read_bytes() == Path("b.webp").read_bytes()


def test_what_was_interrupted_goes_on_with_the_same_command(folder, monkeypatch, capsys):
    argv = ("blend", DAY, NIGHT, "--to-seed", 8, "--frames", 4, *FEW)
    painted = []
    run_one = running.Painter.run

    def stopping(self, *arguments):
        if len(painted) == 2:
            raise KeyboardInterrupt
        painted.append(arguments)
        return run_one(self, *arguments)

    monkeypatch.setattr(running.Painter, "run", stopping)
    for output in ("frames/", "a.gif"):
        painted.clear()
        paint(*argv, "--output", output)
        assert len(painted) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["a-1.png", "a-2.png", "frames"], "none is lost"
    before = Path("frames/00001-7.png").stat().st_mtime_ns
    painted.clear()
    assert paint(*argv, "--output", "frames/") in (0, 130) and len(painted) == 2
    capsys.readouterr()
    monkeypatch.setattr(running.Painter, "run", run_one)
    assert paint(*argv, "--output", "frames/") == 0
    assert len(capsys.readouterr().out.split()) == len(list(Path("frames").iterdir())) == 4
    assert Path("frames/00001-7.png").stat().st_mtime_ns == before
    assert paint(*argv, "--output", "a.gif", "--keep-frames") == 0
    assert np.array_equal(pixels("a-3.png"), pixels("frames/00003-7.png")) and Image.open("a.gif").n_frames == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((DAY, "--seeds", "1"), "needs an end"),
        ((DAY, DAY, "--seed", 1), "nothing would change"),
        ((DAY, NIGHT, "c", "--seeds", "1,2"), "3 prompts and 2 seeds"),
        ((DAY, NIGHT, "c", "--to-seed", 1), "--seeds N,N"),
        ((DAY, NIGHT, "--seeds", "1,2", "--seed", 1), "leave out --seed"),
        ((DAY, NIGHT, "--to-strength", 0.5), "--image"),
        ((DAY, NIGHT, "--image", "wide.png", "--width", 64, "--height", 64), "another shape"),
        ((DAY, NIGHT, "--image", "none.png"), "none.png"),
        ((DAY, NIGHT, "--frames", 9999, "--loop"), "10000 are the most"),
        ((DAY, "b AND c", "--frames", 3), "AND"),
        ((DAY, "(c:1" + "0" * 10 + ")", "--frames", 3), "weight"),
    ],
)
def test_what_no_walk_can_do_is_said_before_anything_is_painted(folder, capsys, argv, said):
    Image.new("RGB", (120, 60)).save("wide.png")
    assert paint("blend", *argv, "--output", "frames/", "--quiet") == 2
    assert said in capsys.readouterr().err and not list(folder.rglob("frames/*"))


def test_texts_too_long_are_refused_before_anything_is_painted():
    with pytest.raises(InputError, match="more than 20000: shorten it"):
        morph.plan(Request(NIGHT, steps=1, seed=1), ["red house, " * 9100, NIGHT], n_frames=3)
