"""The sharper decoder: equations 5 to 7 of Esser et al. 2021, resuming, and a decoder on its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from stable_diffusion import StableDiffusion, catalogue, ops
from stable_diffusion.backend import mx, nn
from stable_diffusion.errors import CheckpointNotFoundError, ConfigError, InputError
from stable_diffusion.places import embedded_vaes
from stable_diffusion.training.data import Postcards
from stable_diffusion.training.loop import Intervals, Limit, averaged_gradients, train
from stable_diffusion.training.networks import load_autoencoder, new_autoencoder, write_decoder
from stable_diffusion.training.optimisation import State
from stable_diffusion.training.recipe import Recipe
from stable_diffusion.training.runs import RUNS
from stable_diffusion.training.sharp import (
    Discriminator,
    SharpTask,
    adaptive_weight,
    edge_strength,
    hinge,
    perceptual_distance,
)
from stable_diffusion.training.sheets import psnr

from .conftest import EMBEDDED
from .networks import to_numpy
from .test_training import VAE, Squares, assert_same

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def learning():
    """Operations with gradients."""
    with ops.use("learning"):
        yield


def sharp_task(folder: Path, **options) -> SharpTask:
    return SharpTask(Squares(), new_autoencoder(VAE, 0), folder, 4, **options)


class Unseen(SharpTask):
    """Without sheets and exports, which take longer than a few steps."""

    def look(self, path: Path) -> dict[str, float]:
        return {}

    def export(self) -> None:
        pass


def gradients(task: SharpTask, step: int) -> dict[str, np.ndarray]:
    """Of the loss of a step's batch, by parameter."""
    batch = task.batch(range(4 * step, 4 * step + 4))
    _, _, found = averaged_gradients(task, [batch], mx.distributed.init())
    return {name: to_numpy(value) for name, value in found.items()}


def test_the_decoder_gets_equation_6_and_the_discriminator_equation_5(tmp_path):
    task = sharp_task(tmp_path, alone=1, gan_weight=0.5)
    model, (x, noise, say) = task.model, map(mx.array, task.batch(range(4, 8)))
    assert say.item() == 1

    def decoded():
        mean, deviation = model.moments(x)
        return model.decode(model._scale(mean + deviation * noise))

    parts = {
        "rec": lambda: task.reconstruction(x, decoded())[0],
        "gan": lambda: -model.discriminator(decoded()).mean(),
        "telling": lambda: hinge(model.discriminator(x), model.discriminator(mx.stop_gradient(decoded()))),
    }
    one = {
        name: {key: to_numpy(value) for key, value in tree_flatten(nn.value_and_grad(model, loss)()[1])}
        for name, loss in parts.items()
    }
    last = "decoder.conv_out.weight"
    weight = 0.5 * np.linalg.norm(one["rec"][last]) / np.linalg.norm(one["gan"][last])
    found = gradients(task, 1)
    assert {name.split(".")[0] for name in found} == {"decoder", "post_quant_conv", "discriminator"}
    for name, value in found.items():
        expected = one["telling"][name] if "discriminator" in name else one["rec"][name] + weight * one["gan"][name]
        # Biases ahead of a norm have no gradient but rounding.
        assert np.abs(value - expected).max() < 2e-3 * np.abs(expected).max() + 1e-5, name


def test_at_first_the_discriminator_learns_alone(tmp_path):
    task = sharp_task(tmp_path, alone=5)
    without = gradients(sharp_task(tmp_path, alone=0, gan_weight=0.0), 1)
    for name, value in gradients(task, 1).items():
        assert np.array_equal(value, without[name])
    assert task.batch(range(20, 24))[2] == 1


