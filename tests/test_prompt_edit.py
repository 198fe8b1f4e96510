"""Prompt-to-prompt: which tokens are which, what stays to the bit, what cannot be edited, and the command."""

from __future__ import annotations

import contextlib

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from stable_diffusion import Blend, Hires, InputError, PromptEdit, StableDiffusion
from stable_diffusion.__main__ import main
from stable_diffusion.model_io.noise_file import NoiseFile
from stable_diffusion.ops import lanes
from stable_diffusion.prompt_edit import aligned
from stable_diffusion.record.picture_files import read_parameters

BEFORE, AFTER = "a red house on green hills by day", "a blue house on green hills by day, with a rainbow"
FEW = {"seed": 3, "num_steps": 5, "width": 64, "height": 64, "cfg_weight": 4.0, "negative_text": "clouds"}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def both(sd, before=BEFORE, after=AFTER, how=None, **options) -> list[np.ndarray]:
    for pair in sd.edit(before, after, how, **FEW | options):
        found = [np.array(step.latents) for step in pair]
    return found


def plain(sd, text, **options) -> np.ndarray:
    for step in sd.generate_latents(text, **FEW | options):
        found = np.array(step.latents)
    return found


def test_which_tokens_are_which():
    n = 10
    mapping, known = aligned([5, 6, 7], [5, 8, 7, 9], n)  # 6 becomes 8, and 9 is new
    expected = {0: 0, 1: 1, 2: 2, 3: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8}  # new place: old place
    assert {j: int(mapping[:, j].argmax()) for j in range(n) if known[j]} == expected and not known[4]
    assert (mapping.sum(0) == known).all()
    mapping, known = aligned([5, 6, 7], [5, 1, 2, 7], n)  # one word becomes two, which share what it had
    assert mapping[2, 2] == mapping[2, 3] == 0.5 and known.all()
    mapping, known = aligned([5, 6, 7], [5, 7], n)  # the padding is one longer
    assert mapping[3, 2] == 1 and mapping[9, 8] == mapping[9, 9] == 1 and known.all()


@pytest.mark.parametrize("options", [{}, {"cfg_weight": 1.0}, {"sampler": "heun"}, {"guidance_end": 0.5}])
def test_the_first_picture_is_the_plain_one_and_so_is_the_second_without_attention(sd, options):
    first, second = both(sd, how=PromptEdit(0, 0), **options)
    assert np.array_equal(first, plain(sd, BEFORE, **options))
    assert np.array_equal(second, plain(sd, AFTER, **options))


@pytest.mark.parametrize("options", [{}, {"cfg_weight": 1.0}, {"sampler": "heun"}, {"sampler": "ddim", "eta": 1.0}])
def test_the_same_text_is_the_same_picture(sd, options):
    first, second = both(sd, after=BEFORE, how=PromptEdit(1, 1), **options)
    assert np.abs(second - first).max() <= 1e-5 * np.abs(first).max()


def test_more_attention_is_nearer_to_the_first_picture(sd):
    texts = [f"a red house on green hills by day, {sky}" for sky in ("a clear sky", "with a rainbow")]
    options = {"seed": 1, "num_steps": 8, "width": 128, "height": 128}
    pairs = [both(sd, *texts, PromptEdit(share, share), **options) for share in (0, 0.4, 1)]
    far = [np.abs(a - b)[:, 8:].mean() for a, b in pairs]  # below the sky
    assert far[0] > 1.1 * far[1] and far[1] > far[2] > 0


def test_words_are_weighed(sd):
    usual = both(sd)[1]
    assert np.allclose(both(sd, how=PromptEdit(words={"rainbow": 1}))[1], usual, atol=1e-4)
    changed = [np.abs(both(sd, how=PromptEdit(words={"Rainbow": each}))[1] - usual).mean() for each in (1.5, 4)]
    assert 0 < changed[0] < changed[1]


