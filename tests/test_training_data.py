"""Data sets by number: painted postcards without end, and a folder of one's own."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stable_diffusion.errors import InputError
from stable_diffusion.training import data
from stable_diffusion.training.data import PictureFolder, Postcards, open_data
from stable_diffusion.training.postcards.painter import is_held_out


def put(folder, name: str, colour: str = "red", size: tuple[int, int] = (40, 30), text: str | None = None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def put_rows(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


# --- postcards ---


def test_an_example_depends_on_seed_and_index_alone():
    found = Postcards(32, seed=7)
    picture, text = found.example(1234)
    assert (picture.shape, picture.dtype) == ((32, 32, 3), np.uint8)
    found.example(3)
    again, same = Postcards(32, seed=7).example(1234)
    assert np.array_equal(picture, again) and text == same
    assert not np.array_equal(picture, Postcards(32, seed=8).example(1234)[0])
    assert not np.array_equal(picture, found.example(1235)[0])


def test_a_batch_is_its_examples():
    found = Postcards(24)
    pictures, texts = found.batch([5, 2, 5])
    assert (pictures.shape, pictures.dtype) == ((3, 24, 24, 3), np.uint8)
    for i, index in enumerate([5, 2, 5]):
        picture, text = found.example(index)
        assert np.array_equal(pictures[i], picture) and texts[i] == text


@pytest.mark.parametrize("held_out", [False, True])
def test_training_never_paints_what_is_held_out(monkeypatch, held_out):
    painted = []
    monkeypatch.setattr(data, "paint", lambda card, size: painted.append(card) or Image.new("RGB", (size, size)))
    Postcards(8, held_out=held_out).batch(range(600))
    assert len(painted) == 600 and all(is_held_out(card) == held_out for card in painted)


# --- folders ---


def test_captions_beside_the_pictures(tmp_path):
    put(tmp_path, "b.png", "blue", text="a blue\n  picture ")
    put(tmp_path, "a.JPG", "red", text="\ufeffa red picture")
    put(tmp_path, "deep/c.webp", "lime", text="a green picture")
    found = PictureFolder(tmp_path, 16)
    assert len(found) == 3
    pictures, texts = found.batch(range(4))
    assert texts == ["a red picture", "a blue picture", "a green picture", "a red picture"]
    assert pictures.shape == (4, 16, 16, 3)
    assert [int(picture[8, 8].argmax()) for picture in pictures] == [0, 2, 1, 0]


def test_captions_in_one_file(tmp_path):
    put(tmp_path, "one.png", "red")
    put(tmp_path, "in/two.png", "blue")
    put_rows(
        tmp_path, {"file_name": "one.png", "text": "the first"}, {"file_name": "in/two.png", "text": "zwei \u2028 é"}
    )
    assert sorted(PictureFolder(tmp_path, 8).captions) == ["the first", "zwei é"]


def test_a_line_goes_before_a_file_beside(tmp_path):
    put(tmp_path, "one.png", text="beside")
    put_rows(tmp_path, {"file_name": "one.png", "text": "of the line", "more": 1})
    assert PictureFolder(tmp_path, 8).captions == ["of the line"]


def test_the_middle_is_cropped(tmp_path):
    array = np.zeros((20, 60, 3), np.uint8)
    array[:, 20:40] = (0, 255, 0)
    Image.fromarray(array).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("wide")
    assert (PictureFolder(tmp_path, 20).example(0)[0] == (0, 255, 0)).all()


def test_bad_pictures_are_named_once_and_passed_over(tmp_path):
    put(tmp_path, "good.png", text="good")
    put(tmp_path, "silent.png")
    put(tmp_path, "blank.png", text=" \n")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("broken")
    put(tmp_path, "odd.png")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff")
    put_rows(tmp_path, {"file_name": "gone.png", "text": "gone"})
    with pytest.warns(UserWarning) as caught:
        found = PictureFolder(tmp_path, 8)
    assert found.captions == ["good"]
    assert len(caught) == 1
    message = str(caught[0].message)
    for words in ("broken.jpg (cannot be opened)", "silent.png (no caption)", "blank.png (no caption)",
                  "gone.png (no such file)", "odd.png (odd.txt is not UTF-8 text)"):  # fmt: skip
        assert words in message
    assert "good.png" not in message


def test_a_sound_folder_warns_of_nothing(tmp_path):
    put(tmp_path, "a.png", text="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PictureFolder(tmp_path, 8)


def test_an_empty_folder_says_what_is_wanted(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.jsonl.*file_name"):
        PictureFolder(tmp_path, 8)
    put(tmp_path, "silent.png")
    with pytest.raises(InputError, match=r"silent\.png \(no caption\)"):
        PictureFolder(tmp_path, 8)


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "3", '"text"', '{"file_name": "a.png"}', '{"file_name": 3, "text": "x"}', "null", "[" * 100_000],
)
def test_a_bad_line_is_quoted_with_its_number(tmp_path, line):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n\n' + line)
    with pytest.raises(InputError, match="Line 3 "):
        PictureFolder(tmp_path, 8)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_a_line_stays_in_its_folder(tmp_path, name):
    put_rows(tmp_path, {"file_name": name, "text": "x"})
    with pytest.raises(InputError, match="outside"):
        PictureFolder(tmp_path, 8)


# --- by name ---


def test_opening_by_name(tmp_path):
    put(tmp_path, "a.png", text="a")
    assert isinstance(open_data("postcards", 8), Postcards)
    assert open_data("postcards", 8, seed=3).example(0)[1] == Postcards(8, 3).example(0)[1]
    assert isinstance(open_data(tmp_path, 8), PictureFolder)
    assert isinstance(open_data(str(tmp_path), 8), PictureFolder)
    with pytest.raises(InputError, match=r"'postcard'.*'postcards'.*folder"):
        open_data("postcard", 8)


@pytest.mark.parametrize("size", [0, 7, -8, 4096, 8.0, "8", None, True])
def test_sizes_that_make_no_sense(size, tmp_path):
    put(tmp_path, "a.png", text="a")
    for what in ("postcards", tmp_path):
        with pytest.raises(InputError, match=repr(size)):
            open_data(what, size)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(8, 70), width=st.integers(1, 90), height=st.integers(1, 90),
    mode=st.sampled_from(["RGB", "RGBA", "L", "P", "1", "CMYK"]),
    seed=st.integers(0, 2**31), index=st.integers(0, 2**40),
)  # fmt: skip
def test_any_size_fits(tmp_path, size, width, height, mode, seed, index):
    Image.new(mode, (width, height)).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    for name in ("a.jpg", "a.png"):
        if (tmp_path / name).is_file():
            (tmp_path / "a.txt").write_text("a")
    for found in (PictureFolder(tmp_path, size), Postcards(size, seed)):
        picture, text = found.example(index)
        assert (picture.shape, picture.dtype, bool(text)) == ((size, size, 3), np.uint8, True)
