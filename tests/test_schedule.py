"""The schedule against the papers' formulas and hand-computed times; no reference needed."""

import dataclasses
import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_diffusion.config import SchedulerConfig
from stable_diffusion.diffusion.schedule import (
    TERMINAL_ALPHA_BAR,
    NoiseLevel,
    NoiseSchedule,
    Plan,
)
from stable_diffusion.diffusion.spacing import exponential_sigmas, karras_sigmas, named_sigmas, spaced_times
from stable_diffusion.errors import ConfigError, InputError

SD = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def spaced(spacing, num_steps, **options):
    return spaced_times(dataclasses.replace(SD, timestep_spacing=spacing), num_steps, **options).tolist()


def test_levels_convert_between_the_two_forms():
    level = NoiseLevel.from_ve_sigma(5.0, 2.0)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    assert level.ve_sigma == pytest.approx(2)
    assert level.log_snr == pytest.approx(-math.log(2))
    same = NoiseLevel.from_alpha_bar(5.0, 0.2)
    assert (same.alpha, same.sigma) == pytest.approx((level.alpha, level.sigma))


def test_levels_at_the_ends():
    assert NoiseLevel.from_alpha_bar(0.0, 1.0).log_snr == math.inf
    assert NoiseLevel.from_alpha_bar(0.0, 1.0).ve_sigma == 0
    assert NoiseLevel.from_alpha_bar(999.0, 0.0).ve_sigma == math.inf


def test_noised_is_the_mixture():
    level = NoiseLevel(0.0, 0.6, 0.8)
    x = level.noised(mx.array([1.0, 2.0]), mx.array([-1.0, 0.5]))
    assert x.dtype == mx.float32
    np.testing.assert_allclose(np.array(x), [-0.2, 1.6], rtol=1e-6)


def test_stable_diffusion_sigmas_are_the_known_ones():
    schedule = NoiseSchedule.from_config(SD)
    assert len(schedule) == 1000
    assert schedule.alpha_bars.dtype == np.float32
    assert schedule.ve_sigmas[[0, -1]] == pytest.approx([0.0291675, 14.614641], rel=1e-5)
    assert (np.diff(schedule.ve_sigmas) > 0).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beta_schedule": "linear"}, lambda i: 0.00085 + (0.012 - 0.00085) * i),
        ({"beta_schedule": "scaled_linear"}, lambda i: (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i) ** 2),
        ({"beta_schedule": "sigmoid"}, lambda i: 0.00085 + (0.012 - 0.00085) / (1 + np.exp(6 - 12 * i))),
    ],
)
def test_beta_schedules(options, expected):
    schedule = NoiseSchedule.from_config(dataclasses.replace(SD, **options))
    alpha_bars = np.cumprod(1 - expected(np.linspace(0, 1, 1000)))
    np.testing.assert_allclose(schedule.alpha_bars, alpha_bars, rtol=1e-5)


def test_cosine_betas_follow_their_alpha_bar_until_they_are_capped():
    schedule = NoiseSchedule.from_config(dataclasses.replace(SD, beta_schedule="squaredcos_cap_v2"))
    at = (np.arange(1, 1001) / 1000 + 0.008) / 1.008
    expected = np.cos(at * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bars[:990], expected[:990], rtol=1e-4)


def test_trained_betas_stand_alone():
    config = SchedulerConfig(num_train_timesteps=3, trained_betas=(0.1, 0.2, 0.5))
    np.testing.assert_allclose(NoiseSchedule.from_config(config).alpha_bars, [0.9, 0.72, 0.36], rtol=1e-6)


def test_betas_outside_0_to_1_are_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        NoiseSchedule.from_config(SchedulerConfig(num_train_timesteps=3, trained_betas=(0.1, 1.5, 0.5)))


def test_zero_terminal_snr_moves_only_the_end():
    plain = NoiseSchedule.from_config(SD)
    rescaled = NoiseSchedule.from_config(dataclasses.replace(SD, rescale_betas_zero_snr=True))
    floored = NoiseSchedule.from_config(dataclasses.replace(SD, rescale_betas_zero_snr=True), floored=True)
    assert rescaled.alpha_bars[0] == pytest.approx(plain.alpha_bars[0], rel=1e-6)
    assert rescaled.alpha_bars[-1] == 0
    assert floored.alpha_bars[-1] == TERMINAL_ALPHA_BAR
    assert floored.ve_sigmas[-1] == pytest.approx(4096, rel=1e-6)


def test_levels_below_time_0_are_the_final_one():
    assert NoiseSchedule.from_config(SD).level(-20) == NoiseLevel(0.0, 1.0, 0.0)
    at_0 = NoiseSchedule.from_config(SD, final_is_clean=False)
    assert at_0.level(-20) == at_0.level(0)


def test_levels_beyond_the_last_time_are_refused():
    with pytest.raises(InputError, match="1000"):
        NoiseSchedule.from_config(SD).level(1000)


