"""Noise of seeds and of variations: what each draw depends on, and that it stays unit normal on the way between two."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.diffusion.noise import NoiseStream, Seeds, slerp, unit_normal
from stable_diffusion.errors import InputError

SHAPE = (8, 8, 4)


@pytest.fixture(scope="module")
def sd():
    return StableDiffusion(float16=False)


def run(sd, **options):
    """The latents that a short generation ends with."""
    options = {"num_steps": 3, "width": 64, "height": 64, "seed": 1, **options}
    for step in sd.generate_latents("a red house on green hills", **options):
        mx.eval(step.latents)
    return step.latents


def test_the_noise_of_a_seed():
    stream = NoiseStream([3, 4], (2, 2, 4))
    first, second = stream(), stream()
    assert first.shape == (2, 2, 2, 4)
    assert not mx.allclose(first, second)
    assert mx.array_equal(NoiseStream([4], (2, 2, 4))()[0], first[1])
    many = NoiseStream([0], (100, 100, 4))()
    assert abs(many.mean().item()) < 0.02 and abs(many.std().item() - 1) < 0.02


def test_noise_is_drawn_on_the_cpu_wherever_it_is_used(monkeypatch):
    """A GPU's logarithm differs from one generation to the next."""
    devices = []

    def watched(function):
        def call(*arguments, stream, **options):
            devices.append(stream)
            return function(*arguments, stream=stream, **options)

        return call

    for name in ("normal", "split"):
        monkeypatch.setattr(mx.random, name, watched(getattr(mx.random, name)))
    stream = NoiseStream(Seeds(1, 2, variation=5, strength=0.3), SHAPE)
    stream()
    stream.varied()
    assert len(devices) >= 8 and set(devices) == {mx.cpu}


def test_a_draw_is_exact_to_a_few_units_in_the_last_place():
    """Uniform numbers to the bit, normal ones to 5e-7: so two machines on which this passes agree to 1e-6."""
    key = mx.random.key(12)
    low = float(np.nextafter(np.float32(-1), np.float32(0)))
    uniform = np.asarray(mx.random.uniform(low, 1, (20_000,), key=key, stream=mx.cpu))
    assert hashlib.sha256(uniform.tobytes()).hexdigest()[:16] == "829a05e4c2fdd224"
    exact = np.array([NormalDist().inv_cdf((float(u) + 1) / 2) for u in uniform])
    assert np.abs(exact).max() > 3.5
    drawn = np.asarray(unit_normal((20_000,), key))
    assert (np.abs(drawn - exact) <= 5e-7 * np.abs(exact) + 1e-12).all()


def test_seeds_count_as_a1111_counts_them():
    assert Seeds(7, 3).of_pictures() == [7, 8, 9]
    assert Seeds(7, 3, variation=20, strength=0).of_pictures() == [7, 8, 9]
    varied = Seeds(7, 3, variation=20, strength=0.5)
    assert (varied.of_pictures(), varied.of_variations()) == ([7, 7, 7], [20, 21, 22])


# --- Spherical interpolation


def test_slerp_is_shoemakes_on_each_pictures_whole_vector():
    start, end = NoiseStream([1, 2], SHAPE)(), NoiseStream([3, 4], SHAPE)()
    for share in (0.1, 0.5, 0.8):
        found = np.array(slerp(start, end, share))
        for i in range(2):
            a, b = (np.array(each[i], np.float64).ravel() for each in (start, end))
            angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            wanted = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
            np.testing.assert_allclose(found[i].ravel(), wanted, atol=2e-6)


def test_slerp_begins_and_ends_exactly():
    start, end = NoiseStream([1], SHAPE)(), NoiseStream([2], SHAPE)()
    assert mx.array_equal(slerp(start, end, 0), start)
    assert mx.array_equal(slerp(start, end, 1), end)


