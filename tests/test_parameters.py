"""The text form of parameters, ours and other programs'."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stable_diffusion.record.parameters import Parameters

ROOT = Path(__file__).resolve().parents[1]
A_PICTURE = np.linspace(0, 1, 8 * 6 * 3, dtype=np.float32).reshape(8, 6, 3)


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
