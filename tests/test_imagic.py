"""Imagic: what each of its three steps does to a picture's loss, and that nothing else of a model changes."""

from __future__ import annotations

import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from stable_diffusion import StableDiffusion
from stable_diffusion.__main__ import main
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError
from stable_diffusion.record.picture_files import read_parameters
from stable_diffusion.training.imagic import Settings, Tuned, _Task, tune
from stable_diffusion.training.postcards.painter import Postcard, paint

CARD = Postcard(time="day", place="green hills", thing="house", colour="red", sky="clear", seed=3)
TEXT = "a red house on green hills by day, with a rainbow"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


@pytest.fixture(scope="module")
def tuned(sd) -> Tuned:
    settings = Settings(text_steps=8, unet_steps=6, unet_rate=3e-4, batch=2)
    return tune(sd, paint(CARD, 64), TEXT, settings, width=64, height=64)


def loss(sd: StableDiffusion, states: dict) -> float:
    """The denoising loss of the card, over noise that tuning has not seen."""
    x_0 = sd.encode(paint(CARD, 64), 64, 64).astype(mx.float32)
    task = _Task(sd, x_0, (64, 64), Settings(seed=9, batch=8))
    return float(np.mean([task.loss(states, *task.batch(step)).item() for step in range(2)]))


def test_the_text_then_the_network_come_to_say_what_the_picture_shows(sd, tuned):
    before, text = loss(sd, tuned.target), loss(sd, tuned.optimised)
    with tuned.applied(sd):
        both = loss(sd, tuned.optimised)
    assert text < 0.97 * before
    assert both < 0.97 * text


def test_the_model_is_as_it_was(sd, tuned):
    own = dict(tree_flatten(StableDiffusion(float16=False).network.parameters()))
    for name, value in tree_flatten(sd.network.parameters()):
        assert mx.array_equal(value, own[name]), name
    assert max(float(mx.abs(value).max()) for value in tuned.unet.values()) > 1e-4


def test_amounts_mix_the_states_and_change_the_picture(sd, tuned):
    mixed = 0.25 * tuned.target["text"] + 0.75 * tuned.optimised["text"]
    np.testing.assert_allclose(np.array(tuned.states(0.25).text), np.array(mixed), rtol=1e-5, atol=1e-5)
    pictures = [np.asarray(tuned.paint(sd, amount, num_steps=3).image, np.float32) for amount in (0.0, 0.1, 1.0)]
    near, far = (np.abs(each - pictures[0]).mean() for each in pictures[1:])
    assert 0 < near < far


def test_what_was_tuned_is_kept_and_painted_again(sd, tuned, tmp_path, capsys):
    path = str(tuned.save(tmp_path / "tuned.safetensors"))
    again = Tuned.load(path)
    assert (again.text, again.model, again.size) == (TEXT, "postcards-tiny", (64, 64))
    picture, direct = (np.asarray(each.paint(sd, 0.7, num_steps=2).image, int) for each in (again, tuned))
    assert np.abs(picture - direct).max() <= 3  # weights are kept in float16
    out = tmp_path / "edited.png"
    assert main(["imagic", path, "--amount", "0.7", "--steps", "2", "--output", str(out), "--quiet"]) == 0
    assert np.array_equal(np.asarray(Image.open(out), int), picture)
    found = read_parameters(out)
    assert (found.prompt, found.extra["Imagic amount"]) == (TEXT, "0.7")


def test_what_cannot_be_edited_is_refused(sd, tuned, tmp_path, capsys):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    assert main(["imagic", str(tmp_path / "a.png")]) == 2
    assert "Say what the picture is to show" in capsys.readouterr().err
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not a file of `stable-diffusion imagic`"):
        Tuned.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="amount"):
        tuned.paint(sd, 3.0)
    with pytest.raises(InputError, match="quantised to 8 bits"):
        tune(StableDiffusion(bits=8), paint(CARD, 64), TEXT)
