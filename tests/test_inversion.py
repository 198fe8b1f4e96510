"""DDIM inversion: exact for small steps, of first order, and back to the picture with the embedded model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import StableDiffusion
from stable_diffusion.__main__ import main
from stable_diffusion.backend import mx
from stable_diffusion.diffusion.inversion import inverted
from stable_diffusion.errors import InputError
from stable_diffusion.model_io.noise_file import NoiseFile
from stable_diffusion.sampler import DDIMSampler
from stable_diffusion.training.postcards.painter import Postcard, describe, paint
from stable_diffusion.training.sheets import psnr

from .test_sampler import SD, Gaussian, normal, run


class Everywhere(Gaussian):
    """Answers at the ends of steps too."""

    def __init__(self, plan, **options):
        super().__init__(plan, **options)
        self.levels |= {level.t: level for level in plan.ends if level.sigma} | {0.0: plan.schedule.level(0)}


def there_and_back(steps: int, corrections: int = 0, **options) -> float:
    """The largest error of sampling from the inversion's noise."""
    sampler = DDIMSampler(spacing="trailing")
    plan = sampler.plan(SD, steps)
    gaussian, x_0 = Everywhere(plan, **options), 0.7 + 0.5 * normal(3)
    *_, last = inverted(gaussian.denoiser, x_0, plan, corrections)
    return float(mx.abs(run(sampler, plan, gaussian, last.x)[-1].x - x_0).max())


def test_the_error_falls_as_fast_as_steps_get_shorter():
    errors = [there_and_back(steps) for steps in (25, 50, 100, 200)]
    for long, short in itertools.pairwise(errors):
        assert 1.6 < long / short < 2.6, errors


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_corrections_solve_each_step(prediction_type):
    errors = [there_and_back(50, corrections, prediction_type=prediction_type) for corrections in (0, 1, 3, 8)]
    assert errors[0] > 3e-3
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3
    assert errors[3] < 1e-4


def test_the_noise_is_where_the_flow_begins():
    """Against the exact solution, not only against the sampler: the inversion converges to it."""
    errors = []
    for steps in (100, 500):
        plan = DDIMSampler(spacing="trailing").plan(SD, steps)
        gaussian, x_0 = Everywhere(plan), 0.7 + 0.5 * normal(3)
        *_, last = inverted(gaussian.denoiser, x_0, plan)
        exact = gaussian.solution(x_0, plan.ends[-1], plan.levels[0])
        errors.append(float(mx.abs(last.x - exact).max()))
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.015


def test_a_postcard_comes_back_from_its_noise(tmp_path, capsys):
    card = Postcard(time="day", place="green hills", thing="house", colour="red", sky="clouds")
    original = np.asarray(paint(card, 64))
    Image.fromarray(original).save(tmp_path / "card.png")
    errors = []
    for corrections in ("0", "3"):
        noise, out = str(tmp_path / "noise.safetensors"), str(tmp_path / "again.png")
        options = ["--steps", "10", "--width", "64", "--height", "64", "--corrections", corrections, "--quiet"]
        assert main(["invert", str(tmp_path / "card.png"), describe(card), "--output", noise, *options]) == 0
        assert main(["reconstruct", noise, "--output", out, "--quiet"]) == 0
        errors.append(psnr(original[None] / 255, np.asarray(Image.open(out))[None] / 255))
    found = NoiseFile.load(noise)
    assert (found.text, found.steps, found.latents.shape) == (describe(card), 10, (1, 8, 8, 4))
    assert errors[1] > errors[0] + 1


def test_what_cannot_be_inverted_is_refused(tmp_path, capsys):
    sd = StableDiffusion()
    with pytest.raises(InputError, match="corrections"):
        sd.invert(np.zeros((64, 64, 3), np.uint8), "a house", corrections=-1)
    with pytest.raises(InputError, match="num_steps"):
        sd.invert(np.zeros((64, 64, 3), np.uint8), "a house", num_steps=0)
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not the noise of a picture"):
        NoiseFile.load(tmp_path / "other.safetensors")
    assert main(["invert", "missing.png", "a house", "--output", str(tmp_path / "noise.png")]) == 2
    assert "should end in .safetensors" in capsys.readouterr().err
