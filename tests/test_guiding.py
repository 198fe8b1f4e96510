"""Guidance by a gradient, in a world whose scores are known in closed form."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from stable_diffusion.config import SchedulerConfig
from stable_diffusion.diffusion.denoiser import Denoiser, flow_share, x0_from_eps
from stable_diffusion.diffusion.guiding import Guidance, of_estimate
from stable_diffusion.diffusion.noise import NoiseStream
from stable_diffusion.diffusion.schedule import NoiseLevel
from stable_diffusion.errors import InputError
from stable_diffusion.sampler import sampler_by_name, samplers

SHAPE = (2, 2, 2, 4)
SIZE = 16  # numbers of one picture
TYPES = ("epsilon", "v_prediction", "sample", "flow")
LEVEL = NoiseLevel.from_alpha_bar(300.0, 0.3)


@dataclass
class Gaussian:
    """x_0 ~ N(mean, covariance), as float64 vectors."""

    mean: np.ndarray
    covariance: np.ndarray

    def eps(self, x, level):
        """-sigma times the score of x_t, rows of x (B, 16)."""
        spread = level.alpha**2 * self.covariance + level.sigma**2 * np.eye(SIZE)
        return level.sigma * np.linalg.solve(spread, (x - level.alpha * self.mean).T).T

    def given(self, y, matrix, noise):
        """x_0 given y = matrix x_0 + N(0, noise)."""
        gain = self.covariance @ matrix.T @ np.linalg.inv(matrix @ self.covariance @ matrix.T + noise)
        return Gaussian(self.mean + gain @ (y - matrix @ self.mean), self.covariance - gain @ matrix @ self.covariance)

    def gradient(self, x, level, y, matrix, noise):
        """grad log p(y | x_t) in x_t: y given x_t is normal around matrix E[x_0 | x_t]."""
        spread = level.alpha**2 * self.covariance + level.sigma**2 * np.eye(SIZE)
        slope = level.alpha * self.covariance @ np.linalg.inv(spread)
        left = self.covariance - level.alpha * slope @ self.covariance
        mean = self.mean + (x - level.alpha * self.mean) @ slope.T
        inverse = np.linalg.inv(matrix @ left @ matrix.T + noise)
        return (y - mean @ matrix.T) @ inverse @ matrix @ slope


def world(seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((SIZE, SIZE)) / 4
    prior = Gaussian(rng.standard_normal(SIZE) / 2, root @ root.T + np.eye(SIZE) / 4)
    matrix, noise = rng.standard_normal((3, SIZE)) / 2, np.eye(3) / 4
    return prior, (rng.standard_normal(3), matrix, noise)


def rows(x):
    return np.array(x, np.float64).reshape(len(x), SIZE)


def latents(values):
    return mx.array(values.astype(np.float32).reshape(-1, *SHAPE[1:]))


def network(world, prediction_type, levels):
    """A network that answers in a prediction type, at the times of some levels."""

    def answer(x, t, step):
        if prediction_type == "flow":
            level = min(levels, key=lambda level: abs(1000 * flow_share(level) - t))
            x = x * (level.alpha + level.sigma)
        else:
            level = min(levels, key=lambda level: abs(level.t - t))
        eps = latents(world.eps(rows(x), level))
        x_0 = x0_from_eps(x, eps, level)
        return {
            "epsilon": eps, "v_prediction": level.alpha * eps - level.sigma * x_0, "sample": x_0, "flow": eps - x_0
        }[prediction_type]  # fmt: skip

    return answer


def guide(prior, condition):
    return lambda x, level, x_0: latents(prior.gradient(rows(x), level, *condition))


def some(seed=1, shape=SHAPE):
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("alpha_bar", [0.02, 0.3, 0.97])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_guided_score_is_the_score_of_what_is_wanted(prediction_type, alpha_bar):
    prior, condition = world()
    level, x = NoiseLevel.from_alpha_bar(300.0, alpha_bar), some()
    wanted = prior.given(*condition).eps(rows(x), level)
    denoiser = Denoiser(network(prior, prediction_type, [level]), prediction_type)
    assert np.abs(rows(denoiser(x, level, 1).eps) - wanted).max() > 0.01  # the condition matters
    steered = Denoiser(
        network(prior, prediction_type, [level]), prediction_type, guidance=Guidance(guide(prior, condition))
    )
    np.testing.assert_allclose(rows(steered(x, level, 1).eps), wanted, rtol=1e-5, atol=1e-5)
    found = steered(x, level, 1)
    np.testing.assert_allclose(level.alpha * rows(found.x_0) + level.sigma * rows(found.eps), rows(x), atol=1e-5)


# CFG++ steps by the negative text's own eps (Chung et al. 2024), which no guidance changes.
@pytest.mark.parametrize("name", [each.key for each in samplers() if "cfg_pp" not in each.key])
def test_every_sampler_paints_what_is_wanted(name):
    prior, condition = world()
    config = SchedulerConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    sampler = sampler_by_name(name)
    plan = sampler.plan(config, 8)
    levels = [*plan.levels, *plan.ends, *(plan.schedule.level(t) for t in range(len(plan.schedule)))]
    asked = prior.given(*condition)

    def last(network, guidance):
        noise = NoiseStream(range(2), SHAPE[1:])
        denoiser = Denoiser(network, guidance=guidance)
        *_, step = sampler.sample(denoiser, plan.prior(noise()), plan, noise)
        return rows(step.x)

    # The network sees x and t alone; where a sampler asks between two times, the nearest is near enough for both.
    steered = last(network(prior, "epsilon", levels), Guidance(exact(prior, condition, levels)))
    direct = last(network(asked, "epsilon", levels), None)
    np.testing.assert_allclose(steered, direct, rtol=2e-4, atol=2e-4)


def exact(prior, condition, levels):
    """The gradient at the level that `network` takes for a time, scaled as eps needs it there."""

    def gradient(x, level, x_0):
        seen = min(levels, key=lambda each: abs(each.t - level.t))
        return latents(prior.gradient(rows(x), seen, *condition) * seen.sigma / level.sigma)

    return gradient


def test_of_an_estimate_it_is_the_gradient_through_the_network_where_latents_have_unit_variance():
    target = some(3)
    unit = Gaussian(np.zeros(SIZE), np.eye(SIZE))

    def fit(x_0):
        return -mx.square(x_0 - target).sum((1, 2, 3)) / 2

    x = some()
    # E[x_0 | x_t] = alpha x_t, differentiated.
    whole = mx.grad(lambda x: fit(LEVEL.alpha * x).sum())(x)
    x_0 = Denoiser(network(unit, "epsilon", [LEVEL]))(x, LEVEL, 1).x_0
    np.testing.assert_allclose(rows(of_estimate(fit)(x, LEVEL, x_0)), rows(whole), rtol=1e-5, atol=1e-5)
    moved = Denoiser(network(unit, "epsilon", [LEVEL]), guidance=Guidance(of_estimate(fit)))(x, LEVEL, 1).x_0
    np.testing.assert_allclose(rows(moved), rows(x_0 + LEVEL.sigma**2 * (target - x_0)), rtol=1e-5, atol=1e-5)


def test_each_picture_has_its_scale():
    ones = lambda x, level, x_0: mx.ones_like(x)  # noqa: E731
    x = some()
    plain = Denoiser(lambda x, t, step: x)(x, LEVEL, 1).eps
    scaled = Denoiser(lambda x, t, step: x, guidance=Guidance(ones, (0.5, 2)))(x, LEVEL, 1).eps
    np.testing.assert_allclose(rows(plain - scaled)[:, 0], LEVEL.sigma * np.array([0.5, 2]), rtol=1e-5)
    assert Guidance(ones, (0.5, 2, 3)).only([2, 0]).scale == (3.0, 0.5)


def test_of_some_pictures_a_function_may_have_a_form_of_its_own():
    class Targets:
        def __init__(self, targets):
            self.targets = targets

        def __call__(self, x, level, x_0):
            return self.targets - x_0

        def only(self, places):
            return Targets(self.targets[mx.array(list(places))])

    half = Guidance(Targets(some(2))).only([1])
    np.testing.assert_array_equal(np.array(half.gradient.targets), np.array(some(2))[1:])


def test_at_pure_noise_and_without_noise_nothing_is_asked():
    def refuse(x, level, x_0):
        raise AssertionError("asked")

    for alpha_bar in (0.0, 1.0):
        level = NoiseLevel.from_alpha_bar(0.0, alpha_bar)
        Denoiser(lambda x, t, step: x, "v_prediction", guidance=Guidance(refuse))(some(), level, 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x[:1], r"answered with \(1, 2, 2, 4\) at time 300; it should be an mlx array \(2, 2, 2, 4\)"),
        (lambda x: np.array(x), "answered with ndarray at time 300"),
        (lambda x: None, "answered with NoneType"),
        (lambda x: x / 0, "NaN or infinity at time 300, noise 0.837"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answer, words):
    denoiser = Denoiser(lambda x, t, step: x, guidance=Guidance(lambda x, level, x_0: answer(x)))
    with pytest.raises(InputError, match=words):
        denoiser(some(), LEVEL, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "guidance = 0.5 should be a function of x_t"),
        (Guidance(len, (1.0, 2.0, 3.0)), "3 scales, but there are 2 pictures"),
    ],
)
def test_what_is_no_guidance_is_refused(value, words):
    with pytest.raises(InputError, match=words):
        Guidance.of(value, 2)


@pytest.mark.parametrize("scale", [float("nan"), "two", (1.0, float("inf")), ()])
def test_scales_are_finite_numbers(scale):
    with pytest.raises(InputError, match="guidance scale"):
        Guidance(len, scale)