@settings(deadline=None)
@given(st.floats(0, 999))
def test_times_survive_the_way_through_sigma(t):
    # The one way is linear in sigma, the other in log sigma, so that only whole times come back exactly.
    schedule = NoiseSchedule.from_config(SD)
    back = schedule.t_from_sigma(schedule.sigma_from_t(np.array([t, round(t)])))
    assert back[0] == pytest.approx(t, abs=0.2)
    assert back[1] == pytest.approx(round(t), abs=1e-3)


def test_times_outside_are_clipped():
    schedule = NoiseSchedule.from_config(SD)
    assert schedule.t_from_sigma(np.array([1e-9, 1e9])).tolist() == [0, 999]
    assert schedule.sigma_from_t(np.array([2000.0])) == schedule.ve_sigmas[-1]


@pytest.mark.parametrize(
    ("spacing", "num_steps", "expected"),
    [
        ("leading", 4, [751, 501, 251, 1]),
        ("leading", 3, [667, 334, 1]),
        ("linspace", 4, [999, 666, 333, 0]),
        ("linspace", 1, [0]),
        ("trailing", 4, [999, 749, 499, 249]),
        ("trailing", 3, [999, 666, 332]),
        ("trailing", 1, [999]),
    ],
)
def test_spacings(spacing, num_steps, expected):
    assert spaced(spacing, num_steps) == expected


def test_spacings_with_room_for_one_more_step():
    assert spaced("leading", 4, one_more=True) == [801, 601, 401, 201]
    assert spaced("linspace", 4, one_more=True) == [999, 749, 500, 250]


def test_linspace_may_keep_fractions():
    assert spaced("linspace", 5, rounded=False) == [999, 749.25, 499.5, 249.75, 0]


@settings(deadline=None)
@given(st.integers(1, 1000), st.sampled_from(["leading", "linspace", "trailing"]))
def test_every_number_of_steps_has_as_many_falling_times(num_steps, spacing):
    times = spaced(spacing, num_steps)
    assert len(times) == num_steps
    assert all(a > b for a, b in itertools.pairwise(times))
    assert times[-1] >= 0


def test_karras_and_exponential_sigmas_keep_the_ends():
    for make in (karras_sigmas, exponential_sigmas):
        sigmas = make(0.03, 14.6, 10)
        assert sigmas[[0, -1]] == pytest.approx([14.6, 0.03])
        assert (np.diff(sigmas) < 0).all()
        assert make(0.03, 14.6, 1) == pytest.approx([14.6])
    assert np.diff(karras_sigmas(0.03, 14.6, 10) ** (1 / 7), n=2) == pytest.approx(np.zeros(8), abs=1e-12)
    assert np.diff(np.log(exponential_sigmas(0.03, 14.6, 10)), n=2) == pytest.approx(np.zeros(8), abs=1e-12)


def test_named_sigmas_take_the_configurations_ends():
    config = dataclasses.replace(SD, use_karras_sigmas=True, sigma_min=0.1, sigma_max=9.0)
    assert named_sigmas(config, np.array([14.0, 1.0, 0.03]), 3)[[0, -1]] == pytest.approx([9.0, 0.1])
    assert named_sigmas(SD, np.array([14.0, 1.0, 0.03]), 3) is None


def a_plan(**options):
    schedule = NoiseSchedule.from_config(SD)
    levels = tuple(schedule.level(t) for t in (900, 600, 300))
    return Plan(SD, schedule, levels, (*levels[1:], schedule.final), **options)


def test_the_tail_of_a_plan():
    plan = a_plan()
    assert (len(plan), plan.start.t) == (3, 900.0)
    assert (len(plan.tail(2)), plan.tail(2).start.t) == (2, 600.0)
    assert plan.tail(3).levels == plan.levels
    assert plan.tail(2).tail(1).start.t == 300.0


@pytest.mark.parametrize("steps", [0, 4, -1, 1.5, True])
def test_a_tail_that_is_none_is_refused(steps):
    with pytest.raises(InputError, match=repr(steps)):
        a_plan().tail(steps)


def test_a_plan_that_cannot_be_cut_says_why():
    plan = a_plan(indivisible="this one is whole")
    assert len(plan.tail(3)) == 3
    with pytest.raises(InputError, match="this one is whole"):
        plan.tail(2)


def test_the_first_latents():
    noise, x_0 = mx.array([1.0, -2.0]), mx.array([0.5, 0.5])
    plan = a_plan(prior_std=0.9)
    np.testing.assert_allclose(np.array(plan.prior(noise)), [0.9, -1.8], rtol=1e-6)
    start = plan.tail(1).start
    expected = start.alpha * 0.5 + start.sigma * np.array([1.0, -2.0])
    np.testing.assert_allclose(np.array(plan.tail(1).renoise(x_0, noise)), expected, rtol=1e-6)
