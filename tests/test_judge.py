"""The judge of postcards: what it is given, what it says, and the distance between two sets of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import judge
from benchmarks.judge import ATTRIBUTES, Classifier, frechet_distance
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError
from stable_diffusion.training.postcards.painter import is_held_out, paint


def cards(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [judge.any_postcard(rng) for _ in range(count)]


def test_it_learns():
    losses: list[float] = []
    judge.train(30, batch=12, report=lambda step, loss: losses.append(loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_training_is_the_same_twice():
    def weights():
        return np.array(judge.train(2, batch=4, seed=3).heads["sky"].weight)

    assert np.array_equal(weights(), weights())


def test_reading_is_independent_of_company_and_size():
    mx.random.seed(1)
    model = Classifier()
    pictures = np.stack([np.asarray(paint(card, 64)) for card in cards(70)])
    features, said = model.read(pictures)
    assert features.shape == (70, 160)
    assert all(set(said[name]) <= set(options) and len(said[name]) == 70 for name, options in ATTRIBUTES.items())
    assert np.allclose(model.read(pictures[65:66])[0], features[65], atol=1e-4)
    doubled = pictures.repeat(2, axis=1).repeat(2, axis=2)
    assert np.allclose(model.read(doubled[:3])[0], features[:3], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (1, 64, 128, 3), (1, 100, 100, 3), (1, 64, 64, 4)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(InputError, match=str(shape[1])):
        judge.as_input(np.zeros(shape, np.uint8))


def test_it_learns_what_training_of_the_model_never_sees():
    held = [is_held_out(card) for card in cards(900)]
    assert 0.07 < np.mean(held) < 0.16


def test_labels_name_the_attributes():
    some = cards(20)
    found = judge.labels(some)
    for name, options in ATTRIBUTES.items():
        assert [options[i] for i in found[name]] == [getattr(card, name) for card in some]


def test_disturbed_pictures_stay_near():
    pictures = np.stack([np.asarray(paint(card, 64)) for card in cards(16)])
    x = judge.disturbed(pictures, np.random.default_rng(0))
    assert x.shape == (16, 64, 64, 3) and x.dtype == np.float32
    assert np.abs(x).max() < 1.6
    plain = pictures.astype(np.float32) / 127.5 - 1
    assert np.abs(x.mean((1, 2)) - plain.mean((1, 2))).max() < 0.12


def test_distance_of_normal_distributions():
    """Of independent normal features with means m and deviations s: |m - m'|^2 + |s - s'|^2."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4000, 3))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False)).T)  # exactly unit covariance
    assert frechet_distance(z, z) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(z, z + np.array([3.0, 0.0, 4.0])) == pytest.approx(25)
    assert frechet_distance(z, z * [1.0, 3.0, 0.5]) == pytest.approx(4 + 0.25)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    a, b = z * [2.0, 1.0, 1.0], z * [1.0, 1.0, 3.0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(1 + 4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
