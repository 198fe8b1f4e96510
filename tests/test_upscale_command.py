"""The command that enlarges pictures and folders of them: names, going on, and what happens to the rest."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import __main__ as program
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.upscaling import enlarging


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv) -> int:
    return program.main(["upscale", *map(str, argv)])


def picture(path: str, size: tuple[int, int] = (6, 4), said: Parameters | None = None) -> Path:
    values = np.random.default_rng(len(path)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return picture_files.save_picture(values, path, said)


def test_a_picture_keeps_its_record_and_says_more(here, capsys):
    picture("cat.jpg", said=Parameters("a cat", seed=7, steps=4))
    assert run("cat.jpg", "--by", 2, "--upscaler", "Lanczos") == 0
    (out,) = capsys.readouterr().out.splitlines()
    assert out == "outputs/upscaled/cat.png"
    found = picture_files.read_parameters(out)
    assert (found.prompt, found.seed) == ("a cat", 7)
    assert found.extra == {"Postprocess upscale by": "2", "Postprocess upscaler": "Lanczos"}
    assert Image.open(out).size == (12, 8)


def test_the_upscaler_that_comes_along_has_its_own_factor(here):
    picture("cat.png")
    assert run("cat.png", "--output", "big.webp", "--quiet") == 0
    assert Image.open("big.webp").size == (24, 16)


def test_a_folder_with_transparency_and_folders_inside(here, capsys):
    picture("in/a.png")
    picture("in/b/a.png")
    Image.new("RGBA", (3, 3), (1, 2, 3, 100)).save("in/c.png")
    Path("in/notes.txt").write_text("no picture")
    assert run("in", "--to", "9x6", "--crop", "--upscaler", "Nearest", "--output", "out") == 0
    assert capsys.readouterr().out.splitlines() == ["out/a.png", "out/c.png", "out/b/a.png"]
    assert Image.open("out/c.png").getpixel((0, 0)) == (1, 2, 3, 100)
    assert {Image.open(path).size for path in Path("out").rglob("*.png")} == {(9, 6)}


def test_the_same_command_goes_on_after_a_full_disk(here, capsys, monkeypatch):
    for name in "abc":
        picture(f"in/{name}.png")
    save, tries = picture_files.save_picture, []

    def full(*of, **more):
        tries.append(of)
        if len(tries) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "out/b.png")
        return save(*of, **more)

    monkeypatch.setattr(picture_files, "save_picture", full)
    command = ("in", "--by", 2, "--upscaler", "Nearest", "--output", "out/")
    assert run(*command) == 1
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    made = Path("out/a.png").stat().st_mtime_ns
    assert run(*command) == 0
    assert capsys.readouterr().out.splitlines() == ["out/a.png  (there already)", "out/b.png", "out/c.png"]
    assert Path("out/a.png").stat().st_mtime_ns == made and len(tries) == 4


def test_what_is_done_stays_when_it_is_interrupted(here, capsys, monkeypatch):
    for name in "ab":
        picture(f"in/{name}.png")
    once = enlarging.Upscale.__call__

    def interrupted(self, image, progress=None):
        if Path("out/a.png").exists():
            raise KeyboardInterrupt
        return once(self, image, progress)

    monkeypatch.setattr(enlarging.Upscale, "__call__", interrupted)
    assert run("in", "--upscaler", "Nearest", "--by", 2, "--output", "out/") == 130
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]


def test_nothing_is_overwritten_in_a_folder(here, capsys):
    source = picture("in/a.png")
    before = source.read_bytes()
    assert run("in", "--upscaler", "Nearest", "--by", 2, "--output", "in") == 0
    assert run("in/a.png", "--upscaler", "Nearest", "--by", 3, "--output", "in") == 0
    assert capsys.readouterr().out.splitlines() == ["in/a-2.png", "in/a-3.png"]
    assert source.read_bytes() == before


def test_pictures_that_share_a_name_both_get_one(here, capsys):
    for folder in "pq":
        picture(f"{folder}/a.png")
    command = ("p/a.png", "q/a.png", "--upscaler", "Nearest", "--by", 2, "--output", "out")
    assert run(*command) == 0
    assert run(*command) == 0
    names = ["out/a.png", "out/a-2.png"]
    assert capsys.readouterr().out.splitlines() == [*names, *(f"{name}  (there already)" for name in names)]


def test_one_broken_picture_does_not_stop_the_others(here, capsys):
    picture("in/a.png")
    Path("in/b.png").write_bytes(b"broken")
    picture("in/c.png")
    assert run("in", "--upscaler", "Nearest", "--by", 2, "--output", "out") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["out/a.png", "out/c.png"]
    assert "'in/b.png' is not a picture" in err and "1 of 3 pictures could not be enlarged" in err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ((), 2, "Name at least one picture"),
        (("nothing.png",), 2, "No picture file at 'nothing.png'"),
        (("empty",), 2, "holds no pictures"),
        (("a.png", "--upscaler", "Lancos"), 1, "Near it: Lanczos"),
        (("a.png", "--by", "0"), 2, "by = 0.0"),
        (("a.png", "--visibility", "0.5"), 2, "second upscaler"),
        (("a.png", "a.png", "--output", "b.png"), 2, "there are 2 pictures"),
        (("a.png", "--output", "b.txt"), 2, "should end in"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(argv, code, said, here, capsys):
    picture("a.png")
    Path("empty").mkdir()
    assert run(*argv) == code
    assert said in capsys.readouterr().err
    assert not list(Path().rglob("b.*"))


@pytest.mark.parametrize("argv", [("--by", "100"), ("--by", "2", "--to", "9x9"), ("--to", "9")])
def test_wrong_options_are_refused(argv, here, capsys):
    with pytest.raises(SystemExit) as exit:
        run("a.png", *argv)
    assert exit.value.code == 2


def test_upscalers_are_listed(here, capsys):
    assert run("--list") == 0
    out = capsys.readouterr().out
    assert out.startswith("None\nLanczos\n") and "realesr-animevideov3             x4 Compact\n" in out
