"""What a picture says of the files that went into it, and how they are found again: by name and hash, or inside it."""

import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.errors import PictureError
from stable_diffusion.record import inputs, picture_files
from stable_diffusion.record.inputs import MASK, PICTURE, InputFile, Recorded, carried, find, record, recorded
from stable_diffusion.record.parameters import Parameters

GREY = np.full((8, 8, 3), 0.5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photo(path, colour=(200, 30, 30)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return InputFile.read(path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- What is recorded


def test_a_name_and_the_sha256_of_the_bytes_are_recorded(folder):
    photo("photo.png"), photo("masks/mask.png")
    said = record(InputFile.read("photo.png"), InputFile.read("masks/mask.png"))
    digest = hashlib.sha256(Path("photo.png").read_bytes()).hexdigest()
    assert said == {
        "Input picture": "photo.png", "Input sha256": digest, "Mask": "masks/mask.png", "Mask sha256": digest
    }  # fmt: skip
    assert recorded(said, PICTURE) == Recorded(PICTURE, "photo.png", digest)
    assert recorded(said, MASK) == Recorded(MASK, "masks/mask.png", digest)
    assert recorded({}, MASK) is None and record() == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("photo.png", "photo.png"),
        ("./below/photo.png", "below/photo.png"),
        ("/home/somebody/private/photo.png", "photo.png"),
        ("../photo.png", "photo.png"),
        ("below/../../photo.png", "photo.png"),
    ],
)
def test_folders_that_are_nobodys_business_are_not_told(path, name):
    assert inputs.recordable(path) == name


def test_a_strange_name_comes_back_from_the_text(folder):
    name = 'a "photo", of: me\nand\\you.png'
    photo(name)
    picture_files.save_picture(GREY, "made.png", Parameters("x", steps=2, extra=record(InputFile.read(name))))
    assert recorded(picture_files.read_parameters("made.png").extra, PICTURE).name == name


def test_what_is_no_file_or_no_picture_is_refused(folder, monkeypatch):
    with pytest.raises(PictureError, match=r"missing\.png"):
        InputFile.read("missing.png")
    with pytest.raises(PictureError, match="No picture file"):
        InputFile.read(folder)
    Path("text.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"text\.png"):
        InputFile.read("text.png").open()
    monkeypatch.setattr(inputs, "MAX_BYTES", 5 << 20)
    with open("large.png", "wb") as file:
        file.truncate((5 << 20) + 1)
    with pytest.raises(PictureError, match="more than 5 MB"):
        InputFile.read("large.png")


# --- Found again


@pytest.mark.parametrize(
    "place",
    ["pictures/photo.png", "pictures/in/photo.png", "in/photo.png", "photo.png", "outputs/2026-01-02/photo.png"],
)
def test_it_is_found_where_it_may_lie(folder, place):
    file = photo(place)
    wanted = Recorded(PICTURE, "in/photo.png", file.sha256)
    picture_files.save_picture(GREY, "pictures/made.png")
    found = find(wanted, "pictures/made.png")
    assert found.data == file.data and found.name == "in/photo.png"


def test_only_the_file_of_the_same_hash_is_taken(folder):
    wanted = photo("outputs/deep/down/photo.png")
    other = photo("photo.png", (0, 0, 0))
    picture_files.save_picture(GREY, "made.png")
    assert find(Recorded(PICTURE, "photo.png", wanted.sha256), "made.png").data == wanted.data
    with pytest.raises(PictureError) as caught:
        find(Recorded(MASK, "photo.png", "0" * 64), "made.png")
    for said in ("The mask 'photo.png'", "0" * 64, other.sha256, wanted.sha256, "--mask"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret.png", "..", "", "a\0b", "\\\\host\\share\\secret.png", "."]
)
def test_a_strangers_name_leads_nowhere(folder, name):
    secret = photo("secret.png")
    os.mkdir("house")
    os.chdir("house")
    picture_files.save_picture(GREY, "made.png")
    with pytest.raises(PictureError, match="is not inside"):
        find(Recorded(PICTURE, name, secret.sha256), "made.png")


def test_a_pipe_of_that_name_is_not_waited_for(folder):
    os.mkfifo("photo.png")
    picture_files.save_picture(GREY, "made.png")
    with pytest.raises(PictureError, match="is not inside"):
        find(Recorded(PICTURE, "photo.png", "0" * 64), "made.png")


def test_a_file_that_is_given_again_is_checked(folder):
    file, other = photo("a.png"), photo("b.png", (0, 0, 0))
    Recorded(PICTURE, "a.png", file.sha256).check(file)
    with pytest.raises(PictureError) as caught:
        Recorded(PICTURE, "a.png", file.sha256).check(other)
    assert file.sha256 in str(caught.value) and other.sha256 in str(caught.value) and "--force" in str(caught.value)


# --- Inside the picture


def test_files_travel_inside_a_png(folder):
    picture, mask = photo("photo.png"), photo("mask.png", (255, 255, 255))
    made = picture_files.save_picture(GREY, "made.png", Parameters("x", steps=2), carry=[picture, mask, picture])
    os.remove("photo.png"), os.remove("mask.png")
    assert list(carried(made)) == [picture.data, mask.data]
    assert find(Recorded(MASK, "mask.png", mask.sha256), made) == mask
    with Image.open(made) as image:  # for everybody else it is a picture like any other
        image.load()
        assert image.getpixel((0, 0)) == (128, 128, 128)
    assert picture_files.read_parameters(made).prompt == "x"


def test_other_kinds_of_file_say_that_they_cannot_carry(folder):
    with pytest.raises(PictureError, match=r"\.png"):
        picture_files.save_picture(GREY, "made.jpg", carry=[photo("photo.png")])
    assert not Path("made.jpg").exists()
    assert list(carried(picture_files.save_picture(GREY, "made.webp"))) == []


def test_of_a_damaged_or_hostile_file_nothing_is_taken(folder, monkeypatch):
    file = photo("photo.png")
    whole = picture_files.save_picture(GREY, "made.png", carry=[file]).read_bytes()
    os.remove("photo.png")
    made = Path("made.png")
    at = whole.index(file.data)
    flipped = bytearray(whole)
    flipped[at + 20] ^= 1
    made.write_bytes(flipped)
    assert list(carried(made)) == []
    for end in range(0, len(whole), 7):
        made.write_bytes(whole[:end])
        assert list(carried(made)) in ([], [file.data])
    # A length that claims two gigabytes, and more files than anybody has.
    made.write_bytes(inputs._PNG + struct.pack(">I", 2**31 - 1) + inputs.CHUNK + b"x")
    assert list(carried(made)) == []
    made.write_bytes(inputs._PNG + chunk(inputs.CHUNK, b"x") * 1000)
    assert len(list(carried(made))) == inputs.MAX_CARRIED
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    made.write_bytes(whole)
    assert list(carried(made)) == []
    with pytest.raises(PictureError, match="is not inside"):
        find(Recorded(PICTURE, "photo.png", file.sha256), made)