def test_half_way_has_unit_variance_which_a_straight_line_has_not():
    start, end = NoiseStream([1], (64, 64, 4))(), NoiseStream([2], (64, 64, 4))()
    assert abs(slerp(start, end, 0.5).std().item() - 1) < 0.02
    assert abs(((start + end) / 2).std().item() - math.sqrt(0.5)) < 0.02


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_parallel_noise_divides_by_nothing(factor):
    start = NoiseStream([1], SHAPE)()
    found = slerp(start, factor * start, 0.25)
    assert mx.allclose(found, (0.75 + 0.25 * factor) * start, atol=1e-6)


# --- Variation seeds


def test_later_draws_turn_as_well_if_all_are_to():
    one, five = NoiseStream([1], SHAPE), NoiseStream([5], SHAPE)
    whole, part = (NoiseStream(Seeds(1, 1, variation=5, strength=s, all_draws=True), SHAPE) for s in (1.0, 0.3))
    for _ in range(3):
        start, end = one(), five()
        assert mx.array_equal(whole(), end) and mx.array_equal(part(), slerp(start, end, 0.3))


@pytest.mark.parametrize("image", [False, True])
def test_strength_0_is_the_seed_and_1_the_variation_seed(sd, image):
    options = {}
    if image:  # at strength 0 the encoder's noise is the seed's too, so that only the rest is compared
        options = {"input_image": Image.new("RGB", (64, 64), "teal"), "denoising_strength": 1.0}
    own = run(sd, **options)
    assert mx.array_equal(run(sd, variation_seed=9, variation_strength=0.0, **options), own)
    whole = run(sd, variation_seed=9, variation_strength=1.0, **options)
    assert mx.abs(whole - run(sd, seed=9, **options)).max() < (0.2 if image else 1e-6)
    assert mx.abs(whole - own).max() > 0.5


def test_little_strength_changes_little(sd):
    own = run(sd)
    changes = [mx.abs(run(sd, variation_seed=9, variation_strength=s) - own).mean().item() for s in (0.02, 0.2, 1)]
    assert 0 < changes[0] < 0.3 * changes[1] < 0.5 * changes[2]


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m_sde"])
def test_picture_i_of_a_variation_has_the_variation_seed_plus_i(sd, sampler):
    options = {"sampler": sampler, "variation_strength": 0.3}
    batch = run(sd, n_images=3, variation_seed=20, **options)
    for i in range(3):
        assert mx.abs(batch[i] - run(sd, variation_seed=20 + i, **options)[0]).max() < 1e-4
    assert mx.abs(batch[0] - batch[1]).max() > 0.01


def test_the_seed_is_told_and_what_makes_no_sense_is_refused(sd):
    step = next(sd.generate_latents("x", n_images=2, seed=5, variation_seed=8, variation_strength=0.5))
    assert step.seed == 5
    for options, said in (
        ({"variation_strength": 0.5}, "needs a variation_seed"),
        ({"variation_seed": 1, "variation_strength": 1.5}, r"1\.5"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "-1"),
        ({"variation_seed": 1, "variation_strength": "much"}, "much"),
        ({"variation_seed": 1, "variation_strength": 0.5, "latents": np.zeros((1, 16, 16, 4))}, "latents"),
    ):
        with pytest.raises(InputError, match=said):
            sd.generate_latents("x", **options)


def test_some_pictures_of_a_batch_keep_their_seeds():
    seeds = Seeds(7, 5, variation=20, strength=0.0).only([1, 3, 4])
    assert (seeds.n_images, seeds.of_pictures(), seeds.of_variations()) == (3, [8, 10, 11], [21, 23, 24])
    assert seeds.only([2, 0]).of_pictures() == [11, 8]
    varied = Seeds(7, 3, variation=20, strength=0.5).only([0, 2])
    assert (varied.of_pictures(), varied.of_variations()) == ([7, 7], [20, 22])
    whole, some = (NoiseStream(each, (2, 3)) for each in (Seeds(7, 5), Seeds(7, 5).only([4, 1])))
    for _ in range(2):
        draws = whole()
        assert mx.array_equal(some(), mx.stack([draws[4], draws[1]]))
