"""Our pictures, read by what other people read pictures with: piexif (which A1111 uses) and sd-parsers."""

from __future__ import annotations

import numpy as np
import pytest

piexif = pytest.importorskip("piexif")
pytest.importorskip("piexif.helper")
sd_parsers = pytest.importorskip("sd_parsers")

from stable_diffusion.record import inputs, picture_files  # noqa: E402
from stable_diffusion.record.parameters import Parameters  # noqa: E402

from ..test_programs import MADE, PICTURES  # noqa: E402

pytestmark = pytest.mark.parity

PLAIN = Parameters("a red house", "rain", 20, "DPM++ 2M", "Karras", 7.5, 5, 512, 640, "0123456789", "lakeMix")
RECORDS = {
    "text": PLAIN,
    "image": Parameters(**vars(PLAIN) | {"strength": 0.6, "extra": {"Resize mode": "pad"}}),
    "inpainting": Parameters(**vars(PLAIN) | {"extra": {"Mask blur": "4", "Masked content": "fill"}}),
    "lora": Parameters(**vars(PLAIN) | {"prompt": "a house <lora:ink:0.5>", "extra": {"LoRA": "ink:0.5"}}),
    "emoji": Parameters(**vars(PLAIN) | {"prompt": "a 🐈 in a 🏠"}),
    "cjk": Parameters(**vars(PLAIN) | {"prompt": "赤い家、夕焼け", "negative": "雨"}),
    "long": Parameters(**vars(PLAIN) | {"prompt": "a red house, " * 1500}),
}


@pytest.fixture(params=RECORDS)
def made(request):
    return RECORDS[request.param]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_piexif_reads_the_comment(tmp_path, made, suffix):
    path = picture_files.save_picture(np.zeros((16, 16, 3)), tmp_path / f"a{suffix}", made)
    comment = piexif.load(str(path))["Exif"][piexif.ExifIFD.UserComment]
    assert piexif.helper.UserComment.load(comment) == made.to_text()
    assert piexif.helper.UserComment.dump(made.to_text(), "unicode") == comment, "byte by byte what A1111 writes"


def test_we_read_what_piexif_writes(tmp_path, made):
    path = picture_files.save_picture(np.zeros((16, 16, 3)), tmp_path / "a.jpg")
    comment = piexif.helper.UserComment.dump(made.to_text(), "unicode")
    piexif.insert(piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}}), str(path))
    assert picture_files.read_parameters(path) == made


@pytest.mark.parametrize("suffix", [".png", ".jpg"])  # it has no reader of WebP
def test_sd_parsers_reads_all_settings(tmp_path, made, suffix):
    carry = [inputs.InputFile("a", b"file")] if suffix == ".png" else []
    path = picture_files.save_picture(np.zeros((16, 16, 3)), tmp_path / f"a{suffix}", made, carry)
    found = sd_parsers.ParserManager().parse(path)
    assert found.full_prompt == made.prompt.strip() and found.full_negative_prompt == made.negative
    (sampler,) = found.samplers
    assert (sampler.model.name, sampler.model.hash) == (made.model, made.model_hash)
    assert sampler.parameters["seed"] == "5" and sampler.parameters["cfg_scale"] == "7.5"


@pytest.mark.parametrize("name", ["comfy.png", "invoke.png", "novelai.png", "fooocus.png"])
def test_other_programs_are_read_as_sd_parsers_does(name):
    theirs, ours = sd_parsers.ParserManager().parse(PICTURES / name), MADE[name][1]
    assert [str(prompt) for prompt in theirs.prompts] == [ours.prompt]
    assert [str(prompt) for prompt in theirs.negative_prompts] == [ours.negative]
    (sampler,) = theirs.samplers
    assert int(sampler.parameters["seed"]) == ours.seed
    assert float(sampler.parameters["cfg_scale"]) == ours.cfg
    assert sampler.model is None or sampler.model.name.removesuffix(".safetensors") == ours.model
