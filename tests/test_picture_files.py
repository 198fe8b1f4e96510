"""Picture files: written whole, and read back with their parameters."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from stable_diffusion.errors import PictureError
from stable_diffusion.pictures import arrays
from stable_diffusion.record import long, picture_files
from stable_diffusion.record.parameters import Parameters
from tests.test_parameters import CLASSIC

ROOT = Path(__file__).resolve().parents[1]
A_PICTURE = np.linspace(0, 1, 8 * 6 * 3, dtype=np.float32).reshape(8, 6, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
@pytest.mark.parametrize("prompt", ["plain", "café", "猫と🐈, smörgås\nNegative prompt: ha", "x" * 5000])
def test_parameters_travel_in_the_file(tmp_path, suffix, prompt):
    parameters = Parameters(prompt, "no", 20, "Euler", None, 7.5, 42, 6, 8, model="m")
    path = picture_files.save_picture(A_PICTURE, tmp_path / f"a{suffix}", parameters)
    assert picture_files.read_parameters(path) == parameters
    with Image.open(path) as picture:
        picture.load()
        assert picture.size == (6, 8)
        if suffix.lower() == ".png":
            assert np.array_equal(np.asarray(picture), arrays.to_uint8(A_PICTURE))


def chunks(path):
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def test_png_text_is_latin_1_where_that_suffices_and_utf_8_else(tmp_path):
    plain = dict(chunks(picture_files.save_picture(A_PICTURE, tmp_path / "a.png", Parameters("café", steps=1))))
    assert plain[b"tEXt"] == "parameters\0café\nSteps: 1".encode("latin-1")
    wide = dict(chunks(picture_files.save_picture(A_PICTURE, tmp_path / "b.png", Parameters("猫", steps=1))))
    assert wide[b"iTXt"] == b"parameters\0\0\0\0\0" + "猫\nSteps: 1".encode()


def test_exif_user_comment_is_utf_16_big_endian(tmp_path):
    path = picture_files.save_picture(A_PICTURE, tmp_path / "a.jpg", Parameters("猫", steps=1))
    assert b"UNICODE\0" + "猫\nSteps: 1".encode("utf-16-be") in path.read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_the_user_comment_has_the_type_that_exif_asks_for(tmp_path, suffix):
    path = picture_files.save_picture(A_PICTURE, tmp_path / f"a{suffix}", Parameters("猫", steps=1))
    comment = b"UNICODE\0" + "猫\nSteps: 1".encode("utf-16-be")
    undefined = 7
    assert struct.pack(">HHI", 0x9286, undefined, len(comment)) in path.read_bytes()
    with Image.open(path) as picture:
        assert picture.getexif().get_ifd(0x8769) == {0x9286: comment}, "Pillow reads it too"


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
    assert picture_files.read_parameters(tmp_path / "a.jpg") == Parameters.from_text(CLASSIC)


def test_reads_png_text_that_stands_behind_the_pixels(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    body = b"tEXt" + b"parameters\0a cat\nSteps: 5"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert picture_files.read_parameters(tmp_path / "a.png") == Parameters("a cat", steps=5)


def test_a_picture_without_parameters_has_none(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp"):
        assert picture_files.read_parameters(picture_files.save_picture(A_PICTURE, tmp_path / name)) is None
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "another")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=info)
    assert picture_files.read_parameters(tmp_path / "b.png") is None


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "b.png").write_bytes(b"")
    whole = picture_files.save_picture(A_PICTURE, tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[:60])
    for name in ("a.png", "b.png", "c.png", "missing.png", "."):
        with pytest.raises(PictureError, match=r"cannot be read|not a PNG|no file"):
            picture_files.read_parameters(tmp_path / name)


def test_a_save_replaces_a_file_keeps_links_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    picture_files.save_picture(A_PICTURE, tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert Image.open(tmp_path / "real.png").size == (6, 8)
    picture_files.save_picture(A_PICTURE, tmp_path / "new" / "folder" / "a.png")
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
        picture_files.save_picture(A_PICTURE, tmp_path / "a.png")
    with pytest.raises(type(failure)):
        picture_files.save_new_picture(A_PICTURE, tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_other_kinds_of_file_are_refused(tmp_path, name):
    with pytest.raises(PictureError, match=r"\.webp"):
        picture_files.save_picture(A_PICTURE, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_device_or_folder_is_not_replaced(tmp_path):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(PictureError, match="ordinary file"):
            picture_files.save_picture(A_PICTURE, tmp_path / name)


LONG = [
    Parameters("x" * 40_000, "no", 20, "Euler", seed=5),
    Parameters("a mill", "猫 " * 30_000, 20, "Euler", seed=5, model="m"),
    Parameters("a, " * 15_000, "b" * 30_000, 20, extra={"Template": '"quoted", ' * 3_000, "Clip skip": "2"}),
    Parameters("a", steps=1, extra={f"Key {i}": "1" for i in range(9_000)}),
]


@pytest.mark.parametrize("parameters", LONG)
def test_a_record_too_long_for_jpeg_is_shortened_there_and_whole_beside_it(tmp_path, parameters):
    with pytest.warns(UserWarning, match=r"'a\.jpg' was made is too long .* in full in 'a\.txt'"):
        path = picture_files.save_picture(A_PICTURE, tmp_path / "a.jpg", parameters)
    assert (tmp_path / "a.txt").read_text() == parameters.to_text()
    assert picture_files.read_parameters(path) == parameters, "from the text file"
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    short = picture_files.read_parameters(path)
    assert "Shortened" in short.extra and short.steps == parameters.steps and short.model == parameters.model
    assert parameters.prompt.startswith(short.prompt) and parameters.negative.startswith(short.negative)
    assert len(short.to_text()) > 15_000 or len(short.prompt) == len(parameters.prompt)
    with pytest.warns(UserWarning):
        new = picture_files.save_new_picture(A_PICTURE, tmp_path / "new", parameters, ".jpg")
    assert picture_files.read_parameters(new) == parameters
    assert picture_files.read_parameters(io.BytesIO(picture_files.encoded(A_PICTURE, ".jpg", parameters))) == short


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_other_formats_hold_any_record(tmp_path, suffix, recwarn):
    path = picture_files.save_picture(A_PICTURE, tmp_path / f"a{suffix}", LONG[1])
    assert picture_files.read_parameters(path) == LONG[1] and not recwarn.list
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_longest_record_that_a_jpeg_holds_is_not_shortened(tmp_path, recwarn):
    rest = len(Parameters("", steps=1).to_text())
    most = Parameters("x" * (long.MAX_BYTES // 2 - rest), steps=1)
    assert picture_files.read_parameters(picture_files.save_picture(A_PICTURE, tmp_path / "a.jpg", most)) == most
    assert not recwarn.list and len(list(tmp_path.iterdir())) == 1


def test_a_caption_next_to_a_jpeg_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("a caption to train with")
    with pytest.warns(UserWarning, match="nowhere in full"):
        path = picture_files.save_picture(A_PICTURE, tmp_path / "a.jpg", LONG[0])
    assert (tmp_path / "a.txt").read_text() == "a caption to train with"
    assert picture_files.read_parameters(path).prompt.startswith("xxx")


def test_half_a_surrogate_pair_does_not_cost_the_picture(tmp_path):
    for name in ("a.png", "a.jpg"):
        path = picture_files.save_picture(A_PICTURE, tmp_path / name, Parameters("bad \udce9", steps=1))
        assert picture_files.read_parameters(path) == Parameters("bad ?", steps=1)


def test_new_pictures_take_the_next_number(tmp_path):
    parameters = Parameters("x", seed=7)
    assert picture_files.save_new_picture(A_PICTURE, tmp_path, parameters).name == "00001-7.png"
    assert picture_files.save_new_picture(A_PICTURE, tmp_path, parameters).name == "00002-7.png"
    (tmp_path / "00041-1.jpg").touch()
    (tmp_path / "notes.txt").touch()
    assert picture_files.free_path(tmp_path, 9, ".webp").name == "00042-9.webp"
    assert picture_files.save_new_picture(A_PICTURE, tmp_path / "new").name == "00001.png"


@pytest.mark.parametrize("links", [True, False])
def test_a_name_taken_in_the_meantime_is_left_alone(tmp_path, monkeypatch, links):
    real = picture_files.free_path
    taken = iter([tmp_path / "00001-7.png"])
    (tmp_path / "00001-7.png").write_bytes(b"theirs")
    monkeypatch.setattr(picture_files, "free_path", lambda *a, **k: next(taken, None) or real(*a, **k))
    if not links:

        def refuse(source, target):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path = picture_files.save_new_picture(A_PICTURE, tmp_path, Parameters("x", steps=1, seed=7))
    assert path.name == "00002-7.png" and picture_files.read_parameters(path).seed == 7
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
    prompts = [picture_files.read_parameters(path).prompt for path in tmp_path.iterdir()]
    assert sorted(prompts) == ["first"] * 25 + ["second"] * 25


def test_neither_mlx_nor_streamlit_is_needed():
    code = "import sys, utils, models; assert not {'mlx', 'mlx.core', 'streamlit', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_new_names_without_a_seed_count_up_too(tmp_path):
    names = [picture_files.save_new_picture(np.zeros((2, 2, 3)), tmp_path).name for _ in range(2)]
    assert names == ["00001.png", "00002.png"]