def test_the_adaptive_weight_balances_both_losses_at_the_last_layer():
    task = sharp_task(Path("nowhere"))
    last, features = task.model.decoder.conv_out, mx.random.normal((2, 16, 16, 8), key=mx.random.key(0))
    one, two = (mx.random.normal((2, 16, 16, 3), key=mx.random.key(i)) for i in (1, 2))
    weight = adaptive_weight(last, features, one, two).item()
    assert adaptive_weight(last, features, one, 10 * two).item() == pytest.approx(weight / 10, rel=1e-3)
    assert adaptive_weight(last, features, 10 * one, two).item() == pytest.approx(weight * 10, rel=1e-3)
    assert adaptive_weight(last, features, one, 0 * two).item() == 1e4  # bounded where the discriminator says nothing


def blurred(pictures: np.ndarray) -> np.ndarray:
    around = np.pad(pictures, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(around[:, i : i + pictures.shape[1]] for i in range(5)) / 5
    return sum(rows[:, :, i : i + pictures.shape[2]] for i in range(5)) / 5


def test_what_the_discriminator_wants_is_sharper():
    """The idea itself: trained on sharp and soft pictures, its gradient makes soft ones sharper."""
    mx.random.seed(0)
    critic, recipe = Discriminator(), Recipe(learning_rate=1e-3, beta_1=0.5)
    pictures = Postcards(64).batch(range(28))[0].astype(np.float32) / 127.5 - 1
    sharp, soft = mx.array(pictures), mx.array(blurred(pictures))
    step = nn.value_and_grad(critic, lambda i: hinge(critic(sharp[i : i + 4]), critic(soft[i : i + 4])))
    state = State.fresh(dict(tree_flatten(critic.trainable_parameters())))
    for i in range(70):
        loss, found = step(4 * i % 24)
        state.update(dict(tree_flatten(found)), recipe, 1e-3)
        critic.load_weights(list(state.layout.named(state.parameters).items()))
    assert loss.item() < 0.6
    wanted, shown = mx.grad(lambda y: critic(y).mean()), soft[24:]
    for _ in range(8):
        gradient = wanted(shown)
        shown = shown + 0.1 * gradient / mx.abs(gradient).max()
    before, after = (edge_strength(np.array(each) / 2 + 0.5, pictures[24:] / 2 + 0.5) for each in (soft[24:], shown))
    assert before < 0.4 and after > 1.1 * before


def test_edge_strength_is_that_of_edges_alone():
    pictures = Squares().batch(range(4))[0].astype(np.float32) / 255
    assert edge_strength(pictures, pictures) == 1
    assert 0.15 < edge_strength(blurred(pictures), pictures) < 0.25  # a step of one pixel has become one of five
    noisy = pictures + 0.01 * np.random.default_rng(0).standard_normal(pictures.shape)
    assert edge_strength(noisy, pictures) == pytest.approx(1, abs=0.02)  # noise on flat colours is not sharpness


def test_the_perceptual_distance_sees_blur_and_no_scale(tmp_path):
    encoder = sharp_task(tmp_path).model.encoder
    x = Squares().batch(range(2))[0].astype(np.float32) / 127.5 - 1
    near, far = (perceptual_distance(encoder, mx.array(x), mx.array(y)).item() for y in (x + 0.01, blurred(x)))
    assert perceptual_distance(encoder, mx.array(x), mx.array(x)).item() == 0
    assert 0 < near < far < 16


def test_it_resumes_to_the_bit_with_its_discriminator(tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 2:
            raise Stop

    def trained(folder: Path, report=lambda progress: None) -> State:
        task, recipe = Unseen(Squares(), new_autoencoder(VAE, 0), folder, 4, alone=1), Recipe(batch=4, warm_up=2)
        return train(task, recipe, Limit(steps=4), folder, report, Intervals(report=1, save=0.0, look=1e9))

    once = trained(tmp_path / "a")
    with pytest.raises(Stop):
        trained(tmp_path / "b", stop)
    resumed = trained(tmp_path / "b")
    assert any(name.startswith("discriminator.") for name in once.layout.shapes)
    assert_same(once, resumed)


def test_latents_stay_as_they_are_and_the_decoder_loads_alone(tmp_path):
    for name, alone in (("whole", False), ("decoder", True)):
        task = sharp_task_of(tmp_path / name, decoder_only=alone)
        task.export()
    whole, before = (load_file(folder / "vae" / WEIGHTS) for folder in (tmp_path / "whole", EMBEDDED))
    assert whole.keys() == before.keys()
    same = {key for key in whole if np.array_equal(whole[key], before[key])}
    assert same >= {key for key in whole if key.startswith(("encoder.", "quant_conv."))}
    assert whole.keys() - same == {"decoder.conv_in.weight"}
    alone = load_file(tmp_path / "decoder" / WEIGHTS)
    assert {key.split(".")[0] for key in alone} == {"decoder", "post_quant_conv"}

    folders = (None, tmp_path / "decoder", tmp_path / "whole" / "vae")
    picture, latents, pictures = Squares().example(0)[0], [], []
    with ops.use("plain"):
        for folder in folders:
            sd = StableDiffusion(vae=folder, float16=False)
            latents.append(np.array(sd.encode(picture, 64, 64)))
            pictures.append(np.array(sd.decode(mx.array(latents[0]))))
    assert np.array_equal(latents[0], latents[1]) and np.array_equal(latents[0], latents[2])
    assert np.array_equal(pictures[1], pictures[2]) and not np.array_equal(pictures[0], pictures[1])


def test_a_share_mixes_the_weights_with_those_before(tmp_path):
    task = sharp_task(tmp_path, share=0.25)
    before = to_numpy(task.model.decoder.conv_in.weight)
    task.model.decoder.conv_in.weight = task.model.decoder.conv_in.weight + 1
    np.testing.assert_allclose(to_numpy(task.exported().decoder.conv_in.weight), before + 0.25, atol=1e-6)
    with pytest.raises(InputError, match="--vae"):
        RUNS["sharp"].train(Squares(), tmp_path, Limit(steps=1), share=0.25)


def sharp_task_of(folder: Path, **options) -> SharpTask:
    """Of the embedded VAE, with one other weight in its decoder."""
    model = load_autoencoder(EMBEDDED / "vae")
    model.decoder.conv_in.weight = 1.25 * model.decoder.conv_in.weight
    return SharpTask(Squares(), model, folder, 4, **options)


def test_a_decoder_for_other_latents_is_refused(tmp_path):
    write_decoder(tmp_path / "decoder", load_autoencoder(EMBEDDED / "vae"))
    config = tmp_path / "decoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.18215}))
    with pytest.raises(ConfigError, match=r"latents of another model.*0\.18215"):
        StableDiffusion(vae=tmp_path / "decoder")
    with pytest.raises(CheckpointNotFoundError, match="no autoencoder"):
        RUNS["sharp"].train(Squares(), tmp_path, Limit(steps=1), vae=str(tmp_path / "missing"))


def test_the_embedded_decoder_is_sharper_for_the_same_latents():
    """Of held-out postcards; docs/papers.md has the figures of more of them."""
    assert catalogue.vaes()["postcards-sharp"] == embedded_vaes()["postcards-sharp"]
    pictures = Postcards(128, held_out=True).batch(range(10_000_000, 10_000_004))[0]
    with ops.use("plain"):
        own, sharp = (StableDiffusion(vae=name, float16=False) for name in (None, "postcards-sharp"))
        latents = [own.encode(picture) for picture in pictures]
        assert mx.array_equal(latents[0], sharp.encode(pictures[0]))
        soft, steep = (np.concatenate([np.array(sd.decode(each)) for each in latents]) for sd in (own, sharp))
    before, after = (edge_strength(each, pictures / 255) for each in (soft, steep))
    assert after > before + 0.1 and after > 0.75
    assert psnr(steep, pictures / 255) > 28
