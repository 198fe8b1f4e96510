"""Samplers that recipes name, from the command line to the picture's record and back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import StableDiffusion
from stable_diffusion import __main__ as program
from stable_diffusion.errors import InputError, SamplerError
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request
from stable_diffusion.sampler import DDIMSampler

SMALL = {"width": 64, "height": 64, "seed": 1, "num_steps": 3}


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion(float16=False)


def painted(sd, negative=None, **settings):
    (made,) = sd.generate("a red house", negative, **SMALL | settings)
    return np.asarray(made.image)


def test_cfg_pp_heeds_the_negative_prompt_at_every_weight(sd):
    for weight in (0.6, 1.0):
        one, other = (painted(sd, text, sampler="Euler a CFG++", cfg_weight=weight) for text in ("night", "snow"))
        assert not np.array_equal(one, other)
        same = [painted(sd, text, sampler="Euler a", cfg_weight=weight) for text in ("night", "snow")]
        assert np.array_equal(*same)


def test_cfg_pp_is_refused_where_guidance_is_an_input(sd, monkeypatch):
    monkeypatch.setattr(type(sd._unet), "embeds_guidance", True)
    with pytest.raises(SamplerError, match=r"Euler a CFG\+\+ asks for the negative prompt's own answer.*choose lcm"):
        sd.generate_latents("a", sampler="euler_a_cfg_pp", **SMALL)


def test_eta_changes_the_picture_and_is_recorded(sd):
    pictures = {eta: painted(sd, sampler="tcd", eta=eta) for eta in (None, 0.3, 0.0, 1.0)}
    assert np.array_equal(pictures[None], pictures[0.3])
    assert not np.array_equal(pictures[0.3], pictures[0.0]) and not np.array_equal(pictures[0.3], pictures[1.0])
    (made,) = sd.generate("a", sampler="tcd", eta=0.5, **SMALL)
    assert (made.parameters.sampler, made.parameters.extra["Eta"]) == ("TCD", "0.5")
    request, notes = Request.from_record(made.parameters)
    assert (request.sampler, request.eta, notes) == ("tcd", 0.5, [])


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), "much", True])
def test_an_eta_out_of_range(sd, eta):
    with pytest.raises(InputError, match="eta = "):
        sd.generate_latents("a", sampler="tcd", eta=eta, **SMALL)


def test_an_eta_for_a_sampler_without(sd):
    with pytest.raises(SamplerError, match=r"Euler takes no eta \(eta = 0.5\); these do: euler_a, .*ddim, tcd"):
        sd.generate_latents("a", sampler="euler", eta=0.5, **SMALL)


def test_another_programs_eta_that_means_nothing_here():
    request, notes = Request.from_record(Parameters(sampler="DPM++ SDE", extra={"Eta": "0.5"}))
    assert request.eta is None and notes == ["Eta 0.5 is not offered for DPM++ SDE here."]


def test_a_samplers_own_eta_is_recorded(sd):
    (made,) = sd.generate("a", sampler=DDIMSampler(eta=0.5), **SMALL)
    assert Request.from_record(made.parameters)[0].eta == 0.5


def test_the_command_line_repeats_a_picture_with_its_eta(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    small = ["--steps", "3", "--width", "64", "--height", "64", "--quiet", "--seed", "1"]
    command = ["txt2img", "a", "--sampler", "DPM2 a Karras", "--eta", "0.4", *small]
    assert program.main([*command, "--output", str(first)]) == 0
    made = picture_files.read_parameters(first)
    assert (made.sampler, made.schedule, made.extra["Eta"]) == ("DPM2 a", "Karras", "0.4")
    assert program.main(["again", str(first), "--quiet", "--output", str(second)]) == 0
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


def test_the_command_line_refuses_an_eta_out_of_range(capsys):
    with pytest.raises(SystemExit):
        program.main(["txt2img", "a", "--eta", "1.5"])
    assert "1.5" in capsys.readouterr().err
