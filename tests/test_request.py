"""What a person asks for: from values, JSON and records; to the engine and to records; and how little it takes to add
to it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stable_diffusion.checks import MAX_SEED, Choice, Flag, Text, Whole
from stable_diffusion.errors import InputError
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.record.used import Used
from stable_diffusion.request import DEFAULTS, JSON_FIELDS, SETTINGS, Request, option_of, read_record, to_options
from stable_diffusion.setting import BLEND, HIRES, HOW, LARGER, MACHINE, MASK, TILES, WHITE

ROOT = Path(__file__).parents[1]
USED = Used("postcards-tiny", "float32", "a version")
SIZE = (64, 48)


def other_than_default(name):
    """A value of a setting that is not its default."""
    check, default = SETTINGS[name].check, DEFAULTS[name]
    if isinstance(check, Choice):
        return next(option for option in check.options if option != default)
    if isinstance(check, Flag):
        return not default
    if isinstance(check, Text):
        return "a text"
    number = check.multiple * 4 if isinstance(check, Whole) else check.low + min(check.high - check.low, 1) / 4
    return number if number != default else number + 1


def picture(colour="red"):
    return Image.new("RGB", (80, 60), colour)


def mask():
    found = Image.new("L", (80, 60))
    found.paste(255, (10, 10, 50, 40))
    return found


@pytest.mark.parametrize("name", [name for name, each in SETTINGS.items() if each.key])
def test_every_setting_with_a_key_is_recorded_and_read_back(name):
    value = other_than_default(name)
    masks = SETTINGS[name].group in (MASK, WHITE) and SETTINGS[name].always
    more = {"mask": mask(), "picture": picture(), "only_masked": True} if masks else {}
    more |= {"hires_scale": 2.0} if SETTINGS[name].group == HIRES else {}
    more |= {"tile": 128} if SETTINGS[name].group == TILES else {}
    more |= {"picture": picture(), "by": 2.0} if SETTINGS[name].group == LARGER else {}
    more |= {"mask": mask(), "picture": picture()} if name == "invert" else {}
    more |= {"variation_strength": 0.5} if name in ("variation_seed", "vary_all_draws") else {}
    more |= {"blend_prompt": "b", "blend_share": 0.5} if SETTINGS[name].group == BLEND else {}
    more |= {"sampler": "tcd"} if name == "eta" else {}
    more |= {"deepcache_interval": 2} if name == "deepcache_branch" else {}
    more |= {"refiner": "another"} if name == "refiner_switch" else {}
    more |= {"steer_by": "clip"} if name in ("steer_scale", "steer_text") else {}
    request = Request("a", **more | {name: value})
    said = request.to_record(USED, SIZE)
    assert SETTINGS[name].key in said.extra
    found, notes = read_record(Parameters.from_text(said.to_text()))
    assert found[name] == value and not notes
    if not SETTINGS[name].always:
        assert SETTINGS[name].key not in Request("a").to_record(USED, SIZE).extra, "a default goes without saying"


def test_what_does_not_count_is_not_recorded():
    asked = Request("a", fit="pad", masked_content="noise", padding=3, variation_seed=5)
    extra = asked.to_record(USED, SIZE).extra
    assert not {"Masked content", "Masked area padding", "Mask blur", "Variation seed"} & set(extra)
    assert "Masked area padding" not in Request("a", picture=picture(), mask=mask()).to_record(USED, SIZE).extra


@given(
    steps=st.integers(1, 1000), cfg=st.floats(0, 1e6), seed=st.integers(0, MAX_SEED), rescale=st.floats(0, 1),
    skip=st.none() | st.integers(1, 12), blur=st.floats(0, 256), invert=st.booleans(),
)  # fmt: skip
def test_a_record_says_every_digit(steps, cfg, seed, rescale, skip, blur, invert):
    asked = Request(
        "a\nb, c: d", "e", steps=steps, cfg=cfg, seed=seed, guidance_rescale=rescale, clip_skip=skip, mask_blur=blur,
        invert=invert, picture=picture(), mask=mask(), strength=0.25, sampler="dpmpp_2m_karras",
    )  # fmt: skip
    said = asked.to_record(USED, SIZE)
    found, notes = Request.from_record(Parameters.from_text(said.to_text()))
    assert not notes
    assert found == dataclasses.replace(asked, width=64, height=48, picture=None, mask=None)


def test_what_a_record_says_wrongly_is_told_and_left_out():
    wrong = Parameters(
        "a", steps=0, seed=2**70, sampler="DPM fast", strength=2.0, width=13,
        extra={"Clip skip": "x", "Bits": "3", "Prompt language": "klingon", "CFG Rescale": "nan", "Mask mode": "odd"},
    )  # fmt: skip
    found, notes = read_record(wrong)
    assert found == {"prompt": "a", "negative": ""}
    assert len(notes) == 10
    for word in ("Steps 0", "DPM fast", "Denoising strength 2", "Width 13", "Clip skip 'x'", "Bits '3'", "klingon"):
        assert any(word in note for note in notes), word


def test_guidance_in_a_part_of_the_steps_is_read_from_a1111s_records():
    said = {"Skip Early CFG": "0.2", "NGMS": "1.5"}
    found, notes = read_record(Parameters("a", extra=said))
    assert (found["guidance_start"], found["guidance_min_sigma"]) == (0.2, 1.5)
    assert len(notes) == 1 and "every second step" in notes[0]
    assert not read_record(Parameters("a", extra=said | {"NGMS all steps": "True"}))[1]
    extra = Request("a", guidance_start=0.2, guidance_min_sigma=1.5).to_record(USED, SIZE).extra
    assert said.items() < extra.items() and extra["NGMS all steps"] == "True"
    assert "NGMS all steps" not in Request("a").to_record(USED, SIZE).extra


def test_a_start_after_the_end_is_refused():
    with pytest.raises(InputError, match=r"guidance_start = 0.8 lies after guidance_end = 0.5"):
        Request("a", guidance_start=0.8, guidance_end=0.5)


def test_a_records_mask_has_a1111s_defaults_where_it_says_nothing():
    found, notes = read_record(Parameters("a", extra={"Mask blur": "9"}))
    assert not notes
    assert (found["mask_blur"], found["masked_content"], found["only_masked"], found["padding"]) == (
        9, "original", False, 32
    )  # fmt: skip


def test_json_is_checked_and_unknown_names_are_refused():
    asked = Request.from_json({"prompt": "a", "steps": 3, "seed": -1, "loras": [["ink", 0.5]], "previews": ["full"]})
    assert (asked.steps, asked.seed, asked.loras, asked.previews) == (3, None, (("ink", 0.5),), ("full",))
    assert "picture" not in JSON_FIELDS and "mask_blur" in JSON_FIELDS
    with pytest.raises(InputError, match=r"no setting 'guidance'.*guidance_rescale"):
        Request.from_json({"guidance": 0.5})
    for wrong in ({"steps": "3"}, {"cfg": float("nan")}, {"bits": 3}, {"low_memory": 1}, {"prompt": None},
                  {"loras": "ink"}, {"loras": [["ink"]]}, {"width": 65}):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(wrong))):
            Request.from_json({"prompt": "a"} | wrong)
    with pytest.raises(InputError, match="strength = 'much'"):
        Request.from_json({"loras": [["ink", "much"]]})


def test_a_form_has_values_that_stand_for_none():
    asked = Request.from_values(
        {
            "prompt": "a",
            "seed": -1,
            "clip_skip": 0,
            "bits": 0,
            "vae": "",
            "refiner": "",
            "prediction_type": "",
            "zero_terminal_snr": "",
        }
    )
    assert asked == Request("a")
    for name, each in SETTINGS.items():
        assert each.from_form(each.to_form(None)) is None
        if each.unset is not None:
            assert each.to_form(DEFAULTS[name]) == each.unset


@pytest.mark.parametrize("name", [name for name, each in SETTINGS.items() if each.group])
def test_options_ask_for_what_they_are_made_from(name):
    value = other_than_default(name)
    (option,) = to_options({name: value}, [SETTINGS[name].group])
    spelt, _, text = option.partition("=")
    on = option_of(name)
    assert spelt == (on.replace("--", "--no-", 1) if DEFAULTS[name] is True else on)
    assert not text if isinstance(value, bool) else SETTINGS[name].check.read(text) == value
    assert to_options({name: value}, []) == []


def test_options_ask_for_no_where_none_would_be_the_files_own():
    assert to_options({"zero_terminal_snr": False, "low_memory": False}, [HOW, MACHINE]) == ["--no-zero-terminal-snr"]


def test_seeds_are_drawn_once_and_counted_as_a1111_does():
    drawn = Request("a", n_images=3).with_seeds()
    assert drawn.with_seeds() == drawn and drawn.variation_seed is None
    assert [drawn.seeds_of(i)["seed"] - drawn.seed for i in range(3)] == [0, 1, 2]
    varied = Request("a", seed=5, n_images=2, variation_seed=8, variation_strength=0.25).with_seeds()
    assert [varied.seeds_of(i) for i in range(2)] == [
        {"seed": 5, "variation_seed": 8 + i, "variation_strength": 0.25} for i in range(2)
    ]
    with pytest.raises(InputError, match="too near the largest seed"):
        Request("a", seed=MAX_SEED, n_images=2).with_seeds()
    with pytest.raises(InputError, match="variation_strength"):
        Request("a", variation_seed=5).with_seeds()


def test_a_text_is_called_for_with_what_it_says():
    call = Request("a", steps=3, guidance_rescale=0.5, clip_skip=2, width=64).to_call((128, 128))
    assert call.arguments == {
        "text": "a", "negative_text": None, "num_steps": 3, "cfg_weight": 7.5, "guidance_rescale": 0.5, "clip_skip": 2,
        "sampler": "euler", "prompt_language": "a1111", "width": 64, "guidance_start": 0.0, "guidance_end": 1.0,
        "guidance_min_sigma": 0.0, "deepcache_interval": 1,
    }  # fmt: skip
    painted = picture()
    assert call.finish(painted) is painted


def test_a_picture_comes_at_the_size_that_is_painted():
    call = Request("a", picture=picture(), strength=0.5, height=32).to_call((64, 64))
    assert call.arguments["input_image"].size == (64, 32) and call.arguments["denoising_strength"] == 0.5
    assert "mask_image" not in call.arguments and "masked_content" not in call.arguments


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (72, 56)),
        ({"only_masked": True}, (64, 64)),
        ({"width": 40}, (40, 32)),
        ({"width": 40, "height": 24}, (40, 24)),
    ],
)
def test_under_a_mask_the_picture_keeps_its_shape(asked, size):
    call = Request("a", picture=picture(), mask=mask(), mask_blur=0, **asked).to_call((64, 64))
    assert call.arguments["input_image"].size == call.arguments["mask_image"].size == size
    result = call.finish(Image.new("RGB", size, "blue"))
    assert result.size == (80, 60) and result.getpixel((0, 0)) == (255, 0, 0) and result.getpixel((30, 20))[2] > 200


def test_only_what_is_asked_for_is_said_to_the_loader():
    assert Request("a").to_load() == {}
    assert Request("a", bits=4, low_memory=True, vae="x").to_load() == {"bits": 4, "low_memory": True, "vae": "x"}


def test_files_that_pictures_were_read_from_are_named(tmp_path):
    file = InputFile("in.png", b"bytes")
    said = Request("a", picture=picture(), picture_file=file).to_record(USED, SIZE)
    assert said.extra["Input picture"] == "in.png" and said.strength == 0.7
    assert np.array_equal(np.asarray(picture()), np.asarray(Request("a", picture=picture()).picture))


def test_it_needs_neither_mlx_nor_streamlit_nor_numpy():
    code = (
        "import sys, stable_diffusion.request\n"
        "assert not {'mlx', 'mlx.core', 'streamlit', 'numpy', 'PIL'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_setting_is_named_in_few_files():
    """CONTRIBUTING.md shows how one is added, by this example."""
    sources = (path for path in (ROOT / "stable_diffusion").rglob("*.py") if path.parent.name != "lessons")
    naming = [path.name for path in sources if "guidance_rescale" in path.read_text(encoding="utf-8")]
    assert len(naming) <= 5, naming