def test_low_memory_and_lanes_change_nothing(sd, monkeypatch):
    usual = both(sd)
    frugal = both(StableDiffusion(float16=False, low_memory=True))
    monkeypatch.setattr(lanes, "count", lambda: 2)
    monkeypatch.setattr("stable_diffusion.backend.product_threads", lambda: 2)
    for found in (frugal, both(sd)):
        assert all(np.allclose(a, b, atol=1e-4 * np.abs(b).max()) for a, b in zip(found, usual, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "options", "problem"),
    [
        ("a house AND a tent", AFTER, {}, "without AND, blends and schedules"),
        (BEFORE, "a [red:blue:0.5] house", {}, "without AND, blends and schedules"),
        (BEFORE, Blend("a house", "a tent", 0.5), {}, "without AND, blends and schedules"),
        (BEFORE, "pine tree, " * 40, {}, "is too long to be edited: 75 tokens at most"),
        (BEFORE, AFTER, {"n_images": 2}, "Only one picture"),
        (BEFORE, AFTER, {"hires": Hires(scale=2)}, "leave out hires and refiner"),
        (BEFORE, AFTER, {"how": PromptEdit(words={"sun": 2})}, "no word 'sun' to weigh; it has a, blue, house, on"),
    ],
)
def test_what_cannot_be_edited(sd, before, after, options, problem):
    with pytest.raises(InputError, match=problem):
        both(sd, before, after, **options)
    assert both(sd)[0].shape == (1, 8, 8, 4)


@pytest.mark.parametrize("wrong", [{"cross": 1.5}, {"layout": -1}, {"words": {"sun": float("nan")}}])
def test_bad_numbers(wrong):
    with pytest.raises(InputError):
        PromptEdit(**wrong)


def test_generate_refuses_it(sd):
    with pytest.raises(InputError, match="use `edit`"):
        sd.generate(BEFORE, attention=PromptEdit().before)


def test_the_command(sd, tmp_path, capsys):
    size = ["--width", "64", "--height", "64", "--steps", "5", "--cfg", "4", "--negative", "clouds"]
    command = ["edit", BEFORE, AFTER, "--seed", "3", *size, "--output", f"{tmp_path}/", "--quiet"]
    assert main([*command, "--weigh", "rainbow=2"]) == 0
    paths = capsys.readouterr().out.split()
    expected = both(sd, how=PromptEdit(words={"rainbow": 2}))
    for path, text, latents in zip(paths, (BEFORE, AFTER), expected, strict=True):
        picture = np.asarray(Image.open(path), int)
        assert np.abs(picture - 255 * np.array(sd.decode(mx.array(latents)))[0]).max() <= 1
        found = read_parameters(path)
        assert (found.prompt, found.negative, found.seed, found.steps, found.cfg) == (text, "clouds", 3, 5, 4.0)
    assert found.extra["Prompt-to-prompt"] == BEFORE
    assert main(["again", paths[1]]) == 2
    assert "repeat the command `edit`" in capsys.readouterr().err
    noise = tmp_path / "noise.safetensors"
    rng = np.random.default_rng(0)
    NoiseFile(rng.standard_normal((1, 8, 8, 4), np.float32), BEFORE, "postcards-tiny", 5).save(noise)
    assert main(["edit", str(noise), AFTER, "--output", f"{tmp_path}/own/", "--quiet"]) == 0
    assert read_parameters(capsys.readouterr().out.split()[0]).prompt == BEFORE
    for wrong, problem in (
        ([str(noise), AFTER, "--seed", "3"], "Leave out --seed: a file of `invert` says this"),
        ([BEFORE, AFTER, "--weigh", "rainbow"], "should be a word and a number"),
        ([BEFORE, AFTER, "--weigh", "sun=2"], "no word 'sun' to weigh"),
        ([str(tmp_path / "none.safetensors"), AFTER], "not the noise of a picture"),
    ):
        with contextlib.suppress(SystemExit):
            assert main(["edit", *wrong]) == 2
        assert problem in capsys.readouterr().err
