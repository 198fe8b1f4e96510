"""`inpaint` and `outpaint`: what they ask of the engine, what they put back and record, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.record import inputs, picture_files

from .test_main import OF_ENGINE, engine, run  # noqa: F401


@pytest.fixture
def files(engine):  # noqa: F811
    """A picture of 64 x 48 with noise on it, and a mask of its right half, drawn on transparency at half the size."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save("in.png")
    mask = Image.new("RGBA", (32, 24))
    mask.paste("white", (16, 0, 32, 24))
    mask.save("mask.png")
    return engine


def test_the_masks_white_is_painted_and_the_rest_stays(files, capsys):
    assert run("inpaint", "in.png", "mask.png", "a cat", "--seed", 9, "--output", "out.png") == 0
    assert capsys.readouterr().out == "out.png  (seed 9)\n"
    _, call = files.calls
    assert (call["denoising_strength"], call["masked_content"]) == (1.0, "original")
    assert call["input_image"].size == call["mask_image"].size == (32, 24)  # the picture's shape, the model's area
    assert np.array_equal(np.asarray(call["mask_image"])[:, :16] == 0, np.ones((24, 16), bool))
    original, result = np.asarray(Image.open("in.png")), np.asarray(Image.open("out.png"))
    assert result.shape == original.shape
    assert (result[:, 32:] == 9).all()
    assert np.array_equal(result[:, :20], original[:, :20])
    said = picture_files.read_parameters("out.png")
    picture, mask = inputs.InputFile.read("in.png"), inputs.InputFile.read("mask.png")
    assert said.extra == {
        "Input picture": "in.png", "Input sha256": picture.sha256, "Mask": "mask.png", "Mask sha256": mask.sha256,
        "Mask blur": "4", "Masked content": "original", "Inpaint area": "Whole picture", **OF_ENGINE,
    }  # fmt: skip
    assert (said.size, said.strength, said.seed) == ("32x24", 1.0, 9)  # the size that was painted


def test_every_option_reaches_the_engine(files):
    options = ["--strength", 0.6, "--masked-content", "noise", "--mask-blur", 0, "--only-masked", "--padding", 3]
    options += ["--invert", "--embed-inputs", "--n-images", 2, "--output", "new/"]
    assert run("inpaint", "in.png", "mask.png", "x", "--width", 64, "--seed", 3, *options) == 0
    call = files.calls[1]
    assert (call["denoising_strength"], call["masked_content"]) == (0.6, "noise")
    assert call["input_image"].size == (64, 48)
    for i in range(2):
        path = f"new/{i + 1:05}-{3 + i}.png"
        result = np.asarray(Image.open(path))
        assert (result[:, :32] == 3 + i).all()
        assert np.array_equal(result[:, 32:], np.asarray(Image.open("in.png"))[:, 32:])
        extra = picture_files.read_parameters(path).extra
        assert extra["Inpaint area"] == "Only masked" and extra["Masked area padding"] == "3"
        assert (extra["Mask mode"], extra["Masked content"]) == ("Inpaint not masked", "latent noise")
        carried = list(inputs.carried(path))
        assert carried == [Path(name).read_bytes() for name in ("in.png", "mask.png")]


@pytest.mark.parametrize(
    "options, size",
    [([], (32, 24)), (["--height", 48], (64, 48)), (["--width", 16, "--height", 80], (16, 80))],
)
def test_the_size_that_is_painted(files, options, size):
    Image.new("RGB", (640, 480)).save("large.png")
    run("inpaint", "large.png", "mask.png", "x", "--output", "out.png", *options)
    assert files.calls[1]["input_image"].size == size
    assert Image.open("out.png").size == (640, 480)


def test_outpainting_goes_on_at_the_sides(files):
    assert run("outpaint", "in.png", "x", "--left", 16, "--bottom", 8, "--output", "out.png", "--mask-blur", 1) == 0
    original, result = np.asarray(Image.open("in.png")), np.asarray(Image.open("out.png"))
    assert result.shape == (56, 80, 3)
    assert np.array_equal(result[:44, 20:], original[:44, 4:])
    assert (result[48:] == result[-1, 0]).all() and (result[:, :16] == result[-1, 0]).all()
    call = files.calls[1]
    assert (call["denoising_strength"], call["masked_content"]) == (0.8, "original")
    said = picture_files.read_parameters("out.png")
    assert (said.extra["Outpaint left"], said.extra["Outpaint bottom"]) == ("16", "8")
    assert "Outpaint top" not in said.extra and "Mask" not in said.extra


def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(files, capsys):
    Image.new("L", (5, 5)).save("black.png")
    for arguments, words in (
        (("inpaint", "in.png", "black.png", "x"), "brightest is 0 of 255"),
        (("inpaint", "in.png", "none.png", "x"), "No picture file at 'none.png'"),
        (("outpaint", "in.png", "x"), "left, right, top and bottom are all 0"),
    ):
        assert run(*arguments, "--output", "out.png") == 2
        assert words in capsys.readouterr().err
    assert not hasattr(files, "calls")
    for arguments in (("--mask-blur", "x"), ("--padding", "-1"), ("--masked-content", "sky")):
        with pytest.raises(SystemExit):
            run("inpaint", "in.png", "mask.png", "x", *arguments)
    assert "invalid choice: 'sky'" in capsys.readouterr().err
